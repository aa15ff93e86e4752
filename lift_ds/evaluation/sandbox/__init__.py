"""Processes for text that nobody has read: limited, unable to change anything, killed on time."""

from .child import Child, Failure, Handler, Limits

__all__ = ["Child", "Failure", "Handler", "Limits"]
