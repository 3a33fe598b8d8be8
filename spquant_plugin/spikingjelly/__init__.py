"""SpikingJelly: neurons, surrogates and layers under the host's own module names.

>>> from spquant_plugin.spikingjelly import layer, neuron, surrogate
"""

from ..modules.installed import require

require("spikingjelly", extra="spikingjelly", at_least=2)

from . import layer, neuron, surrogate  # noqa: E402

__all__ = ["layer", "neuron", "surrogate"]
