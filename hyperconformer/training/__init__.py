"""Training: the data pipeline, SpeechBrain's Brain, and the run that joins them."""
