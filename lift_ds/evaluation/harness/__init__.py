"""Tasks of lm-evaluation-harness (the extra `eval`) with masked diffusion models."""
