"""Layers that every encoder shares."""
