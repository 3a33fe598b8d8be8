"""What a model is now: every converted module with its present numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..modules.gates import ChannelGate
from ..modules.mint import scale_words
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from ..modules.quantized_norm import QuantizedBatchNorm
from ..table import no_such_row, render
from .hosts import require_model


@dataclass(frozen=True)
class StatusRow:
    """One converted module."""

    path: str
    type: str
    bits: str
    details: str


@dataclass(frozen=True)
class Status:
    """Every converted module of a model; empty (and false) for a float model."""

    rows: tuple[StatusRow, ...]

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[StatusRow]:
        return iter(self.rows)

    def __getitem__(self, path: str) -> StatusRow:
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError(no_such_row(path, [row.path for row in self.rows]))

    def __str__(self) -> str:
        if not self.rows:
            return "no converted modules"
        lines = [(r.path or "(model)", r.type, r.bits, r.details) for r in self.rows]
        return render(("path", "type", "bits", "now"), lines)

    __repr__ = __str__


def status(model: nn.Module) -> Status:
    """List the converted modules of a model with their present threshold, unit and weights.

    >>> import spquant_plugin as spq
    >>> from spquant_plugin.spikingjelly import neuron
    >>> print(spq.status(neuron.TernaryMembraneLIFNode()))
    path     type                    bits      now
    -------  ----------------------  --------  ---------------------------------
    (model)  TernaryMembraneLIFNode  2 (1.58)  levels -1..1, unit 1, threshold 1
    """
    rows = []
    paths = {id(module): path for path, module in require_model(model).named_modules()}
    for path, module in model.named_modules():
        if isinstance(module, QuantizedNeuron):
            rows.append(_neuron_row(path, module))
        elif isinstance(module, QuantizedLayer):
            rows.append(_layer_row(path, module))
        elif isinstance(module, ChannelGate):
            rows.append(_gate_row(path, module))
        elif isinstance(module, QuantizedBatchNorm):
            rows.append(_norm_row(path, module, paths.get(id(module.layer))))
    return Status(tuple(rows))


def _neuron_row(path: str, neuron: QuantizedNeuron) -> StatusRow:
    rule, parts, bits = neuron.membrane, [], "32"
    if rule is not None:
        bits = f"{rule.stored_bits} ({rule.information_bits:.3g})"
        unit = float(neuron.membrane_unit)  # type: ignore[arg-type]
        parts = [f"levels {rule.lowest}..{rule.highest}", f"unit {unit:.4g}"]
        if neuron.follows_mint:
            parts[-1] += f" of {scale_words(neuron)}"
    threshold = neuron.threshold_value(torch.zeros(1, 1))
    values = torch.as_tensor(threshold).detach()
    low, high = float(values.min()), float(values.max())
    parts.append(f"threshold {low:.4g}" + (f"..{high:.4g}" if high > low else ""))
    if neuron.learnable_threshold is not None:
        each = f", {values.numel()} channels" if neuron.learnable_threshold.per_channel else ""
        parts.append(f"learns ({neuron.learnable_threshold.gradient}{each})")
    if "syn" in getattr(neuron, "states", ()):
        parts.append("syn float32")
    if neuron.spatial_gate is not None:
        gate = neuron.spatial_gate
        parts.append(f"masks {gate.sparsity:.0%} of the pixels ({gate.score})")
    return StatusRow(path, type(neuron).__name__, bits, ", ".join(parts))


def _gate_row(path: str, gate: ChannelGate) -> StatusRow:
    closed = gate.closed_fraction()
    now = "not run yet" if closed is None else f"{float(closed.detach()):.1%} closed"
    parts = [
        f"{gate.in_channels} -> {gate.out_channels} channels",
        f"{gate.rule.score} of the {gate.source} >= {gate.rule.threshold:g}",
        now,
    ]
    bits = str(gate.weight_quantizer.rule.stored_bits)
    return StatusRow(path, type(gate).__name__, bits, ", ".join(parts))


def _norm_row(path: str, norm: QuantizedBatchNorm, layer: str | None) -> StatusRow:
    parts = [norm.rule.mode, f"behind {type(norm.layer).__name__ if layer is None else layer}"]
    if norm.rule.mode == "fold":
        parts = [f"folded into {type(norm.layer).__name__ if layer is None else layer}"]
    bad = sum(int((~t.isfinite()).sum()) for t in (*norm.parameters(), *norm.buffers()))
    if bad:
        parts.append(f"{bad} NaN or infinite values")
    elif norm.rule.mode != "fold":
        multiplier, offset, shift = norm.dyadic()
        for name, values in (("multipliers", multiplier), ("offsets", offset)):
            parts.append(f"{name} {int(values.min())}..{int(values.max())}")
        parts.append(f"over 2^{shift}")
    bits = "" if norm.rule.bits is None else str(norm.rule.bits)
    return StatusRow(path, type(norm).__name__, bits, ", ".join(parts))


@torch.no_grad()
def _layer_row(path: str, layer: QuantizedLayer) -> StatusRow:
    quantizer, parts, bits = layer.weight_quantizer, [], "32"
    if quantizer is not None:
        bits = str(quantizer.stored_bits)
        was_training = quantizer.training
        quantizer.eval()  # reading must not move alpha
        weight = layer.effective_weight() if not layer.is_temporal else None
        if weight is None:  # where no input has told the number of steps yet, of one step
            weight, _ = layer.step_weights(layer.timesteps or 1)
        quantizer.train(was_training)
        zeros = float((weight == 0).double().mean())
        parts = [str(quantizer.rule), f"{zeros:.1%} zeros"]
        bad = int((~layer.weight.isfinite()).sum())
        if bad:
            parts.append(f"{bad} NaN or infinite weights")
        if not all(bool(own.isfinite().all()) for own in quantizer.parameters()):
            parts.append("its scale is NaN or infinite")
    if layer.input_quantizer is not None:
        parts.append(f"input {layer.input_quantizer.rule}")
    return StatusRow(path, type(layer).__name__, bits, ", ".join(parts))
