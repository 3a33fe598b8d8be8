"""An integer network as portable C99."""

from .export import export_c, write_c
from .size import CSize

__all__ = ["CSize", "export_c", "write_c"]
