"""The reverse process."""
