"""Tokens with a fixed number, and the sign that begins a word."""

# The tokens that every tokenizer here begins with; 0 is also "unknown" and padding.
BLANK_INDEX, BOS_INDEX, EOS_INDEX = 0, 1, 2
# Tokens of the decoder that no text holds.
NO_TEXT = (BOS_INDEX, EOS_INDEX)
# What SentencePiece writes for the space before a word.
WORD_START = "\u2581"
