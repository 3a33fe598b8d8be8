"""Weight layers, pools and norms as nodes of NIR."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...convert.hosts import Hosts
from ...convert.layers import layer_kind
from ...convert.trace import is_norm
from ...modules.neuron import QuantizedNeuron
from ...modules.quantized_layer import QuantizedLayer
from ...modules.quantized_norm import QuantizedBatchNorm
from .edges import Refuse
from .neurons import Part

FRAMEWORKS = ("torch", "spikingjelly", "snntorch")
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def nodes_of(model: nn.Module) -> dict[str, str]:
    """The modules that become nodes, each as neuron, weights, norm, pool or flatten.

    What else a model calls is seen by its operations.
    """
    hosts, found = Hosts(), dict[str, str]()
    for path, module in model.named_modules():
        if not any(not outer or path.startswith(f"{outer}.") for outer in found):
            kind = _kind(module, hosts)
            if kind is not None:
                found[path] = kind
    return found


def _kind(module: nn.Module, hosts: Hosts) -> str | None:
    known = hosts.neuron_kind(module)
    if isinstance(module, QuantizedNeuron):
        return "neuron"
    if known is not None:
        # A host may call its dropouts stateful; in eval mode they do nothing.
        return None if type(module).__name__ in ("Dropout", "Dropout2d") else "neuron"
    if isinstance(module, QuantizedLayer) or layer_kind(module, hosts) is not None:
        return "weights"
    if is_norm(module) and not any(module.children()):
        return "norm"
    if type(module).__module__.split(".")[0] not in FRAMEWORKS:
        return None
    if isinstance(module, POOLS):
        return "pool"
    return "flatten" if isinstance(module, nn.Flatten) else None


@torch.no_grad()
def weight_part(
    module: Any, norm: nn.Module | None, norm_path: str, step: tuple[int, ...], refuse: Refuse
) -> Part:
    """A convolution or linear layer with the weights that it computes with, a norm folded in."""
    if isinstance(module, QuantizedLayer):
        own = type(module).__module__.split(".")[0] != __name__.split(".")[0]
        obstacle = "has code of its own" if own else None
        if module.is_temporal:
            raise refuse(
                "has weights that change with the time step: NIR's are the same in every step. Use "
                "export_c."
            )
    else:
        kind = layer_kind(module, Hosts())
        obstacle = None if kind is None else kind.refusal
    if obstacle:
        raise refuse(f"{obstacle}: NIR needs its plain weights. Use a layer of torch as it is.")
    dimensions = module.weight.ndim - 2
    if getattr(module, "transposed", False) or dimensions not in (0, 1, 2):
        raise refuse(
            "has no node in NIR, which has Linear, Conv1d and Conv2d. Build the network of those, "
            "or use export_c."
        )
    follows = norm.layer if isinstance(norm, QuantizedBatchNorm) else None
    tied = getattr(module, "hands_scale_on", False) or getattr(module, "folded_norm", ())
    if follows is not (module if tied else None):
        raise refuse(
            "and its quantised norm do not stand side by side: NIR has no norms, and this one is "
            "written with the layer that it follows. Call one right behind the other."
        )
    levels, slope, bias = _scaled(module, norm)
    weight = levels * slope.view(-1, *[1] * (levels.ndim - 1))
    said, lost = _said(module, norm_path, slope)
    if not dimensions:
        plain = {"weight": _floats(weight)}
        if module.bias is None and norm is None:
            return Part("Linear", plain, said, lost)
        return Part("Affine", {**plain, "bias": _floats(bias)}, said, lost)
    values: dict[str, Any] = {
        "input_shape": step[1] if dimensions == 1 else step[1:],
        "weight": _floats(_ungrouped(weight, module.groups)),
        **_geometry(module, dimensions, refuse),
        "groups": 1,
        "bias": _floats(bias),
    }
    return Part(f"Conv{dimensions}d", values, said, lost)


def _scaled(module: Any, norm: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of a weight, the factor of each channel, and the bias, a norm included in both."""
    levels, scale = module.weight, None
    if isinstance(module, QuantizedLayer):
        levels, scale = module.quantized_weight()
    levels = _wide(levels)
    if isinstance(norm, QuantizedBatchNorm) and norm.rule.mode == "fold":
        slope = torch.ones(len(levels), dtype=torch.float64) if scale is None else _wide(scale)
        return levels, slope, _wide(module.present_bias())
    if isinstance(norm, QuantizedBatchNorm):
        # Its factors are those of sums over whole inputs.
        factors, step = norm.dyadic(), getattr(module.input_quantizer, "scale", 1.0)
        size = 2.0**-factors.shift
        return levels, _wide(factors.multiplier) * size / step, _wide(factors.offset) * size
    slope, shift = _affine(norm, len(levels))
    bias = torch.zeros_like(slope) if module.bias is None else _wide(module.bias)
    return levels, slope if scale is None else slope * _wide(scale), bias * slope + shift


