r"""From layers to energy, latency and area.

.. math::

    E &= \sum_l T_l\, \frac{PE_l}{M_l}\, H_l W_l\, e_l g_l \\
    L &= \frac{26}{f} \Bigl(T_{last}\, g_{last} N_{last} +
         \sum_{l < last} T_l \lfloor 0.75\, g_l N_l \rfloor\Bigr) \\
    A &= \sum_k a_{tile}(k) \Bigl\lceil \tfrac 1P \textstyle\sum_{l: k_l = k} PE_l \Bigr\rceil +
         0.7391 \sum_l (b^{in}_l C^{in}_l H^{in}_l W^{in}_l + b^u_l C_l H_l W_l)

with :math:`N_l = C_l H_l W_l` outputs, bits :math:`b`, :math:`g_l` the share that gates leave, and
:math:`M_l` weight matrices, each with PEs of its own, of which a step drives one. :math:`M_l` is 1,
and T where weights change with the time step: programming cells anew in each step would save the
area, but writing them has no place in the model, and wears resistive cells out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ...errors import AnalysisError
from .crossbar import BIT_UM2, NEURON_BITS, Crossbar
from .layer import Layer
from .reading import Factors, read_layers
from .report import HardwareReport, HardwareRow

OVERLAP = 0.75  # of its outputs, after which the next layer starts
ONE_STEP = "its weights change with the time step; the public tool knows one matrix"
COUNTED_OUTPUTS = 5  # layers whose outputs the public tool gives an area


def estimate_layers(
    layers: Iterable[Layer],
    timesteps: int,
    crossbar: Crossbar | None = None,
    compat: bool = False,
    *,
    model: str = "layers",
) -> HardwareReport:
    """Estimate a chain of layers, given in the order in which they are computed.

    ``compat=True`` gives what the public tool gives: it knows square convolutions of one kernel
    size, and neither bits nor rates. What it cannot take becomes a row with the reason.

    >>> net = [Layer("conv", 2, 64, 16, 16, weight_bits=2, membrane_bits=2)]
    >>> report = estimate_layers([*net, Layer.linear("fc", 64 * 256, 10, weight_bits=8)], 4)
    >>> report.pes, report.tiles, report["fc"].pes
    (514, 65, 512)
    """
    given = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    given = list(given)
    for position, layer in enumerate(given, 1):
        if not isinstance(layer, Layer):
            raise AnalysisError(
                f"estimate_layers: layer {position} is {type(layer).__name__}: each must be a "
                "hardware.Layer. Make one, or pass a model to hardware.estimate."
            )
    return _report(given, _steps(timesteps), _crossbar(crossbar), _flag("compat", compat), model)


def estimate(
    model: nn.Module,
    sample: Any,
    *,
    timesteps: int | None = None,
    crossbar: Crossbar | None = None,
    compat: bool = False,
    spike_rates: Factors = False,
    gates: Factors = False,
) -> HardwareReport:
    """Estimate a float or converted network of either host, as ``spq.analyze`` reads it.

    A copy at rest runs on ``sample``; with ``timesteps`` once for each of its steps. Weights have
    the bits of their quantiser (32 for a float), neurons those of their stored membranes.

    ``spike_rates`` True takes each layer's share of nonzero inputs on this very sample, ``gates``
    True the share of accumulates that gates leave it; a dictionary gives shares by path instead,
    and other layers have 1. Without them all inputs are taken to be spikes, and all gates open.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(64, 32), neuron.LIFNode())
    >>> report = spq.analysis.hardware.estimate(net, torch.ones(1, 64))
    >>> report["0"].columns, report.pes
    (32, 16)
    """
    own, compat = _crossbar(crossbar), _flag("compat", compat)
    items, steps = read_layers(model, sample, timesteps, spike_rates, gates)
    return _report(items, steps, own, compat, type(model).__name__)


def _crossbar(crossbar: object) -> Crossbar:
    if crossbar is None:
        return Crossbar()
    if not isinstance(crossbar, Crossbar):
        raise AnalysisError(
            f"crossbar = {crossbar!r}: must be a hardware.Crossbar. Pass Crossbar(64, 'rram'), for "
            "example, or leave it out."
        )
    return crossbar


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise AnalysisError(f"{name} = {value!r}: must be True or False. Pass one of them.")
    return value


def _steps(timesteps: object) -> int:
    if not isinstance(timesteps, int) or isinstance(timesteps, bool) or timesteps < 1:
        raise AnalysisError(
            f"timesteps = {timesteps!r}: must be a whole number above 0. Pass the number of time "
            "steps that the network takes for one sample."
        )
    return timesteps


def _report(
    items: Sequence[Layer | HardwareRow], steps: int, own: Crossbar, compat: bool, model: str
) -> HardwareReport:
    if compat:
        items = _as_published(items)
    layers = [item for item in items if isinstance(item, Layer)]
    if not layers:
        reasons = "; ".join(f"{item.path or '(model)'}: {item.note}" for item in items)
        raise AnalysisError(
            f"{model}: holds no layer that a crossbar can take ({reasons or 'it holds none'}): "
            "there must be at least one. Pass convolutions or linear layers."
        )
    pes = [_pes(layer, own) for layer in layers]
    by_kernel: Counter[int] = Counter()
    for layer, count in zip(layers, pes, strict=True):
        by_kernel[layer.positions] += count
    tiles = {k: math.ceil(count / own.pes_per_tile) for k, count in by_kernel.items()}
    # Tiles are shared, so that a PE has the area of its share of all tiles of its kind.
    each = {k: tiles[k] * own.tile_um2(k) / count for k, count in by_kernel.items()}
    mapped = []
    for place, (layer, count) in enumerate(zip(layers, pes, strict=True)):
        row = _row(layer, count, steps, own, place == len(layers) - 1)
        stored = row.input_bits * layer.inputs
        if not compat or place < COUNTED_OUTPUTS:
            stored += row.membrane_bits * layer.outputs
        area = count * each[layer.positions] + BIT_UM2 * stored
        mapped.append(replace(row, area_um2=area))
    rest = iter(mapped)
    rows = tuple(next(rest) if isinstance(item, Layer) else item for item in items)
    return HardwareReport(model, own, steps, compat, sum(tiles.values()), rows)


def _pes(layer: Layer, own: Crossbar) -> int:
    """PEs of all matrices that the layer holds."""
    columns = 1 if layer.weight_bits is None else own.columns(layer.weight_bits)
    each = own.pes(layer.in_channels, layer.out_channels, layer.groups, columns)
    return layer.matrices * each


def _row(layer: Layer, pes: int, timesteps: int, own: Crossbar, last: bool) -> HardwareRow:
    """A row without its area, which depends on the other layers."""
    steps = timesteps if layer.steps is None else layer.steps
    driven = pes // layer.matrices  # the other matrices rest
    cycles = steps * driven * math.prod(layer.out_size) * layer.gate_factor
    outputs = layer.outputs * layer.gate_factor
    waits = outputs if last else math.floor(OVERLAP * outputs)
    return HardwareRow(
        layer.path,
        layer.type,
        mapped=True,
        pes=pes,
        columns=1 if layer.weight_bits is None else own.columns(layer.weight_bits),
        weight_bits=layer.weight_bits,
        matrices=layer.matrices,
        input_bits=own.neuron_bits if layer.input_bits is None else layer.input_bits,
        membrane_bits=own.neuron_bits if layer.membrane_bits is None else layer.membrane_bits,
        spike_rate=layer.spike_rate,
        gate_factor=layer.gate_factor,
        steps=steps,
        macs=steps * layer.macs,
        energy_pj=cycles * own.cycle_pj(layer.positions, layer.spike_rate),
        latency_ns=steps * waits * own.output_ns,
        note=layer.note,
    )


def _as_published(items: Sequence[Layer | HardwareRow]) -> list[Layer | HardwareRow]:
    """The layers as the public tool sees them, and reasons for those that it does not."""
    kernel: tuple[int, ...] | None = None
    seen: list[Layer | HardwareRow] = []
    for item in items:
        if isinstance(item, HardwareRow):
            seen.append(item)
            continue
        reason = ""
        if len(item.kernel) != 2 or item.kernel[0] != item.kernel[1]:
            reason = "the public tool takes square convolutions only"
        elif item.groups > 1:
            reason = "the public tool knows no groups"
        elif kernel not in (None, item.kernel):
            reason = (
                f"the public tool takes one kernel size, here that of the first layer: {kernel}"
            )
        if reason:
            seen.append(HardwareRow(item.path, item.type, note=reason))
            continue
        kernel = item.kernel
        bits: Mapping[str, Any] = {"membrane_bits": NEURON_BITS, "input_bits": NEURON_BITS}
        dense: Mapping[str, Any] = {"spike_rate": 1.0, "gate_factor": 1.0, "steps": None}
        note = ONE_STEP if item.matrices > 1 else item.note
        one: Mapping[str, Any] = {"weight_bits": None, "matrices": 1, "note": note}
        seen.append(replace(item, **one, **bits, **dense))
    return seen
