"""Models outside of Python: ONNX graphs from samples to log-probabilities."""
