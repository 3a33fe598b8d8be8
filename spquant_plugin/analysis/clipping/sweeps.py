"""Accuracy and memory of one network under several configurations (Tables 2 and 3, Figs. 4, 5)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...config import (
    SHAPES,
    BinaryMembrane,
    SpQuantConfig,
    TernaryMembrane,
    UniformMembrane,
    _Membrane,
)
from ...convert import convert
from ...convert.copying import copy_at_rest
from ...convert.hosts import Hosts, require_model
from ...convert.trace import quiet_copy
from ...errors import AnalysisError, AnalysisWarning
from ...modules.neuron import QuantizedNeuron
from ..measuring import analyze
from ..units import bytes_text
from .membranes import with_membrane
from .plots import plot_sweep
from .printed import Printed
from .running import (
    Bar,
    Predict,
    accuracy_of,
    check_loader,
    first_input,
    largest_mean,
    progress_bar,
    to_device_of,
)

Train = Callable[[nn.Module], object]
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class SweepRow:
    """One configuration: accuracy as a share of 1, and bytes of one sample at their stored bits."""

    name: str
    accuracy: float
    membrane_bytes: float
    total_bytes: float


@dataclass(frozen=True)
class Sweep(Printed):
    """A row for each configuration, in their order; changes are against the first one."""

    header = ("network", "accuracy", "change (points)", "membranes", "total")

    model: str
    trained: bool
    rows: tuple[SweepRow, ...]

    @property
    def title(self) -> str:
        return f"{self.model}, {'each row trained' if self.trained else 'without training'}"

    def __getitem__(self, name: str) -> SweepRow:
        for row in self.rows:
            if row.name == name:
                return row
        listed = ", ".join(repr(row.name) for row in self.rows)
        raise KeyError(f"{name!r} has no row here. There are: {listed}.")

    def lines(self) -> list[tuple[str, ...]]:
        """All rows as text."""
        first = self.rows[0].accuracy
        return [
            (
                row.name,
                f"{100 * row.accuracy:.2f} %",
                f"{100 * (row.accuracy - first):+.2f}" if place else "",
                bytes_text(row.membrane_bytes),
                bytes_text(row.total_bytes),
            )
            for place, row in enumerate(self.rows)
        ]

    def plot(self) -> Any:
        """A matplotlib figure: accuracy row by row, and against memory as in Fig. 5."""
        return plot_sweep(self)


def sweep(
    model: nn.Module,
    configs: Mapping[str, SpQuantConfig | None],
    loader: Iterable[Any],
    *,
    fine_tune: Train | None = None,
    timesteps: int | None = None,
    predict: Predict | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Measure accuracy and memory of a network under each configuration, by its name.

    Each row is a copy, converted and, where ``fine_tune`` is given, handed to it for training; fix
    the seed in there. None as configuration stands for the network as it is, and is trained as
    well. A network that was converted already takes configurations of a membrane only: each of its
    neurons then stores by the new rule, in the unit that it had.

    ``loader`` gives batches ``(x, labels)``; the first is also the sample of the conversion and of
    the memory. ``timesteps`` and ``predict`` are those of :func:`measure_accuracy`. ``progress``
    shows a bar over the batches of all rows; left out, it does where tqdm is installed.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> net = torch.nn.Sequential(layer.Linear(4, 2, step_mode="m"), neuron.LIFNode(step_mode="m"))
    >>> batches = [(torch.ones(3, 5, 4), torch.zeros(5, dtype=torch.long))]
    >>> configs = {"float": None, "ternary": spq.SpQuantConfig(membrane=spq.TernaryMembrane())}
    >>> [(row.name, row.membrane_bytes) for row in sweep(net, configs, batches).rows]
    [('float', 8.0), ('ternary', 0.5)]
    """
    require_model(model)
    _check_configs(configs)
    if fine_tune is not None and not callable(fine_tune):
        raise AnalysisError(
            f"fine_tune = {type(fine_tune).__name__}: must be a function that trains the network "
            "it is given. Pass fine_tune=lambda net: train(net, ...), or None for no training."
        )
    check_loader(loader)
    first = to_device_of(model, first_input(loader))
    step = first if timesteps is None else tree_map_only(Tensor, itemgetter(0), first)
    rows = []
    with progress_bar(progress, "sweep", loader, len(configs)) as bar:
        for name, config in configs.items():
            changed = _changed(model, config, step)
            if fine_tune is not None:
                fine_tune(changed)
            rows.append(_row(name, changed, loader, first, timesteps, predict, bar))
            if fine_tune is None:  # who was given a network may have kept it
                for host in Hosts().all:
                    host.leave(changed.modules())
    return Sweep(type(model).__name__, fine_tune is not None, tuple(rows))


