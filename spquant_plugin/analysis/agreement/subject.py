"""The folded copy of a model that another tool is shown, and our own report of this copy."""

from __future__ import annotations

import importlib
import statistics
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map_only

from ...convert.fold import fold
from ...convert.hosts import Hosts, require_model
from ...convert.trace import as_arguments, quiet_copy
from ...errors import AnalysisError, MissingHostError
from ...modules.host import HOOK_TABLES
from ...modules.quantized_layer import QuantizedLayer, shallow
from ..dry_run import call_model, first_tensor
from ..measuring import analyze
from ..modules import computes_in_its_own_way
from ..operations import OperationRow
from ..report import Report
from ..temporal import is_temporal


def load_module(name: str, tool: str, extra: str) -> Any:
    """Import a module of the other tool, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingHostError(
            f"agreement with {tool} needs {name}, which cannot be imported ({error}). "
            f'Run: python -m pip install "spquant-plugin[{extra}]"'
        ) from error


@contextmanager
def folded(model: nn.Module, sample: Any, timesteps: int | None) -> Iterator[Subject]:
    """Fold a copy and measure it; it runs without gradient, and nothing outside hears of it."""
    if not isinstance(sample, Tensor | tuple | dict):
        raise AnalysisError(
            f"sample = {type(sample).__name__}: must be what one call of the model takes (a "
            "tensor, a tuple, a dict), so that both tools see the same. Pass one batch of a loader."
        )
    for path, module in require_model(model).named_modules():
        if is_temporal(module):
            raise AnalysisError(
                f"{path or '(model)'} ({type(module).__name__}): its weights change with the time "
                "step, and the other tools know layers that have one weight for all steps. Leave "
                "agreement out, or compare the network with static weights, as TernaryWeights."
            )
    plain = fold(model)
    try:
        with quiet_copy(plain) as net:
            report = analyze(net, sample, memory="measured", timesteps=timesteps)
            yield Subject(model, net, report, sample, timesteps)
    finally:
        for host in Hosts().all:
            host.leave(plain.modules())


@dataclass(frozen=True)
class Subject:
    """A model, its folded copy in eval mode at rest, and our report of the copy."""

    model: nn.Module
    net: nn.Module
    report: Report
    sample: Any
    timesteps: int | None

    @property
    def name(self) -> str:
        return type(self.model).__name__

    @cached_property
    def paths(self) -> dict[int, str]:
        """The path of each module by its id: the first one, as in our report."""
        return {id(module): path for path, module in self.net.named_modules()}

    @cached_property
    def layers(self) -> dict[str, OperationRow]:
        """Our rows of weight layers that were counted."""
        rows = self.report.operations
        return {row.path: row for row in rows if row.kind in ("AC", "MAC")}

    @cached_property
    def rates(self) -> dict[str, float]:
        """Our firing rates of the neuron layers that were called."""
        rows = self.report.sparsity
        return {row.path: row.firing_rate for row in rows if row.firing_rate is not None}

    def module(self, path: str) -> Any:
        return self.net.get_submodule(path)

    def in_its_own_way(self, path: str) -> bool:
        """Whether a layer's class computes something else than its host's layer."""
        return computes_in_its_own_way(self.module(path), Hosts())

    def run(self) -> int:
        """Run the copy once; how many samples its neurons saw."""
        shown = _Shown(self)
        args, kwargs = as_arguments(tree_map_only(Tensor, Tensor.clone, self.sample))
        try:
            call_model(self.net, self.timesteps, args, kwargs)
        finally:
            shown.close()
        return shown.samples()

    def notes(self) -> list[str]:
        """How the copy relates to the model itself, where it was folded."""
        if not any(isinstance(module, QuantizedLayer) for module in self.model.modules()):
            return []
        itself = analyze(self.model, self.sample, timesteps=self.timesteps).operations
        own = sum(row.nonzero for row in itself if row.kind in ("AC", "MAC"))
        copied = sum(row.nonzero for row in self.layers.values())
        said = f"the model itself meets {own:,.12g} pairs of a nonzero weight and a nonzero input"
        if own == copied:
            return [f"compared on the folded copy; {said} per sample, and so does the copy"]
        return [
            f"compared on the folded copy; {said} per sample, the copy {copied:,.12g}: it rounds "
            "in another order, so a membrane that lies on a boundary may fall to the other side"
        ]


class _Shown:
    """What tells the batch: a neuron's first output, and a layer's first input."""

    def __init__(self, subject: Subject) -> None:
        self.sizes: list[int] = []
        self.unbatched = False
        hooks = [subject.module(path).register_forward_hook(self._neuron) for path in subject.rates]
        hooks += [subject.module(p).register_forward_pre_hook(self._layer) for p in subject.layers]
        self.hooks = hooks

    def _neuron(self, neuron: nn.Module, args: Any, output: Any) -> None:
        came = first_tensor(output)
        timed = getattr(neuron, "step_mode", "s") == "m"
        if came is not None and came.ndim > timed:
            self.sizes.append(came.shape[int(timed)])

    def _layer(self, layer: Any, args: Any) -> None:
        given = first_tensor(args)
        weight = getattr(layer, "weight", None)
        if given is not None and isinstance(weight, Tensor):
            self.unbatched |= given.ndim < weight.ndim

    def samples(self) -> int:
        """The size that most outputs have; a constant beside the data has none."""
        return 1 if self.unbatched or not self.sizes else statistics.mode(self.sizes)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def alone(layer: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """A layer without hooks, gates or bias, its weight of another type if asked for."""
    twin: Any = layer.__class__.__new__(layer.__class__)
    twin.__dict__.update({name: shallow(value) for name, value in layer.__dict__.items()})
    for table in HOOK_TABLES:
        if isinstance(twin.__dict__.get(table), dict):
            twin.__dict__[table] = OrderedDict()
    twin.__dict__["_modules"] = {}
    weight = twin._parameters["weight"].detach().to(dtype, copy=True)
    twin._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    twin._parameters["bias"] = None
    return twin


def refuse_computed_weights(subject: Subject, layers: dict[str, Any], tool: str) -> None:
    """Other tools set or read ``weight`` of a layer, and must find the layer's own there."""
    for path, layer in layers.items():
        if "weight" in layer._parameters:
            continue
        how = "a parametrization" if parametrize.is_parametrized(layer) else "a hook or its class"
        raise AnalysisError(
            f"{path} ({type(layer).__name__}): its weight is computed by {how}, and {tool} counts "
            "such weights wrongly without an error, down to negative counts: the layer itself must "
            "hold the weight. Measure a copy after torch.nn.utils.parametrize."
            "remove_parametrizations(layer, 'weight')."
        )
