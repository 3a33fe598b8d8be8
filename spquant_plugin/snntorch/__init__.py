"""snnTorch: neurons, surrogates and layers under the host's own module names.

>>> from spquant_plugin.snntorch import layer, neuron, run, surrogate
"""

from ..modules.installed import require

require("snntorch", extra="snntorch", at_least=1)

from . import layer, neuron, surrogate  # noqa: E402
from .run import run  # noqa: E402

__all__ = ["layer", "neuron", "run", "surrogate"]
