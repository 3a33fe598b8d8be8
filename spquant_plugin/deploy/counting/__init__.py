"""What an integer network tells of itself, for reports."""

from .count import count

__all__ = ["count"]
