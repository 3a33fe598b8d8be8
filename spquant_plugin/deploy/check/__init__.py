"""The rules of an integer graph, whoever built it."""

from .whole import check_graph

__all__ = ["check_graph"]
