"""Corpora that are synthesised."""
