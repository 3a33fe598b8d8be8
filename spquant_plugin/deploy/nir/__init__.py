"""A network as a NIR graph."""

from .export import export_nir

__all__ = ["export_nir"]
