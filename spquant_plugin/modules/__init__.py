"""Parameters and buffers around :mod:`spquant_plugin.functional`. Nothing here knows a host."""

from .gates import ChannelGate, SpatialGate
from .input_quantizer import InputQuantizer
from .quantized_layer import QuantizedLayer
from .weight_quantizer import WeightQuantizer, build_weight_quantizer

__all__ = [
    "ChannelGate",
    "InputQuantizer",
    "QuantizedLayer",
    "SpatialGate",
    "WeightQuantizer",
    "build_weight_quantizer",
]
