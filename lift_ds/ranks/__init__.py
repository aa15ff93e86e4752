"""Who this process is among the ranks, what moves between them, how they begin and end."""
