"""Model folders, and conversion from and to SpeechBrain."""
