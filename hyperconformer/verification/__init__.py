"""What is claimed of a trained model, and whether it holds here."""
