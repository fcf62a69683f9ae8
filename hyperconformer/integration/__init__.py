"""The model inside SpeechBrain: the only part of it that imports speechbrain."""
