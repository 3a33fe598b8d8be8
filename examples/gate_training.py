"""How channel gates are best trained: the recipe of GateSchedule, one change at a time.

Generated motion, SpikingJelly, 77 % of the channels closed, 35 % of the pixels masked. Every row
starts from the same full-precision network of its seed and is trained for as many epochs.

    python examples/gate_training.py                # 3 seeds, about an hour on one core
    python examples/gate_training.py --show docs/results/gate_training.jsonl
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gates
import quickstart
import torch
from measurements import append, arguments, not_measured, percent, read, stored
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import spquant_plugin as spq

EPOCHS = gates.EPOCHS["motion"]
TARGET = 0.77
RECIPE = "GateSchedule as it is"
FIXED = {"rate": 1e-9, "pace": 1e-9}

CHOICES: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "gates keep the optimizer's pace": {"pace": 1.0},
    "gates take a hundredth of the pace": {"pace": 0.01},
    "biases closer together (spread 0.05)": {"spread": 0.05},
    "closed after half of the training": {"warmup": 0.5},
    "distilled from full precision": {"distil": True},
    "pixels ranked by the prior membrane": {"spatial_gate": spq.SpatialGate(score="prior")},
    "no pixels masked": {"spatial_gate": None},
    "no channels closed": {"channel_gate": None},
    "fixed mask: the most important": {"fixed": True, **FIXED},
    "fixed mask: at random": {"fixed": True, "random": True, **FIXED},
    "gate_loss instead, weight 10": {"penalty": lambda done: TARGET},
    "gate_loss, target rising to the half": {"penalty": lambda done: TARGET * min(1.0, 2 * done)},
}


class Distillation:
    """The task's loss and the divergence from a teacher's softened output, half and half."""

    def __init__(self, student: nn.Module, teacher: nn.Module, softness: float = 2.0) -> None:
        self.teacher, self.softness = teacher.eval(), softness
        student.register_forward_pre_hook(self.teach)

    @torch.no_grad()
    def teach(self, student: nn.Module, args: tuple[Tensor, ...]) -> None:
        functional.reset_net(self.teacher)
        self.taught = (self.teacher(args[0]).mean(0) / self.softness).softmax(1)

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        answer = (outputs.mean(0) / self.softness).log_softmax(1)
        divergence = nn.functional.kl_div(answer, self.taught, reduction="batchmean")
        return (gates.mean_loss(outputs, labels) + self.softness**2 * divergence) / 2


class Penalty:
    """The task's loss and ``gate_loss``, whose target follows the share of training done."""

    def __init__(self, net: nn.Module, steps: int, target: Callable[[float], float]) -> None:
        self.net, self.steps, self.target, self.taken = net, steps, target, 0

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        self.taken += 1
        aim = self.target(self.taken / self.steps)
        return gates.mean_loss(outputs, labels) + 10 * spq.gate_loss(self.net, aim)


def fix(net: nn.Module, random: bool) -> None:
    """Let no decision depend on the input; where the mask is random, let nothing choose it."""
    for _, gate in gates.gates_of(net):
        nn.init.zeros_(gate.weight.requires_grad_(False))
        if random:
            closed = torch.randperm(gate.out_channels) < round(TARGET * gate.out_channels)
            gate.bias.requires_grad_(False).copy_(torch.where(closed, -9.0, 9.0))


def train(
    rows: gates.Rows,
    full: nn.Module,
    name: str,
    *,
    distil: bool = False,
    fixed: bool = False,
    random: bool = False,
    penalty: Callable[[float], float] | None = None,
    warmup: float = 0.05,
    channel_gate: spq.ChannelGate | None = spq.ChannelGate(),  # noqa: B008 - a frozen record
    spatial_gate: spq.SpatialGate | None = spq.SpatialGate(),  # noqa: B008
    **schedule: float,
) -> nn.Module:
    """Convert and train with one thing changed."""
    torch.manual_seed(rows.seed)
    fields = {"channel_gate": channel_gate, "spatial_gate": spatial_gate}
    net = rows.convert(full, spq.presets.spquant_snn(**fields))
    steps = rows.epochs * (len(rows.training) // 32)
    loss_of: Callable[[Tensor, Tensor], Tensor] = gates.mean_loss
    after_step: Callable[[], None] = lambda: None  # noqa: E731
    if fixed:
        fix(net, random)
    if distil:
        loss_of = Distillation(net, copy.deepcopy(full))
    if penalty is not None:
        loss_of = Penalty(net, steps, penalty)
    elif channel_gate is not None and not random:
        weighing = max(1, int(warmup * steps))
        after_step = spq.GateSchedule(net, TARGET, steps=steps, warmup=weighing, **schedule).step
    quickstart.train(
        net,
        rows.training,
        rows.epochs,
        f"{rows.seed} {name}",
        seed=rows.seed,
        loss_of=loss_of,
        after_step=after_step,
    )
    return net


def table(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and the mean difference to the recipe."""
    lines = [
        f"{'change':38}{'accuracy (%)':>16}{'difference':>12}{'closed':>8}{'changing':>10}"
        f"{'seeds':>7}"
    ]
    for name in CHOICES:
        runs = [r for r in results if r["choice"] == name]
        if not runs:
            continue
        mean, text = percent([r["accuracy"] for r in runs])
        recipe, _ = percent([r["accuracy"] for r in results if r["choice"] == RECIPE])
        shares = [
            "" if runs[0][part] is None else f"{percent([r[part] for r in runs])[0]:.1f}%"
            for part in ("closed", "changing")
        ]
        lines.append(
            f"{name:38}{text:>16}{mean - recipe:>+12.2f}{shares[0]:>8}{shares[1]:>10}{len(runs):>7}"
        )
    return "\n".join(lines)


def measure(net: nn.Module, test: spq.data.FrameDataset) -> dict[str, float | None]:
    """Accuracy, the closed share, and the share of channels that some inputs open, some close."""
    frames, _ = next(iter(spq.data.loader(test, batch_size=256)))
    closed = spq.analyze(net, frames).to_dict()["sparsity"]["channels_closed"]
    changing = None if closed is None else gates.changing(net, frames)
    return {"accuracy": quickstart.accuracy(net, test), "closed": closed, "changing": changing}


def main() -> None:
    options = arguments(__doc__.splitlines()[0], "gate_training.jsonl", [5, 6, 7]).parse_args()
    if options.show:
        print(table(stored(options.show)))
        return
    for seed in options.seeds:
        left = not_measured(options.results, seed, CHOICES)
        if not left:
            continue
        rows = gates.Rows("motion", seed, EPOCHS)
        full = rows.first_stage(gates.WIDTH["motion"])
        for name, change in left.items():
            net = train(rows, full, name, **change)
            found = {"choice": name, "seed": seed, **measure(net, rows.test)}
            append(options.results, found)
    print(table(read(options.results)))


if __name__ == "__main__":
    main()
