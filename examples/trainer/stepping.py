"""One step of the optimizer: mixed precision, accumulation, clipping, gates, averages."""

from __future__ import annotations

import argparse
import inspect
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import spquant_plugin as spq

from .average import Average, stored_buffers
from .evaluation import has_gates
from .objective import FromLabels, FromTeacher, Objective
from .processes import Processes
from .recipe import loss_of, optimizer_of, rate_at
from .running import Sequence
from .tasks import placed

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Trains one network; everything that changes with its steps is in :meth:`state_dict`."""

    def __init__(
        self,
        options: argparse.Namespace,
        processes: Processes,
        net: nn.Module,
        *,
        total: int,
        warmup: int,
        teacher: nn.Module | None,
        closed_before: bool = False,
    ) -> None:
        self.options, self.processes, self.net = options, processes, net
        self.total, self.warmup, self.taken = total, warmup, 0
        net.train()
        if options.sync_norm and processes.many:
            spq.synchronize_norms_(net)
        self.average = None if options.ema is None else Average(net, options.ema)
        if options.compile:
            net.compile()  # in place: the keys of its state stay what they are
        self.run = self._parallel(Sequence(net))
        self.objective: Objective
        if teacher is None:
            self.objective = FromLabels(self.run, loss_of(options))
        else:
            self.objective = FromTeacher(self.run, Sequence(teacher))
        self.optimizer = optimizer_of(options, net)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=options.amp == "fp16")
        self.gates = None
        if has_gates(net):
            self.gates = gate_schedule(net, options.closed, total, closed_before)

    def _parallel(self, run: nn.Module) -> nn.Module:
        if not self.processes.many:
            return run
        device = self.processes.device
        places = [device.index] if device.type == "cuda" else None
        # States of snnTorch are buffers, and no other process's; statistics are shared below.
        taken = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"
        return DistributedDataParallel(run, places, **{name: False})

    @property
    def rate(self) -> float:
        """The learning rate of the coming step."""
        return self.options.lr * rate_at(self.taken, self.total, self.warmup)

    def step(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Learn from this process's part of a batch; its loss, its answers, and its labels."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.zero_grad()
        parts = self.options.accumulate
        losses, answers = [], []
        labels = labels.to(self.processes.device, non_blocking=True)
        pairs = zip(frames.chunk(parts, dim=1), labels.chunk(parts), strict=True)
        for number, (some, theirs) in enumerate(pairs, 1):
            loss, answer = self._learn(placed(some, self.processes.device), theirs, number == parts)
            losses.append(loss)
            answers.append(answer)
        self.scaler.unscale_(self.optimizer)
        if self.options.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.options.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.gates is not None:
            self.gates.step()
        spq.reset(self.net)
        if self.average is not None:
            self.average.update(self.net)
        self.taken += 1
        return torch.stack(losses).mean(), torch.cat(answers), labels

    def _learn(self, frames: Tensor, labels: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Add the gradient of one part; processes exchange theirs with the last one."""
        kind, amp = self.processes.device.type, self.options.amp
        with ExitStack() as stack:
            if not last and isinstance(self.run, DistributedDataParallel):
                stack.enter_context(self.run.no_sync())
            with torch.autocast(kind, PRECISIONS[amp]) if amp != "off" else nullcontext():
                loss, answers = self.objective(frames, labels)
            self.scaler.scale(loss / self.options.accumulate).backward()
        return loss.detach(), answers

    @property
    def closed(self) -> float | None:
        """Mean share of channels that the gates close; None without gates, 0 until they act."""
        if self.gates is None:
            return None
        shares = self.gates.closed.values()
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def judged(self) -> nn.Module:
        """The network to evaluate and to keep: the average of the parameters where there is one."""
        spq.reset(self.net)
        return self.net if self.average is None else self.average.net

    def share_statistics(self) -> None:
        """Give every process the main one's: without ``--sync-norm`` each has measured its own."""
        for net in dict.fromkeys((self.net, self.judged)):  # one, where there is no average
            self.processes.share(stored_buffers(net).values())

    def state_dict(self) -> dict[str, Any]:
        return {
            "taken": self.taken,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "gates": None if self.gates is None else self.gates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])


def gate_schedule(
    net: nn.Module, target: float, steps: int, closed_before: bool
) -> spq.GateSchedule:
    """Weighs and closes channels; of gates that an earlier stage closed, it holds the share."""
    return spq.GateSchedule(net, target, steps=steps, warmup=0 if closed_before else None)
