"""Searches: greedy, CTC beam, joint, transducer, in streams; alignment."""
