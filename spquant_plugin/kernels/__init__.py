"""The membrane recurrence of all time steps as one operation, forward and backward.

>>> import spquant_plugin as spq
>>> spq.kernels.use("auto").__class__.__name__
'use'
"""

from .choice import provider, use
from .rule import Rule
from .sequence import Sequence, membrane_sequence

__all__ = ["Rule", "Sequence", "membrane_sequence", "provider", "use"]
