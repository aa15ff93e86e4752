"""Rows, tokens and steps: from files and built-in tasks to micro-batches."""
