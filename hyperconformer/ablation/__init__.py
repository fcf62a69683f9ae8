"""Ablations: a YAML file says what to vary, every run is a call of ``train.py``."""
