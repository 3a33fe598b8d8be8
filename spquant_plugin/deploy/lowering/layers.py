"""Weight layers, normalisations and gates of a trained model, as operations on whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import DeployError
from ...modules.quantized_layer import QuantizedLayer
from ...modules.quantized_norm import QuantizedBatchNorm
from ...modules.weight_quantizer import DyadicQuantizer
from ..graph import Add, Convolution, Dense, Node
from .draft import Draft
from .symbol import Dyadic, Step, Symbol
from .temporal import weight_of_step
from .windows import windows

INT8 = 127
# A weight beyond int8 is split into two layers, high * SPLIT + low.
SPLIT = 128


def whole_weight(layer: QuantizedLayer) -> tuple[Tensor, Tensor, Tensor | None]:
    """Whole numbers (int64), their unit per output channel (powers of two), and the float scale."""
    levels, scale = layer.quantized_weight()
    quantizer = layer.weight_quantizer
    rows = levels.detach().cpu().double()
    unit = torch.ones(rows.shape[0], dtype=torch.float64)
    if isinstance(quantizer, DyadicQuantizer):
        unit = unit * quantizer.alpha.detach().cpu().double() / quantizer.resolution
    whole = rows / unit.view(-1, *[1] * (rows.ndim - 1))
    if not torch.equal(whole, whole.round()):
        raise DeployError("its quantised weight holds fractions of a level: must be whole numbers.")
    return whole.to(torch.int64), unit, None if scale is None else scale.detach()


def lower_layer(draft: Draft, path: str, layer: Any, x: Symbol) -> Symbol:
    """Sums of a weight layer; its scale and bias follow as float steps."""
    _check_layer(layer, x)
    temporal = layer.is_temporal
    whole, unit, scale = weight_of_step(draft, layer) if temporal else whole_weight(layer)
    node = _sums(draft, path, layer, whole, x)
    sums = x.but(node=node.name, shape=node.shape, unit=x.unit[:1] * unit, analogue=False)
    if getattr(layer, "hands_scale_on", False):
        return sums  # the normalisation behind it knows the scale and the bias
    steps: list[Step] = []
    step = None if layer.input_quantizer is None else layer.input_quantizer.scale
    if scale is not None:
        steps.append(("multiply", scale if step is None else scale * step))
    elif step is not None:
        steps.append(("multiply", layer.weight.new_tensor(step)))
    bias = layer.present_bias()
    if bias is not None:
        steps.append(("add", bias.detach().clone()))
    return sums.but(steps=tuple(steps))


def _check_layer(layer: Any, x: Symbol) -> None:
    supported = (nn.Conv1d, nn.Conv2d, nn.Linear)
    if not isinstance(layer, QuantizedLayer) or layer.weight_quantizer is None:
        raise DeployError(
            "its weights are float: an integer network needs quantised ones, at the edges too. "
            "Convert with weights=... (and edge_weights=spq.UniformWeights(8))."
        )
    if not isinstance(layer, supported):
        raise DeployError(
            f"{type(layer).__name__} cannot be lowered: supported are Conv1d, Conv2d and Linear. "
            "Replace it."
        )
    if x.analogue and layer.input_quantizer is None:
        raise DeployError(
            "it reads the raw input unquantised, and another layer reads it quantised: all must "
            "agree. Convert both with the same input=spq.UniformInput(...)."
        )
    if not x.analogue and (not x.exact or not x.uniform):
        raise DeployError(
            "it reads a float current: must read spikes, pooled spikes or the quantised input. Put "
            "a neuron in front of it, and pools behind neurons."
        )
    if layer.input_quantizer is not None and not x.analogue:
        raise DeployError(
            "it quantises an input that the network has changed before: must read the raw input. "
            "Move what stands before it behind the first neuron."
        )


def _sums(draft: Draft, path: str, layer: Any, whole: Tensor, x: Symbol) -> Node:
    """One node, or two that are added where a weight needs more than 8 bits."""
    if int(whole.abs().max()) <= INT8:
        return draft.add(("layer", path, x.node), draft.fitting(_layer(path, layer, whole, x)))
    low = (whole + SPLIT // 2) % SPLIT - SPLIT // 2
    parts = [
        draft.add((name, path, x.node), _layer(f"{path} ({name})", layer, part, x))
        for name, part in (("high", (whole - low) // SPLIT), ("low", low))
    ]
    factors = torch.tensor([SPLIT], dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    both = Add(
        name=path,
        inputs=(parts[0].name, parts[1].name),
        shape=parts[0].shape,
        low=0,
        high=0,
        factors=factors,
    )
    return draft.add(("layer", path, x.node), draft.fitting(both))


def _layer(path: str, layer: Any, whole: Tensor, x: Symbol) -> Node:
    bits = layer.weight_quantizer.stored_bits
    named: dict[str, Any] = {"name": path, "inputs": (x.node,), "low": 0, "high": 0, "bits": bits}
    weight = whole.to(torch.int8)
    if isinstance(layer, nn.Linear):
        if len(x.shape) != 1:
            raise DeployError(
                f"it is applied to each row of {x.shape}: must read one vector per sample. Flatten "
                "its input, or use a Conv1d with a kernel of 1 over [C, L] in place of [L, C]."
            )
        return Dense(shape=(weight.shape[0],), weight=weight, **named)
    if layer.padding_mode != "zeros":
        raise DeployError(f"its padding_mode is {layer.padding_mode!r}: must be 'zeros'.")
    padding = _padding(layer)
    space = windows(x.shape[1:], layer.kernel_size, layer.stride, padding, layer.dilation)
    return Convolution(
        shape=(weight.shape[0], *space),
        weight=weight,
        stride=tuple(layer.stride),
        padding=padding,
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        **named,
    )


def _padding(layer: Any) -> tuple[int, ...]:
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(side % 2 for side in reach):
        raise DeployError(
            "its padding='same' is uneven for an even kernel: must be the same on both sides. Use "
            "an odd kernel or a number."
        )
    return tuple(side // 2 for side in reach)


# --- normalisation ------------------------------------------------------------------------------


def lower_norm(path: str, norm: Any, x: Symbol) -> Symbol:
    """A batch norm in eval mode: float steps, or whole numbers where its factors are dyadic."""
    fresh = x.gate is None and x.added is None and x.over_time is None and not x.analogue
    if not fresh or x.reads != "value":
        raise DeployError("it normalises a gated value or a sum: must follow one weight layer.")
    if norm.num_features != x.shape[0]:
        raise DeployError(
            f"it normalises {norm.num_features} channels of a value of shape {x.shape}: must be "
            "the channels. Flatten behind the neuron."
        )
    if isinstance(norm, QuantizedBatchNorm):
        return x if norm.rule.mode == "fold" else _dyadic(path, norm, x)
    if norm.running_mean is None or norm.running_var is None:
        raise DeployError(
            "it has no running statistics, so its factors depend on the batch: must be fixed. Use "
            "track_running_stats=True."
        )
    kept = [
        None if part is None else part.detach().clone()
        for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    ]
    return x.but(steps=(*x.steps, ("norm", *kept, norm.eps)), dyadic=None)


def _dyadic(path: str, norm: Any, x: Symbol) -> Symbol:
    if not x.exact:
        raise DeployError(
            "its dyadic factors belong to the sums of one quantised layer: must follow it at once."
        )
    multiplier, offset, shift = norm.dyadic()
    dtype = norm.running_mean.dtype
    steps = (
        ("multiply", multiplier.to(dtype)),
        ("add", offset.to(dtype)),
        ("multiply", torch.tensor(2.0**-shift, dtype=dtype, device=offset.device)),
    )
    return x.but(steps=steps, dyadic=Dyadic(path, multiplier.cpu(), offset.cpu(), shift))
