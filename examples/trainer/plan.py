"""All stages built before the first one trains: what cannot work fails before the first step."""

from __future__ import annotations

import argparse

import torch
from torch import nn

import spquant_plugin as spq
from spquant_plugin.errors import SpQuantError

from .evaluation import has_gates
from .problems import OptionError
from .running import Sequence
from .stages import Builder, config_of
from .stepping import gate_schedule
from .tasks import Task


def total_steps(options: argparse.Namespace, task: Task, stage: str) -> int:
    """Steps of the optimizer in a stage."""
    steps = options.epochs[options.stages.index(stage)] * task.steps_per_epoch
    return steps if options.max_steps is None else min(steps, options.max_steps)


def distils(options: argparse.Namespace, stage: str) -> bool:
    """Whether a stage learns from the network in full precision, as MD-SNN does."""
    return options.preset == "md_snn" and stage != "fp"


def try_stages(options: argparse.Namespace, task: Task, builder: Builder) -> list[str]:
    """Build every stage's network, and what trains it; lines that say what the run will do."""
    lines = []
    with torch.random.fork_rng(devices=[]):
        for stage in options.stages:
            try:
                net = builder.structure(stage)
                _try_training(options, task, builder, stage, net)
            except SpQuantError as error:
                if isinstance(error, OptionError):
                    raise
                raise OptionError(
                    f"--stages {stage} with --preset {options.preset}: must be possible for "
                    f"{options.model} of {options.host}. {error}"
                ) from error
            lines.append(
                f"{stage}: {total_steps(options, task, stage)} steps"
                + (f", {options.closed:.0%} of the channels closed" if has_gates(net) else "")
            )
    _try_start(options, builder)
    return lines


def _try_training(
    options: argparse.Namespace, task: Task, builder: Builder, stage: str, net: nn.Module
) -> None:
    if has_gates(net):
        total, closed = total_steps(options, task, stage), builder.closed_before(stage)
        gate_schedule(net, options.closed, total, closed)
    if distils(options, stage):
        teacher = builder.float_network()
        spq.distill.DistillationLoss(Sequence(teacher), Sequence(net))


def _try_start(options: argparse.Namespace, builder: Builder) -> None:
    """Whether ``--init`` is what the first stage can start from."""
    init, first = builder.init, options.stages[0]
    if init is None or config_of(options, first) is None:
        return
    if distils(options, first) and init["config"] is not None:
        raise OptionError(
            f"--init {options.init}: must be a network in full precision, the teacher of md_snn, "
            f"and is one of stage {init['stage']}. Pass the -best.pt of stage fp."
        )
    if init["config"] is not None:
        builder.start(first, None)
