"""The mathematics of the mixers: a folder an operator, reference beside fast path."""
