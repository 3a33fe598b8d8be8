"""What ``evaluate.py`` can change in a trained network, without training it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from trainer.files import rebuild
from trainer.problems import OptionError
from trainer.running import Sequence

import spquant_plugin as spq
from spquant_plugin.analysis.clipping.membranes import with_membrane
from spquant_plugin.modules.neuron import QuantizedNeuron

MEMBRANES = {"binary": spq.BinaryMembrane, "ternary": spq.TernaryMembrane}
ALL = "all of these"


@dataclasses.dataclass(frozen=True)
class Change:
    """One row: what is changed, all else is as it was trained."""

    name: str
    membrane: str | None = None
    spatial_gates: bool = True  # False switches them off
    channel_gates: bool = True
    calibrated: bool = False

    @property
    def gates_only(self) -> Change:
        """The same without all else that it changes."""
        return dataclasses.replace(self, membrane=None, calibrated=False)


def changes(
    membrane: str | None, *, no_spatial_gates: bool, no_channel_gates: bool, calibrate: int | None
) -> list[Change]:
    """One change for each switch, and all together where there are several."""
    found = []
    if membrane is not None:
        found.append(Change(f"{membrane} membranes", membrane=membrane))
    if no_spatial_gates:
        found.append(Change("no spatial gates", spatial_gates=False))
    if no_channel_gates:
        found.append(Change("no channel gates", channel_gates=False))
    if calibrate is not None:
        found.append(Change(f"calibrated on {calibrate} batches", calibrated=True))
    if len(found) > 1:
        whole = {
            "membrane": membrane,
            "spatial_gates": not no_spatial_gates,
            "channel_gates": not no_channel_gates,
            "calibrated": calibrate is not None,
        }
        found.append(Change(ALL, **whole))  # type: ignore[arg-type]
    return found


def check(saved: Mapping[str, Any], net: nn.Module, changes: Iterable[Change]) -> None:
    """Refuse a switch that has nothing to switch in this network."""
    what = f"the network is of stage {saved['stage']}"
    for change in changes:
        if change.membrane is not None and saved["config"] is None:
            raise OptionError(
                f"--membrane {change.membrane}: {what}, in full precision: must have quantised "
                "membranes. Pass the file of a later stage."
            )
        if change.membrane is not None:
            _check_membrane(net, change.membrane)
        for kind, kept, gates in (
            ("spatial", change.spatial_gates, any(map(has_spatial_gate, net.modules()))),
            ("channel", change.channel_gates, any(map(is_channel_gate, net.modules()))),
        ):
            if not kept and not gates:
                raise OptionError(
                    f"--no-{kind}-gates: {what} and has no {kind} gates: must have some to switch "
                    f"off. Leave --no-{kind}-gates out."
                )
        if change.calibrated and not any(map(has_statistics, net.modules())):
            raise OptionError(
                f"--calibrate: {saved['network']['name']} has no batch norm: must have statistics "
                "to measure. Leave --calibrate out."
            )


def _check_membrane(net: nn.Module, name: str) -> None:
    rules = [m.membrane for m in net.modules() if isinstance(m, QuantizedNeuron) and m.membrane]
    if all(isinstance(rule, MEMBRANES[name]) for rule in rules):
        told = f"stores {name} membranes already" if rules else "stores its membranes in float"
        raise OptionError(
            f"--membrane {name}: the network {told}: must store others to change them. Leave "
            "--membrane out."
        )


def changed(
    saved: Mapping[str, Any],
    change: Change,
    batches: Iterable[Tensor],
    device: torch.device | None = None,
) -> nn.Module:
    """The network with a change, on a device, by default the CPU.

    ``batches`` of training frames, on the same device, are for its calibration.
    """
    net = rebuild(_ungated(saved, change)).to(device)
    if change.membrane is not None:
        with_membrane(net, spq.SpQuantConfig(membrane=MEMBRANES[change.membrane]()))
    if change.calibrated:
        spq.calibrate(net, batches, forward=lambda net, frames: Sequence(net)(frames))
    return net.eval()


def _ungated(saved: Mapping[str, Any], change: Change) -> Mapping[str, Any]:
    """The file as if the network had been converted without the gates that are switched off.

    What belonged to them is left out of the state, and nothing else: ``rebuild`` refuses a state
    with a key too many or too few.
    """
    off: dict[str, None] = {}
    if not change.spatial_gates:
        off["spatial_gate"] = None
    if not change.channel_gates:
        off["channel_gate"] = None
    if not off:
        return saved
    config = spq.SpQuantConfig.from_dict(saved["config"])
    overrides = {
        selector: own and dataclasses.replace(own, **off)
        for selector, own in config.overrides.items()
    }
    config = dataclasses.replace(config, **off, overrides=overrides)
    gates = [path for path, m in rebuild(saved).named_modules() if is_channel_gate(m)]
    gone = tuple(f"{path}." for path in gates) if "channel_gate" in off else ()
    state = {key: value for key, value in saved["state"].items() if not key.startswith(gone)}
    return {**saved, "config": config.to_dict(), "state": state}


def is_gated(net: nn.Module) -> bool:
    """Whether any gate reads what neurons store."""
    return any(is_channel_gate(m) or has_spatial_gate(m) for m in net.modules())


def is_channel_gate(module: nn.Module) -> bool:
    return isinstance(module, spq.modules.ChannelGate)


def has_spatial_gate(module: nn.Module) -> bool:
    return getattr(module, "spatial_gate", None) is not None


def has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None
