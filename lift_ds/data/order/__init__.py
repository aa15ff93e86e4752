"""The order of samples: lanes, packs, steps, whatever the number of ranks."""
