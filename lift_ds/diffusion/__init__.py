"""Mathematics of masked diffusion: forward process and loss, on plain tensors."""
