"""Token mixers, one file a paper; ``registry`` builds them by name."""
