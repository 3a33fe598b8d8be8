r"""How evenly quantised weights use their levels.

A weight of ``n`` levels holds at most :math:`\log_2 n` bits, 1.585 for ternary ones, and that only
if each level is as frequent as the others. What it holds is the entropy of their shares,

.. math::

    H = -\sum_k p_k \log_2 p_k .

Levels of weights that change with the time step are counted in all of their steps.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MintWeights, TemporalTernaryWeights, TernaryWeights, UniformWeights
from ..convert.hosts import Hosts, require_model
from ..errors import AnalysisError
from ..modules.quantized_layer import QuantizedLayer
from ..modules.weight_quantizer import DyadicQuantizer, WeightQuantizer
from .modules import kind_of, quantizer_of, weights_of
from .part import ReportPart
from .temporal import is_temporal, known_steps
from .units import count_text

HEADER = (
    *("path", "type", "weights", "entropy", "at most", "used"),
    *("-", "0", "+", "note"),
)


@dataclass(frozen=True)
class EntropyRow:
    """One weight layer, or all of one number of levels taken together.

    ``levels`` is how many the quantiser has, ``counts`` how often each occurs that does, in units
    of the layer's scale; over all ``steps`` where the weights change with the time step.
    ``negative``, ``zero`` and ``positive`` are shares of 1; ``entropy`` is in bits per weight. They
    are None for a layer in float, whose ``note`` says so.
    """

    path: str
    type: str
    weights: int
    levels: int = 0
    counts: Mapping[float, int] = field(default_factory=dict)
    note: str = ""
    steps: int = 1

    @property
    def entropy(self) -> float | None:
        """Bits of information in one weight."""
        total = sum(self.counts.values())
        if not total:
            return None
        shares = [count / total for count in self.counts.values()]
        # The sum of no uncertainty at all is -0.0.
        return abs(-sum(share * math.log2(share) for share in shares))

    @property
    def most(self) -> float | None:
        """Bits that a weight of so many levels could hold."""
        return math.log2(self.levels) if self.levels else None

    @property
    def used(self) -> float | None:
        """Entropy as a share of that."""
        return self.entropy / self.most if self.entropy is not None and self.most else None

    def _share(self, sign: int) -> float | None:
        total = sum(self.counts.values())
        found = sum(n for level, n in self.counts.items() if (level > 0) - (level < 0) == sign)
        return found / total if total else None

    @property
    def negative(self) -> float | None:
        """Share of weights below zero."""
        return self._share(-1)

    @property
    def zero(self) -> float | None:
        """Share of weights that are zero."""
        return self._share(0)

    @property
    def positive(self) -> float | None:
        """Share of weights above zero."""
        return self._share(1)

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        numbers = (self.entropy, self.most)
        shares = (self.used, self.negative, self.zero, self.positive)
        return (
            self.path or "(model)",
            self.type,
            count_text(self.weights),
            *("" if number is None else f"{number:.4f}" for number in numbers),
            *("" if share is None else f"{100 * share:.1f} %" for share in shares),
            self.note,
        )


@dataclass(frozen=True)
class EntropyReport(ReportPart[EntropyRow]):
    """A row for each weight layer by path, and sums over the layers of as many levels each."""

    header = HEADER

    model: str
    layers: tuple[EntropyRow, ...] = ()
    totals: tuple[EntropyRow, ...] = ()

    def total(self, levels: int) -> EntropyRow:
        """All weights of quantisers with so many levels, pooled; 3 for the ternary ones."""
        for row in self.totals:
            if row.levels == levels:
                return row
        listed = ", ".join(str(row.levels) for row in self.totals) or "none"
        raise KeyError(f"{levels!r}: no layer has so many levels. There are: {listed}.")

    @property
    def title(self) -> str:
        return f"{self.model}, entropy of the quantised weights in bits per weight"

    @property
    def footnotes(self) -> tuple[str, ...]:
        return ("at most: log2 of the levels (ternary: 1.5850); used: entropy as a share of it",)

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and sums as text."""
        return [row.cells() for row in (*self.layers, *self.totals)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them; levels become text there."""
        rows = {"layers": self.layers, "totals": self.totals}
        return {"model": self.model} | {
            name: [_record(row) for row in part] for name, part in rows.items()
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def plot(self) -> Any:
        """A matplotlib figure: the shares of -, 0 and + with a line at one third, and the bits."""
        from .entropy_plot import plot_entropy

        return plot_entropy(self)


def _record(row: EntropyRow) -> dict[str, Any]:
    derived = ("entropy", "most", "used", "negative", "zero", "positive")
    counts = {f"{level:g}": count for level, count in row.counts.items()}
    return asdict(row) | {"counts": counts} | {name: getattr(row, name) for name in derived}


@torch.no_grad()
def measure_entropy(model: nn.Module) -> EntropyReport:
    """Count how often each level occurs among the quantised weights, and the entropy of that.

    Layers in float are listed with a note. Weights that several layers share count once in the
    sums, which pool the levels of all layers whose quantisers have the same number of them. Weights
    that change with the time step count once in each step. The model is not run or changed.

    Raises :class:`~spquant_plugin.errors.AnalysisError` where no layer is quantised, and where a
    layer with weights that change with the time step does not know its number of steps yet.

    >>> import torch, spquant_plugin as spq
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Linear(1, 1))
    >>> net[0].weight.data = torch.tensor([[0.5, -0.5, 0.0]])
    >>> config = spq.SpQuantConfig(weights=spq.TernaryWeights(), edge_weights=spq.TernaryWeights())
    >>> row = spq.analysis.entropy.measure_entropy(spq.convert(net, config))["0"]
    >>> row.counts, f"{row.entropy:.4f} of {row.most:.4f} bits"
    ({-1.0: 1, 0.0: 1, 1.0: 1}, '1.5850 of 1.5850 bits')
    """
    rows: list[EntropyRow] = []
    pooled: dict[int, Counter[float]] = {}
    weights: Counter[int] = Counter()
    hosts, seen = Hosts(), list[tuple[int, Any]]()
    for path, module in require_model(model).named_modules():
        if kind_of(module, hosts) != "weights":
            continue
        row = _row(path, module)
        quantizer = quantizer_of(module)
        if quantizer is not None:
            key = (id(weights_of(module)[0]), quantizer.rule)
            if key not in seen:
                pooled.setdefault(row.levels, Counter()).update(row.counts)
                weights[row.levels] += row.weights
            seen.append(key)
        rows.append(row)
    if not pooled:
        raise AnalysisError(
            f"{type(model).__name__}: none of its {len(rows)} weight layers is quantised: there "
            "must be at least one, since float weights have no levels. Convert it with weights=..."
        )
    totals = (
        EntropyRow(
            "all", f"of {levels} levels", weights[levels], levels, dict(sorted(counts.items()))
        )
        for levels, counts in sorted(pooled.items())
    )
    return EntropyReport(type(model).__name__, tuple(rows), tuple(totals))


def _row(path: str, module: nn.Module) -> EntropyRow:
    name, quantizer = type(module).__name__, quantizer_of(module)
    count = sum(weight.numel() for weight in weights_of(module))
    if quantizer is None:
        return EntropyRow(path, name, count, note="in float: not quantised")
    levels = level_count(quantizer)
    if is_temporal(module):
        steps = known_steps(path, module)
        found, _ = module.step_weights(steps)
        note = f"over {steps} time steps"
        return EntropyRow(path, name, count, levels, _frequencies(found), note, steps)
    own: Any = module
    if isinstance(module, QuantizedLayer):
        rows = own.rows(own.folded_weight()[0].detach())
    else:
        rows = weights_of(module)[0].detach()
    return EntropyRow(path, name, count, levels, count_levels(quantizer, rows))


def count_levels(quantizer: WeightQuantizer, rows: Tensor) -> dict[float, int]:
    """How often each level occurs among ``rows``, in units of their scale, ascending."""
    # In training mode a quantiser follows its weights: only its copy may.
    quantizer = copy.deepcopy(quantizer).eval()
    levels, scale = quantizer(rows)
    if scale is None and isinstance(quantizer, DyadicQuantizer):
        levels = levels / quantizer.alpha.to(levels).reshape(-1, *[1] * (levels.ndim - 1))
    return _frequencies(levels)


def _frequencies(levels: Tensor) -> dict[float, int]:
    """How often each value occurs, ascending."""
    values, counts = levels.double().unique(return_counts=True)
    found = zip(values.tolist(), counts.tolist(), strict=True)
    return {level + 0.0: count for level, count in found}  # without a sign on zero


def level_count(quantizer: WeightQuantizer) -> int:
    """How many levels a quantiser has."""
    rule = quantizer.rule
    if isinstance(quantizer, DyadicQuantizer):
        return 2 * (quantizer.table.unique().numel() - 1) + 1
    if isinstance(rule, TernaryWeights):
        return 3
    if isinstance(rule, UniformWeights | MintWeights | TemporalTernaryWeights):
        return int(2**rule.bits - 1)
    return int(2**rule.stored_bits)  # of a quantiser of your own: what its bits can tell apart
