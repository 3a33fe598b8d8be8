"""Which pattern over the time steps each weight follows, where weights change with the step.

A temporal weight is stored as one code: a pattern and a sign. Of four steps there are nine,

    1111  0101  0010  0001   with either sign, and 0000

and how often each occurs also says how often the weight is -1, 0 or 1 in each step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ..convert.hosts import require_model
from ..errors import AnalysisError
from ..functional.temporal import temporal_codes
from .part import ReportPart
from .temporal import is_temporal, known_steps, patterns_of, rule_of
from .units import count_text

HEADER = ("path", "type", "weights", "steps", "entropy", "at most", "patterns of either sign")


@dataclass(frozen=True)
class CodeRow:
    """One layer whose weights change with the time step.

    ``patterns`` are the levels of a positive weight in each step, the silent pattern first, and
    ``counts`` how many weights have each code: the number of their pattern, with their sign.
    """

    path: str
    type: str
    weights: int
    bits: int
    timesteps: int
    patterns: tuple[tuple[int, ...], ...] = ()
    counts: Mapping[int, int] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the weights with each code, by its pattern: from ``-1111`` to ``+1111``."""
        return {self.name(code): count / self.weights for code, count in self.counts.items()}

    @property
    def pattern_shares(self) -> dict[str, float]:
        """The same without signs."""
        found = [self.counts[code] + (self.counts[-code] if code else 0) for code in self._numbers]
        named = (self.name(code).lstrip("+") for code in self._numbers)
        return {name: count / self.weights for name, count in zip(named, found, strict=True)}

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels of one step."""
        largest = 2 ** (self.bits - 1) - 1
        return tuple(range(-largest, largest + 1))

    @property
    def level_shares(self) -> tuple[tuple[float, ...], ...]:
        """For each step the share of weights on each of ``levels``."""
        shares = []
        for step in range(self.timesteps):
            found = dict.fromkeys(self.levels, 0)
            for code, count in self.counts.items():
                found[self._level(code, step)] += count
            shares.append(tuple(count / self.weights for count in found.values()))
        return tuple(shares)

    @property
    def entropy(self) -> float:
        """Bits of information in one code."""
        shares = (count / self.weights for count in self.counts.values() if count)
        return abs(-sum(share * math.log2(share) for share in shares))

    @property
    def most(self) -> float:
        """Bits that one of so many codes could hold."""
        return math.log2(len(self.counts))

    @property
    def _numbers(self) -> range:
        return range(len(self.patterns))

    def name(self, code: int) -> str:
        """A code as its pattern with its sign."""
        digits = "".join(map(str, self.patterns[abs(code)]))
        return digits if not code else f"{'-' if code < 0 else '+'}{digits}"

    def _level(self, code: int, step: int) -> int:
        level = self.patterns[abs(code)][step]
        return -level if code < 0 else level

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        shares = (f"{name} {100 * share:.1f} %" for name, share in self.pattern_shares.items())
        return (
            self.path or "(model)",
            self.type,
            count_text(self.weights),
            str(self.timesteps),
            f"{self.entropy:.4f}",
            f"{self.most:.4f}",
            ", ".join(shares),
        )


@dataclass(frozen=True)
class CodeReport(ReportPart[CodeRow]):
    """A row for each layer whose weights change with the time step."""

    header = HEADER

    model: str
    layers: tuple[CodeRow, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.model}, codes of weights that change with the time step"

    @property
    def footnotes(self) -> tuple[str, ...]:
        return ("entropy: bits of information in one code; at most: log2 of the number of codes",)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows as text."""
        return [row.cells() for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return {"model": self.model, "layers": [_record(row) for row in self.layers]}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(self) -> Any:
        """A matplotlib figure: the share of each code, and of -, 0 and + in each time step."""
        from .code_plot import plot_codes

        return plot_codes(self)


def _record(row: CodeRow) -> dict[str, Any]:
    counts = {row.name(code): count for code, count in row.counts.items()}
    derived = ("shares", "levels", "level_shares", "entropy", "most")
    return asdict(row) | {"counts": counts} | {name: getattr(row, name) for name in derived}


@torch.no_grad()
def measure_codes(model: nn.Module) -> CodeReport:
    """Count how often each pattern over the time steps occurs, layer by layer.

    The model is not run or changed; layers whose weights do not change with the step have no row.

    Raises :class:`~spquant_plugin.errors.AnalysisError` where no layer has such weights, and where
    one does not know its number of steps yet.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer
    >>> weights = spq.TemporalTernaryWeights(timesteps=4)
    >>> config = spq.SpQuantConfig(weights=weights, edge_weights=weights)
    >>> net = spq.convert(torch.nn.Sequential(layer.Linear(4, 1, step_mode="m")), config)
    >>> net[0].weight.data = torch.tensor([[0.9, 0.1, 0.0, -1.0]])
    >>> row = spq.analysis.codes.measure_codes(net)["0"]
    >>> {pattern: share for pattern, share in row.shares.items() if share}
    {'-1111': 0.25, '0000': 0.5, '+1111': 0.25}
    """
    rows = []
    for path, layer in require_model(model).named_modules():
        if not is_temporal(layer):
            continue
        steps, rule = known_steps(path, layer), rule_of(layer)
        patterns = patterns_of(rule, steps)
        found = temporal_codes(layer.weight.detach(), steps, rule.bits).long().flatten()
        least = 1 - len(patterns)
        counts = torch.bincount(found - least, minlength=1 - 2 * least).tolist()
        coded = dict(enumerate(counts, least))
        name = type(layer).__name__
        rows.append(CodeRow(path, name, found.numel(), rule.bits, steps, patterns, coded))
    if not rows:
        raise AnalysisError(
            f"{type(model).__name__}: no layer has weights that change with the time step: there "
            "must be at least one. Convert it with weights=TemporalTernaryWeights(...)."
        )
    return CodeReport(type(model).__name__, tuple(rows))


def plot_weight_patterns(model: nn.Module) -> Any:
    """The figure of :func:`~spquant_plugin.analysis.codes.measure_codes`.

    On the left what share of each layer's weights follows which pattern over the time steps, on the
    right what share is negative, zero and positive in each of them.
    """
    return measure_codes(model).plot()
