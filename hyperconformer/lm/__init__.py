"""Language models: linear attention, SpeechBrain's Transformer, word n-grams."""