def _affine(norm: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Slope and shift of an eval-mode norm, per channel."""
    slope = torch.ones(channels, dtype=torch.float64)
    if norm is None:
        return slope, torch.zeros_like(slope)
    slope = slope / (_wide(norm.running_var) + norm.eps).sqrt()
    if norm.weight is not None:
        slope = slope * _wide(norm.weight)
    shift = -_wide(norm.running_mean) * slope
    return slope, shift if norm.bias is None else shift + _wide(norm.bias)


def check_norm(norm: Any, refuse: Refuse) -> None:
    """Only torch's batch norms with running statistics are one factor and one shift per channel."""
    if isinstance(norm, QuantizedBatchNorm):
        return
    plain = type(norm).__module__.split(".")[0] in FRAMEWORKS
    if not plain or type(norm).__name__ not in ("BatchNorm1d", "BatchNorm2d"):
        raise refuse(
            "normalises in its own way: NIR has no norms, and only BatchNorm1d and BatchNorm2d "
            "fold into a layer. Use one of those, or leave the norm out and train again."
        )
    if norm.running_mean is None or norm.running_var is None:
        raise refuse(
            "normalises by the batch (track_running_stats=False): NIR has no norms, and without "
            "running statistics it does not fold. Use track_running_stats=True."
        )


def _said(module: Any, norm_path: str, slope: Tensor) -> tuple[dict[str, Any], str]:
    """The quantisers in plain values; weight = scale * level for each output channel."""
    said: dict[str, Any] = {
        "class": type(module).__name__,
        "weights": None,
        "input": None,
        "groups": getattr(module, "groups", 1),
        "folded_norm": norm_path or None,
    }
    if not isinstance(module, QuantizedLayer):
        return said, ""
    if module.weight_quantizer is not None:
        rule: Any = module.weight_quantizer.rule
        said["weights"] = rule.to_dict()
        said["stored_bits"] = rule.stored_bits
        said["scale"] = slope.tolist()
    if module.input_quantizer is None:
        return said, ""
    rule = module.input_quantizer.rule
    said["input"] = {**rule.to_dict(), "step": module.input_quantizer.scale}
    return said, f"reads its input as it comes instead of {rule}"


def _geometry(module: Any, dimensions: int, refuse: Refuse) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise refuse(
            f"has padding_mode={module.padding_mode!r}: convolutions of NIR pad with zeros. Use "
            "padding_mode='zeros'."
        )
    kernel, dilation, padding = module.kernel_size, module.dilation, module.padding
    if len(set(kernel)) > 1:
        raise refuse(
            f"has the kernel {tuple(kernel)}: NIR takes the first side for every side when it "
            "checks shapes, and refuses to read the file. Use a square kernel."
        )
    if padding == "valid":
        padding = (0,) * dimensions
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(length % 2 for length in total):
            raise refuse(
                "has padding='same' with an even kernel, which pads one side more than the "
                "other: convolutions of NIR pad both sides alike. Use an odd kernel."
            )
        padding = tuple(length // 2 for length in total)
    names = {"stride": module.stride, "padding": padding, "dilation": dilation}
    if dimensions == 1:
        return {name: int(value[0]) for name, value in names.items()}
    return {name: tuple(map(int, value)) for name, value in names.items()}


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The same convolution without groups: zeros between them.

    NIR's shape check and both hosts' importers refuse groups.
    """
    if groups == 1:
        return weight
    rows = weight.unflatten(0, (groups, -1))
    width = weight.shape[1]
    dense = weight.new_zeros(groups, rows.shape[1], groups * width, *weight.shape[2:])
    for group in range(groups):
        dense[group, :, group * width : (group + 1) * width] = rows[group]
    return dense.flatten(0, 1)


def pool_part(module: Any, step: tuple[int, ...], made: tuple[int, ...], refuse: Refuse) -> Part:
    """An average pool; an adaptive one where all its windows are alike."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        if any(size % out for size, out in zip(step[1:], made[-2:], strict=True)):
            raise refuse(
                f"turns {step[1:]} pixels into {made[-2:]}, by windows that differ: a pool of NIR "
                "has one window. Use sizes that divide."
            )
        kernel = stride = tuple(size // out for size, out in zip(step[1:], made[-2:], strict=True))
    else:
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        if any(_pair(module.padding)) or module.divisor_override is not None:
            raise refuse(
                f"has padding={module.padding}, divisor_override={module.divisor_override}: "
                "whether NIR's average counts padded pixels is not said. Pool without padding."
            )
    fits = tuple((s - k) // d + 1 for s, k, d in zip(step[1:], kernel, stride, strict=True))
    if fits != tuple(made[-2:]):
        raise refuse(
            f"turns {step[1:]} pixels into {tuple(made[-2:])} (ceil_mode): a pool of NIR leaves "
            "out what does not fill a window. Use ceil_mode=False."
        )
    values = {
        "kernel_size": np.array(kernel),
        "stride": np.array(stride),
        "padding": np.array((0, 0)),
    }
    return Part("AvgPool2d", values, {"class": type(module).__name__})


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _wide(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def _floats(values: Tensor) -> np.ndarray:
    return values.float().numpy()
