"""The mathematics of the mixers: one folder an operator, its reference beside its fast path."""
