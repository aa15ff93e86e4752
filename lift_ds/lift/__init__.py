"""Mathematics of LIFT: which component a level has, and which tokens it keeps."""
