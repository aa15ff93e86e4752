"""The paper: forward process, loss, components, selection, difficulty, on plain tensors."""
