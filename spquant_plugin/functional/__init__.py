"""The equations, as pure functions of tensors. Nothing here knows a module or a host."""

from . import inputs, membrane, packing, surrogate, threshold, weights

__all__ = ["inputs", "membrane", "packing", "surrogate", "threshold", "weights"]
