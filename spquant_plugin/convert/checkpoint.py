"""Float checkpoints into converted models: everything fits, or nothing is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CheckpointWarning
from ..modules.gates import ChannelGate
from ..modules.neuron import QuantizedNeuron
from ..modules.quantized_layer import QuantizedLayer
from .hosts import require_model


@dataclass(frozen=True)
class LoadReport:
    """What a float checkpoint brought. True where it was loaded, false where nothing was.

    ``loaded`` are the keys that were copied, ``missing`` those that the model wants and the
    checkpoint lacks, ``unexpected`` the reverse, ``mismatched`` those that differ in shape or
    meaning; ``recomputed`` are the conversion's own keys, fitted anew to the loaded weights;
    ``kept`` those of gates, which stay as they are where the checkpoint has none.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        if self.fits:
            text = (
                f"loaded {len(self.loaded)} keys, fitted {len(self.recomputed)} keys of the "
                "conversion anew"
            )
            return f"{text}, kept {len(self.kept)} keys of gates" if self.kept else text
        parts = [
            f"{name}: {', '.join(keys)}"
            for name, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("different", self.mismatched),
            )
            if keys
        ]
        return (
            f"nothing was loaded, because the checkpoint does not fit ({'; '.join(parts)}). "
            "Every key of the float model must be there, and no other. Remove or rename keys, or "
            "load it into the float model first and convert that."
        )


def load_float_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load the state dict of the float model into its converted twin.

    Quantisers, default units and the bounds of learnable thresholds are then fitted anew. Where the
    keys do not fit, nothing is loaded: the report says why, and a warning repeats it.

    >>> import spquant_plugin as spq
    >>> from torch import nn
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = nn.Sequential(layer.Linear(2, 3), neuron.LIFNode(), layer.Linear(3, 2))
    >>> quantized = spq.convert(net, spq.presets.quant_snn())
    >>> print(spq.load_float_state_dict(quantized, net.state_dict()))
    loaded 4 keys, fitted 1 keys of the conversion anew
    """
    _check_arguments(model, state_dict)
    present = model.state_dict()
    report = _compare(model, present, state_dict)
    if not report.fits:
        report = replace(report, loaded=(), recomputed=(), kept=())
        warnings.warn(str(report), CheckpointWarning, stacklevel=2)
        return report
    _check_values(report.loaded, state_dict)
    before = {key: value.clone() for key, value in present.items()}
    try:
        with torch.no_grad():
            for key in report.loaded:
                # A threshold per channel starts from the one that the layer had.
                present[key].copy_(state_dict[key].expand_as(present[key]))
        _refit(model, set(report.loaded))
    except Exception:
        with torch.no_grad():
            for key, value in before.items():
                present[key].copy_(value)
        raise
    return report


def _check_arguments(model: object, state_dict: object) -> None:
    require_model(model)
    if isinstance(state_dict, Mapping) and all(isinstance(v, Tensor) for v in state_dict.values()):
        return
    hint = "Pass torch.load(path), or the entry of it that holds the weights."
    if isinstance(state_dict, Mapping):
        odd = next(key for key, value in state_dict.items() if not isinstance(value, Tensor))
        raise CheckpointError(
            f"state_dict[{odd!r}] = {type(state_dict[odd]).__name__}: every value must be a "
            f"tensor. {hint}"
        )
    raise CheckpointError(
        f"state_dict = {type(state_dict).__name__}: must map keys to tensors. {hint}"
    )


def _compare(
    model: nn.Module, present: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> LoadReport:
    added, widened = _keys_of_conversion(model)
    gates = _keys_of_gates(model)
    wanted = [key for key in present if key not in added | gates]
    both = [key for key in present if key in given and key not in (added - widened)]
    return LoadReport(
        loaded=tuple(both),
        missing=tuple(key for key in wanted if key not in given),
        unexpected=tuple(key for key in given if key not in both),
        mismatched=(
            *(
                f"{key} {tuple(given[key].shape)} for {tuple(present[key].shape)}"
                for key in both
                if given[key].shape != present[key].shape
                and not (key in widened and given[key].numel() == 1)
            ),
            *(
                # snnTorch keeps the number of its reset mechanism here, and never reads it again.
                f"{key} {int(given[key])} for {int(present[key])}"
                for key in both
                if key.endswith("reset_mechanism_val") and int(given[key]) != int(present[key])
            ),
        ),
        recomputed=tuple(key for key in present if key in added and key not in both),
        kept=tuple(key for key in present if key in gates and key not in both),
    )


def _keys_of_gates(model: nn.Module) -> set[str]:
    """Keys that a float model has only where its author wrote the gates into it."""
    return {
        f"{path}.{key}" if path else key
        for path, module in model.named_modules()
        if isinstance(module, ChannelGate)
        for key in module.state_dict()
    }


def _keys_of_conversion(model: nn.Module) -> tuple[set[str], set[str]]:
    """Keys that only the converted model has, and among them thresholds that a float model may
    have as well (snnTorch's are in its state dict, SpikingJelly's are plain numbers)."""
    added, widened = set(), set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, QuantizedNeuron):
            ours = ("membrane_unit", "membrane_scale", "threshold_bounds")
            added |= {prefix + key for key in ours}
            if module.learnable_threshold is not None:
                widened.add(prefix + module.threshold_name)
        elif isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
            own = module.weight_quantizer.state_dict()
            added |= {f"{prefix}weight_quantizer.{key}" for key in own}
    return added | widened, widened


def _check_values(keys: tuple[str, ...], given: Mapping[str, Tensor]) -> None:
    for key in keys:
        values = given[key]
        if values.is_floating_point() and not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            raise CheckpointError(
                f"{key} holds {bad} NaN or infinite values of {values.numel()}: every value must "
                "be finite. Nothing was loaded; take another checkpoint."
            )


def _refit(model: nn.Module, loaded: set[str]) -> None:
    for path, module in model.named_modules():
        if isinstance(module, QuantizedNeuron) and module.learnable_threshold is not None:
            key = f"{path}.{module.threshold_name}" if path else module.threshold_name
            if key not in loaded:  # SpikingJelly's threshold is no part of a float checkpoint
                module.restore_threshold()
        if isinstance(module, QuantizedNeuron | QuantizedLayer):
            module.refit()
        if isinstance(module, QuantizedNeuron):
            module.check()
