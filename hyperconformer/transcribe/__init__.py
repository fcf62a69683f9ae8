"""Audio to words: whole files, long audio, streams, output formats."""
