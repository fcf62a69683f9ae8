"""Ablations: a YAML file says what to vary, each run is a training of its own."""
