"""From a stage's name to its configuration, and to the network that it starts from."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import spquant_plugin as spq
from spquant_plugin.errors import CheckpointError, CheckpointWarning

from .checkpoint import seed_all
from .files import create, described, read_network, read_tensors, rebuild
from .problems import OptionError
from .running import Sequence, first_call
from .tasks import IMAGES, Task

Saved = Mapping[str, Any]


def config_of(options: argparse.Namespace, stage: str) -> spq.SpQuantConfig | None:
    """What a stage asks for: all that the listed stages up to it bring, and nothing of later ones.

    >>> options = argparse.Namespace(
    ...     preset="spquant_snn", stages=("fp", "quant", "adaptive"), weight_bits=None,
    ...     timesteps=4, data="motion")
    >>> config_of(options, "fp"), config_of(options, "quant").threshold
    (None, None)
    >>> config = config_of(options, "adaptive")
    >>> config.threshold.gradient, config.channel_gate
    ('gpw', None)
    """
    if stage == "fp":
        return None
    reached = options.stages[: options.stages.index(stage) + 1]
    fields: dict[str, Any] = {}
    if options.data in IMAGES:
        fields["input"] = spq.UniformInput(8, 0.0, 1.0)
    if "spquant" in reached:
        fields |= {"spatial_gate": spq.SpatialGate(), "channel_gate": spq.ChannelGate()}
    if "adaptive" in reached:
        fields["threshold"] = spq.LearnableThreshold()
    if options.preset == "tawq":
        return spq.presets.tawq(options.timesteps, **fields)
    # Gates are added by the stage, whatever the preset is called.
    name = "quant_snn" if options.preset == "spquant_snn" else options.preset
    bits = () if options.weight_bits is None else (options.weight_bits,)
    return getattr(spq.presets, name)(*bits, **fields)


def network_of(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """How ``spq.models.create`` makes the float network of a run."""
    _, channels, *size = task.shape
    return {
        "name": options.model,
        "host": options.host,
        "in_channels": channels,
        "size": size,
        "num_classes": len(task.classes),
        "width": options.width,
    }


class Builder:
    """Makes the networks that the stages of a run start from."""

    def __init__(self, options: argparse.Namespace, task: Task) -> None:
        self.options, self.task = options, task
        self.network = network_of(options, task)
        self.sample = torch.zeros(task.shape).unsqueeze(1)  # one recording without events
        self.init = None if options.init is None else self._initial(options.init)

    def float_network(self) -> nn.Module:
        """With the new weights that the run's seed gives."""
        seed_all(self.options.seed)
        return create(self.network)

    def structure(self, stage: str) -> nn.Module:
        """A stage's network with new weights, into which its state can be loaded."""
        return self._converted(self.float_network(), config_of(self.options, stage), stage)

    def _converted(self, net: nn.Module, config: spq.SpQuantConfig | None, stage: str) -> nn.Module:
        if config is None:
            return net
        seed_all(self.options.seed, 1 + self.options.stages.index(stage))  # gates draw theirs
        return spq.convert(net, config, sample=first_call(net, self.sample))

    def start(self, stage: str, previous: Saved | None) -> tuple[nn.Module, str]:
        """The network that a stage starts from, on the task's device, and where it comes from.

        ``previous`` is the network file of the stage before; None stands for ``--init``, or new
        weights. A network in full precision is converted, and its batch norms are calibrated.
        """
        previous = previous or self.init
        config = config_of(self.options, stage)
        if previous is not None and previous["config"] is not None:
            return self._grown(stage, previous)
        net = self.float_network() if previous is None else rebuild(previous)
        source = "new weights" if previous is None else f"the network of {previous['stage']}"
        device = self.task.processes.device
        net = self._converted(net, config, stage).to(device)
        if config is None or not _has_norms(net):
            return net, source
        spq.calibrate(net, self.task.calibration(), forward=run)
        return net, f"{source}, converted and calibrated"

    def closed_before(self, stage: str) -> bool:
        """Whether an earlier stage has closed channels that this one starts with."""
        number = self.options.stages.index(stage)
        if number:
            earlier = config_of(self.options, self.options.stages[number - 1])
            return earlier is not None and earlier.channel_gate is not None
        held = None if self.init is None else self.init["config"]
        return held is not None and held["channel_gate"] is not None

    def _grown(self, stage: str, previous: Saved) -> tuple[nn.Module, str]:
        """A quantised network with what the stage adds to it."""
        net = self.structure(stage)
        state = previous["state"]
        foreign = [key for key in state if key not in net.state_dict()]
        if foreign:
            raise CheckpointError(
                f"stage {stage} starts from a network of stage {previous['stage']}, which holds "
                f"{', '.join(foreign)}: every key must have a place in the stage's own network. "
                "Start from a network of the same preset, with no more than the stage has."
            )
        try:
            new = net.load_state_dict(state, strict=False).missing_keys
        except RuntimeError as error:
            raise CheckpointError(
                f"stage {stage} starts from a network of stage {previous['stage']}, which does not "
                f"fit: {error}. Pass the --model, --width and --data that it was trained with."
            ) from error
        odd = [key for key in new if not _may_be_new(net, key)]
        if odd:
            raise CheckpointError(
                f"stage {stage} starts from a network of stage {previous['stage']}, which lacks "
                f"{', '.join(odd)}: only gates and thresholds may be new. Start from full "
                "precision, or from a network of the same preset."
            )
        source = f"the network of {previous['stage']}; new are {len(new)} keys"
        if new:
            more = f" and {len(new) - 8} more" if len(new) > 8 else ""
            source += f" ({', '.join(new[:8])}{more})"
        return net.to(self.task.processes.device), source

    def _initial(self, path: Path) -> Saved:
        """``--init``: a network file, or the state dict of the float network."""
        held = read_tensors(path)
        if isinstance(held, dict) and "format" in held:
            saved = read_network(path)
            different = [
                f"{key} {value!r} for {self.network[key]!r}"
                for key, value in saved["network"].items()
                if self.network.get(key) != value
            ]
            if different:
                raise CheckpointError(
                    f"--init {path}: its network must be the one to train. Different: "
                    f"{', '.join(different)}. Change the options or the file."
                )
            check_splits(path, saved["data"], self.task.record)
            if self.options.stages[0] == "fp" and saved["config"] is not None:
                raise OptionError(
                    f"--init {path} with the stage fp: must be a network in full precision, and is "
                    f"one of stage {saved['stage']}. Leave fp out of --stages."
                )
            return saved
        net = self.float_network()
        if not isinstance(held, dict):
            raise CheckpointError(
                f"--init {path}: holds {described(held)}: must be a network file of train.py, or "
                "the state dict of the float network. Pass another file."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # becomes the error below
            try:
                report = spq.load_float_state_dict(net, held)
            except CheckpointError as error:
                raise CheckpointError(f"--init {path}: {error}") from error
        if not report:
            raise CheckpointError(f"--init {path}: {report}")
        return {
            "stage": path.name,
            "config": None,
            "network": self.network,
            "state": net.state_dict(),
        }


def check_splits(path: Path, data: Saved, own: Saved) -> None:
    """Raise ``OptionError`` where a file's network has learned what this run evaluates on.

    The seed draws which recordings train, and so do the shares of the other splits.
    """
    if data["name"] != own["name"]:
        return
    parts = [{"seed": each["seed"], **each["options"]} for each in (data, own)]
    for name in ("seed", "validation", "test"):
        theirs, ours = (_option(name, part.get(name)) for part in parts)
        if theirs != ours:
            raise OptionError(
                f"--init {path}: was trained with {theirs}, and this run has {ours}: must be the "
                f"same, or recordings of {own['name']} that the network has learned would be "
                f"evaluated. Use {theirs} here too."
            )


def _option(name: str, value: Any) -> str:
    if name == "seed":
        return f"--seed {value}"
    return f"no --data-option {name}" if value is None else f"--data-option {name}={value}"


def run(net: nn.Module, frames: Tensor) -> Tensor:
    """All steps of a network of either host, from rest."""
    return Sequence(net)(frames)


def _has_norms(net: nn.Module) -> bool:
    return any(key.endswith("running_mean") for key in net.state_dict())


def _may_be_new(net: nn.Module, key: str) -> bool:
    """Whether a key belongs to a gate, or to a threshold that has begun to learn."""
    path, _, name = key.rpartition(".")
    owner: Any = net.get_submodule(path)
    learns = getattr(owner, "learnable_threshold", None) is not None
    return ".channel_gate" in f".{path}" or (
        learns and name in ("threshold_bounds", owner.threshold_name)
    )
