"""From a trained network to a graph of whole numbers."""

from .lower import to_integer

__all__ = ["to_integer"]
