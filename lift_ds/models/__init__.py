"""Model families, their weights, and export."""
