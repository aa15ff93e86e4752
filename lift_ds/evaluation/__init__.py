"""Held-out loss and solve rates, in lockstep over the ranks; scores of generations that exist."""
