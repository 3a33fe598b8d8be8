"""Parameters and buffers around :mod:`spquant_plugin.functional`. Nothing here knows a host."""

from .gates import ChannelGate, SpatialGate
from .input_quantizer import InputQuantizer
from .mint import MintQuantizer
from .quantized_layer import QuantizedLayer
from .quantized_norm import DyadicFactors, QuantizedBatchNorm
from .weight_quantizer import WeightQuantizer, build_weight_quantizer

__all__ = [
    "ChannelGate",
    "DyadicFactors",
    "InputQuantizer",
    "MintQuantizer",
    "QuantizedBatchNorm",
    "QuantizedLayer",
    "SpatialGate",
    "WeightQuantizer",
    "build_weight_quantizer",
]
