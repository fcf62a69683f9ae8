"""What every part shares: masks, states, words, tokens, files; no mathematics."""
