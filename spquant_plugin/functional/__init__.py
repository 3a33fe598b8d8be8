"""The equations, as pure functions of tensors. Nothing here knows a module or a host."""

from . import inputs, membrane, norm, packing, surrogate, threshold, weights

__all__ = ["inputs", "membrane", "norm", "packing", "surrogate", "threshold", "weights"]
