"""The training run: step, engine, loop, checkpoints."""
