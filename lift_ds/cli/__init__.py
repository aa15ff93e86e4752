"""Command lines of launchers/ and tools/."""
