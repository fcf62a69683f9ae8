"""Encoders: stacks of layers around a token mixer."""
