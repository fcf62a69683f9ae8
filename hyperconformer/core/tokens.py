"""Tokens with a fixed number, the sign that begins a word, and the pieces."""

# The tokens that every tokenizer here begins with; 0 is also "unknown" and padding.
BLANK_INDEX, BOS_INDEX, EOS_INDEX = 0, 1, 2
# Tokens of the decoder that no text holds.
NO_TEXT = (BOS_INDEX, EOS_INDEX)
# What SentencePiece writes for the space before a word.
WORD_START = "\u2581"


def list_pieces(tokenizer):
    """The text of every token of a SentencePiece model, ordered by number."""
    return [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())]
