"""Reports of runs: what their folders hold, compared, as one HTML page."""
