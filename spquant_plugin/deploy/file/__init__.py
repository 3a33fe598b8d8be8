"""One file for an integer network."""

from .store import load_graph, save_graph

__all__ = ["load_graph", "save_graph"]