def _changed(model: nn.Module, config: SpQuantConfig | None, sample: Any) -> nn.Module:
    """A copy under a configuration."""
    converted = any(isinstance(module, QuantizedNeuron) for module in model.modules())
    if config is not None and not converted:
        return convert(model, config, sample)
    copy = copy_at_rest(model)
    for host in Hosts().all:
        host.enter(copy)
    return copy if config is None else with_membrane(copy, config)


def _row(
    name: str,
    net: nn.Module,
    loader: Iterable[Any],
    first: Any,
    timesteps: int | None,
    predict: Predict | None,
    bar: Bar,
) -> SweepRow:
    with quiet_copy(net) as copy:
        accuracy = accuracy_of(copy, bar.over(loader, name), timesteps, predict or largest_mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AnalysisWarning)  # memory asks for no spikes
        memory = analyze(net, first, timesteps=timesteps).memory
    return SweepRow(name, accuracy, memory.membrane_bytes, memory.total_bytes)


def _check_configs(configs: object) -> None:
    if not isinstance(configs, Mapping) or not configs:
        raise AnalysisError(
            f"configs = {configs!r}: must map at least one name to a SpQuantConfig, or to None "
            "for the network as it is. Pass {'ternary': spq.SpQuantConfig(...)}."
        )
    for name, config in configs.items():
        if not isinstance(name, str) or not (config is None or isinstance(config, SpQuantConfig)):
            raise AnalysisError(
                f"configs[{name!r}] = {type(config).__name__}: names must be text, and each must "
                "stand for a SpQuantConfig, or for None. Wrap a membrane as "
                "spq.SpQuantConfig(membrane=...)."
            )


# The publication's sweeps.


def compare_membranes(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    config: SpQuantConfig | None = None,
    **options: Any,
) -> Sweep:
    """Compare a ternary with a binary membrane, which prunes what is negative (Table 3).

    ``config`` is what else is converted, the membrane in it is replaced; ``options`` are those of
    :func:`sweep`. Left out, the weights stay as they are and nothing is trained.
    """
    membranes = {"ternary": TernaryMembrane(), "binary": BinaryMembrane()}
    return sweep(model, _configs(membranes, config), loader, **options)


def sweep_levels(
    model: nn.Module,
    loader: Iterable[Any],
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    config: SpQuantConfig | None = None,
    **options: Any,
) -> Sweep:
    """Measure binary, ternary and uniform membranes of so many ``bits`` (Fig. 4).

    The range of uniform potentials is the same whatever the bits. ``config`` and ``options`` are
    those of :func:`compare_membranes`.
    """
    if not isinstance(bits, Iterable) or isinstance(bits, str):
        raise AnalysisError(
            f"bits = {bits!r}: must be a sequence of whole numbers from 2 to 8. Pass bits=(2, 4)."
        )
    membranes: dict[str, _Membrane] = {"binary": BinaryMembrane(), "ternary": TernaryMembrane()}
    membranes |= {f"{count} bit": UniformMembrane(bits=count) for count in bits}
    return sweep(model, _configs(membranes, config), loader, **options)


def sweep_shapes(
    model: nn.Module,
    loader: Iterable[Any],
    train: Train,
    shapes: Sequence[str] = SHAPES,
    *,
    config: SpQuantConfig | None = None,
    **options: Any,
) -> Sweep:
    """Train with each shape of the membrane's surrogate gradient, and compare (Table 2).

    ``train(net)`` trains a converted network; fix the seed in it. ``config`` is what is converted,
    by default a ternary membrane alone; ``options`` are those of :func:`sweep`.
    """
    if not callable(train):
        raise AnalysisError(
            f"train = {type(train).__name__}: must be a function that trains the network it is "
            "given, since the shape acts in training alone. Pass train=lambda net: fit(net, ...)."
        )
    if isinstance(shapes, str) or not shapes:
        listed = ", ".join(map(repr, SHAPES))
        raise AnalysisError(
            f"shapes = {shapes!r}: must be a sequence of at least one of {listed}. Pass such a "
            "sequence, or leave it out for all."
        )
    membrane = None if config is None else config.membrane
    membrane = TernaryMembrane() if membrane is None else membrane
    rules = {shape: dataclasses.replace(membrane, shape=shape) for shape in shapes}
    configs = _configs(rules, config)
    del configs[AS_IT_IS]  # it has no such surrogate
    return sweep(model, configs, loader, fine_tune=train, **options)


def _configs(
    membranes: Mapping[str, _Membrane], config: SpQuantConfig | None
) -> dict[str, SpQuantConfig | None]:
    config = SpQuantConfig() if config is None else config
    found: dict[str, SpQuantConfig | None] = {AS_IT_IS: None}
    for name, membrane in membranes.items():
        found[name] = dataclasses.replace(config, membrane=membrane)
    return found
