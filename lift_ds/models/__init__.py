"""Model families, their weights and tokenizers, and low-rank adapters."""
