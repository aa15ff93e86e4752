"""Putting problems to a model, and keeping its answers."""
