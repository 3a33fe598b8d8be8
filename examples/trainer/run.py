"""A whole run: stage after stage, with checkpoints on the way."""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

import spquant_plugin as spq

from . import checkpoint
from .evaluation import evaluate
from .files import read_network, rebuild, save_network
from .meter import Meter
from .metrics import Metrics
from .place import Place, own_state, restore
from .plan import distils, total_steps
from .problems import TrainingError
from .processes import Processes
from .recipe import loss_of
from .stages import Builder, config_of
from .stages import run as run_network
from .stepping import Stepper
from .tasks import Task

TOLERANCE = 0.05  # of the closed share, as in GateSchedule


class Run:
    """Trains the stages of ``options`` in ``options.out``."""

    def __init__(
        self,
        options: argparse.Namespace,
        processes: Processes,
        task: Task,
        builder: Builder,
        saved: dict[str, Any] | None,
    ) -> None:
        self.options, self.processes, self.task, self.builder = options, processes, task, builder
        self.folder: Path = options.out
        self.saved = saved
        self.place = Place() if saved is None else Place(**saved["place"])
        self.results: list[dict[str, Any]] = [] if saved is None else saved["results"]
        self.loss_of = loss_of(options)
        self.meters = {name: Meter(processes.device) for name in ("epoch", "line")}

    def train(self) -> list[dict[str, Any]]:
        """All stages that are left; per stage the best validation and the test accuracy."""
        length = 0 if self.saved is None else self.saved["metrics"]
        resumed = self.saved is not None and not self.saved["finished"]
        taken = self.saved["training"]["taken"] if self.saved is not None and resumed else 0
        with Metrics(
            self.folder,
            writes=self.processes.is_main,
            tensorboard=self.options.tensorboard,
            length=length,
            step=self._overall(taken),
        ) as self.metrics:
            while self.place.stage < len(self.options.stages):
                self._stage(self.options.stages[self.place.stage])
        return self.results

    # A stage.

    def _stage(self, stage: str) -> None:
        self.stepper = self._stepper(stage)
        epochs = self.options.epochs[self.place.stage]
        while self.place.epoch < epochs and self.stepper.taken < self.stepper.total:
            self._epoch(stage)
        best = read_network(self.folder / f"{stage}-best.pt")
        net = rebuild(best).to(self.processes.device)
        found = self._evaluate(net, "test")
        self._write({"split": "test", "epoch": best["epoch"], **found})
        self.results.append(
            {
                "stage": stage,
                "epoch": best["epoch"],
                "validation": best["accuracy"],
                "test": found["accuracy"],
                "closed": found["closed"],
            }
        )
        self.place = Place(stage=self.place.stage + 1)
        self._save(finished=True)

    def _stepper(self, stage: str) -> Stepper:
        """The training of a stage, from its start or from the checkpoint in the midst of it."""
        saved, self.saved = self.saved, None
        state = None if saved is None or saved["finished"] else saved["training"]
        if state is None:
            number = self.place.stage
            previous = self._file(self.options.stages[number - 1]) if number else None
            net, source = self.builder.start(stage, previous)
            self._say(f"{stage}: starts from {source}")
        else:
            net = self.builder.structure(stage).to(self.processes.device)
            self._say(f"{stage}: goes on after {state['taken']} steps")
        teacher = None
        if distils(self.options, stage):
            held = self._file("fp") if "fp" in self.options.stages else self.builder.init
            teacher = rebuild(held).to(self.processes.device)  # type: ignore[arg-type]
        # After the networks are made, each process draws numbers of its own.
        where = (self.place.stage, self.processes.rank)
        checkpoint.seed_all(self.options.seed, len(self.options.stages) + 1, *where)
        stepper = Stepper(
            self.options,
            self.processes,
            net,
            total=total_steps(self.options, self.task, stage),
            warmup=round(self.options.warmup * self.task.steps_per_epoch),
            teacher=teacher,
            closed_before=self.builder.closed_before(stage),
        )
        for meter in self.meters.values():
            meter.clear()
        if saved is not None and state is not None:
            stepper.load_state_dict(state)
            told = restore(saved["ranks"], self.meters, self.processes)
            if told is not None:
                self._say(told)
        return stepper

    def _file(self, stage: str) -> dict[str, Any]:
        return read_network(self.folder / f"{stage}-best.pt")

    # An epoch.

    def _epoch(self, stage: str) -> None:
        place, stepper, options = self.place, self.stepper, self.options
        start, first = time.perf_counter(), place.step
        bar = tqdm(
            self.task.training(sum(options.epochs[: place.stage]) + place.epoch, start=first),
            desc=f"{stage} {place.epoch + 1}/{options.epochs[place.stage]}",
            unit="step",
            initial=first,
            total=self.task.steps_per_epoch,
            disable=None if self.processes.is_main else True,
            leave=False,
        )
        with bar:
            rate = self._steps(stage, bar)
        seconds = time.perf_counter() - start
        frames = (place.step - first) * options.batch * options.timesteps
        timing = {"seconds": seconds, "frames_per_second": frames / seconds}
        line = {"split": "train", **self._read("epoch", stage), "lr": rate}
        self._write(line | {"closed": stepper.closed, "timing": timing})
        self._judge(stage)
        place.epoch, place.step = place.epoch + 1, 0
        self._save()

    def _steps(self, stage: str, bar: Any) -> float:
        """The steps that are left of an epoch; the learning rate of the last one."""
        place, stepper = self.place, self.stepper
        rate = stepper.rate
        for frames, labels in bar:
            rate = stepper.rate
            seen = stepper.step(frames, labels)
            for meter in self.meters.values():
                meter.add(*seen)
            place.step += 1
            if stepper.taken % self.options.log_every == 0:
                found = self._read("line", stage)
                self._write({"split": "step", **found, "lr": rate, "closed": stepper.closed})
                bar.set_postfix(loss=f"{found['loss']:.3f}", refresh=False)
            if place.step == self.task.steps_per_epoch or stepper.taken == stepper.total:
                break  # the checkpoint of an epoch's end comes after its evaluation
            if stepper.taken % self.options.save_every == 0:
                self._save()
        return rate

    def _read(self, name: str, stage: str) -> dict[str, float]:
        found = self.meters[name].read(self.processes)
        self.meters[name].clear()
        if not found["loss"] < float("inf"):
            raise TrainingError(
                f"stage {stage}, step {self.stepper.taken}: the loss is {found['loss']}: must be "
                "finite. Lower --lr, or pass --warmup or --clip-gradient, in another --out."
            )
        return found

    def _judge(self, stage: str) -> None:
        """Evaluate on the validation split, and keep the network, twice where it is the best."""
        self.stepper.share_statistics()
        net = self.stepper.judged
        if self.options.recalibrate and config_of(self.options, stage) is not None:
            spq.reset(net)
            net = spq.calibrate(copy.deepcopy(net), self.task.calibration(), forward=run_network)
        found = self._evaluate(net, "validation")
        self._write({"split": "validation", **found})
        closes = found["closed"] is None or found["closed"] >= self.options.closed - TOLERANCE
        rank = [float(closes), found["accuracy"]]
        kinds = ["last"]
        if rank > self.place.best:
            self.place.best = rank
            kinds.append("best")
        for kind in kinds if self.processes.is_main else ():
            save_network(
                self.folder / f"{stage}-{kind}.pt",
                net.state_dict(),
                network=self.builder.network,
                config=config_of(self.options, stage),
                data=self.task.record,
                stage=stage,
                epoch=self.place.epoch + 1,
                accuracy=found["accuracy"],
            )
        self.processes.wait()

    def _evaluate(self, net: nn.Module, split: str) -> dict[str, Any]:
        batches = self.task.evaluation(split)
        return evaluate(net, batches, self.loss_of, self.processes, self.options.eval_batches)

    # What is written.

    def _write(self, line: dict[str, Any]) -> None:
        stage = self.options.stages[self.place.stage]
        taken = self.stepper.taken
        start = {"stage": stage, "split": line["split"], "epoch": self.place.epoch + 1}
        self.metrics.write(start | {"step": taken} | line, self._overall(taken))

    def _overall(self, taken: int) -> int:
        """A step of the present stage, counted over all stages."""
        done = self.options.stages[: self.place.stage]
        return taken + sum(total_steps(self.options, self.task, stage) for stage in done)

    def _save(self, finished: bool = False) -> None:
        """A checkpoint; all processes call it together."""
        self.stepper.share_statistics()
        ranks = self.processes.gathered(own_state(self.meters))
        if self.processes.is_main:
            held = {
                "place": asdict(self.place),
                "training": self.stepper.state_dict(),
                "finished": finished,
                "ranks": ranks,
                "results": self.results,
                "metrics": self.metrics.length(),
            }
            checkpoint.save(self.folder / checkpoint.NAME, held)
        self.processes.wait()

    def _say(self, text: str) -> None:
        if self.processes.is_main:
            tqdm.write(text)
