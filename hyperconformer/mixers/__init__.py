"""Token mixers, one file a paper; ``hyperconformer.registry`` builds them by name."""
