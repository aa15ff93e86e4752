"""Checkpoints on disk: reading, judging, re-cutting and converting them, without DeepSpeed."""
