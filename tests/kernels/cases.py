"""Random layers that between them hold every pair of a rule's options."""

from __future__ import annotations

import itertools
import random
import zlib
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from spquant_plugin.kernels import Rule, Sequence, membrane_sequence, use

PROVIDERS = ("eager", "compiled")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
RUNNERS = [
    *(pytest.param(name, "cpu", id=name) for name in PROVIDERS),
    *(pytest.param(name, "cuda", id=f"{name}-cuda", marks=needs_cuda) for name in PROVIDERS),
]

OPTIONS: dict[str, tuple[Any, ...]] = {
    "reset": ("hard", "soft", "none", "late_subtract", "late_zero", "late_drop"),
    "slope": ("triangle", "window", "sigmoid", "arctan", "fast_sigmoid"),
    "threshold_gradient": ("gpw", "shared", "doubled", "host", "none"),
    "shape": ("sigmoid", "arctan", "triangle", "piecewise"),
    # (-1, 1) a second time with the boundaries of Eq. 7; None is a float membrane.
    "levels": ((-1, 1), (0, 1), (-8, 7), (-128, 127), (-3, 1), "eq7", None),
    "sharpness": (1.0, 0.5, 4.0),
    "temperature": (2.0, 1.0, 5.0),
    "detach_reset": (False, True),
    "strict": (False, True),
    "rest": (0.0, -0.2),
    "per_channel": (False, True),
    "masked": (False, True),
    "continued": (False, True),
}


def allowed(case: dict[str, Any]) -> bool:
    """Whether there is such a layer: late resets know no rest."""
    return not (case["reset"].startswith("late") and case["rest"])


def pairs_of(case: dict[str, Any]) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(case.items(), 2))


def covering() -> list[dict[str, Any]]:
    """Cases that hold all pairs of options, those with the most new pairs first."""
    source = random.Random(0)
    names = list(OPTIONS)
    left = {
        ((a, p), (b, q))
        for a, b in itertools.combinations(names, 2)
        for p in OPTIONS[a]
        for q in OPTIONS[b]
        if not (a == "reset" and b == "rest" and p.startswith("late") and q)
    }
    cases = []
    while left:
        seed = source.choice(sorted(left, key=repr))
        drawn = [
            {name: source.choice(OPTIONS[name]) for name in names} | dict(seed) for _ in range(60)
        ]
        best = max(filter(allowed, drawn), key=lambda case: len(pairs_of(case) & left))
        left -= pairs_of(best)
        cases.append(best)
    return cases


def rule_of(case: dict[str, Any]) -> Rule:
    levels = (-1, 1) if case["levels"] in ("eq7", None) else case["levels"]
    return Rule(
        **{name: case[name] for name in Rule._fields if name in case},
        lowest=levels[0],
        highest=levels[1],
        cut_points=(0.0, 0.5) if case["levels"] == "eq7" else (),
    )


def unit_of(case: dict[str, Any]) -> float | None:
    """A unit that is no power of two, and finer where there are more levels."""
    fine = {(-8, 7): 0.17, (-128, 127): 0.011}
    return None if case["levels"] is None else fine.get(case["levels"], 0.8)


class Layer(NamedTuple):
    """One random layer: what goes in, and the gradients that come back."""

    x: Tensor
    rule: Rule
    constants: dict[str, Any]
    arriving: tuple[Tensor, ...]

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"x": self.x} | self.constants
        return {
            name: value
            for name, value in named.items()
            if isinstance(value, Tensor) and value.requires_grad
        }

    def to(self, *place: Any) -> Layer:
        """The same numbers elsewhere, or in another precision."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().to(*place).requires_grad_(value.requires_grad)

        constants = {name: moved(value) for name, value in self.constants.items()}
        return Layer(moved(self.x), self.rule, constants, tuple(map(moved, self.arriving)))


def layer_of(case: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...] = (6, 2, 3, 4, 3)):
    """A random layer of the case, all of whose tensors ask for gradients."""
    source = torch.Generator().manual_seed(zlib.crc32(repr(sorted(case.items())).encode()))

    def uniform(low: float, high: float) -> Tensor:
        size = (shape[2], *[1] * (len(shape) - 3)) if case["per_channel"] else ()
        value = torch.rand(size, generator=source, dtype=torch.float64) * (high - low) + low
        return value.to(dtype).requires_grad_()

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=source, dtype=torch.float64).to(dtype)

    unit = unit_of(case)
    rule = rule_of(case)
    constants = {
        "threshold": uniform(0.8, 1.2),
        "decay": uniform(0.4, 0.9),
        "gain": uniform(0.5, 1.3),
        "unit": unit,
    }
    if case["continued"]:
        state = normal(*shape[1:])
        if unit is not None:
            levels = (state / unit).round().clamp(rule.lowest, rule.highest)
            state = levels * torch.tensor(unit, dtype=dtype) + rule.rest
        constants["state"] = state.requires_grad_()
        constants["fired"] = torch.rand(shape[1:], generator=source) < 0.5
    if case["masked"]:
        mask = torch.rand(shape[:3], generator=source, dtype=torch.float64)
        constants["mask"] = (mask * (mask > 0.3)).to(dtype).requires_grad_()
    arriving = (normal(*shape), normal(*shape[1:]), normal(*shape), normal(*shape))
    x = (normal(*shape) * 1.2).requires_grad_()
    return Layer(x, rule, constants, arriving)


def run(layer: Layer, provider: str, **options: Any) -> tuple[Sequence, dict[str, Tensor]]:
    """Outputs and gradients of a layer by one provider."""
    layer = layer.to(layer.x.device)
    wanted = {"potentials": True, "membranes": True}
    with use(provider, **options):
        result = membrane_sequence(layer.x, layer.rule, **layer.constants, **wanted)
        return result, gradients(result, layer)


def gradients(result: tuple[Tensor, ...], layer: Layer) -> dict[str, Tensor]:
    """What the layer's leaves receive."""
    leaves = layer.leaves
    got = torch.autograd.grad(
        [value for value in result if value.requires_grad],
        list(leaves.values()),
        [
            grad.to(value.dtype)
            for value, grad in zip(result, layer.arriving, strict=True)
            if value.requires_grad
        ],
        allow_unused=True,
    )
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), got, strict=True)
    }
