"""``verify``: every spike and every stored membrane, compared with the trained model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..convert.hosts import require_model, reset
from ..convert.trace import cannot_run, quiet_copy, tensors_in
from ..errors import DeployError
from ..modules.neuron import QuantizedNeuron
from ..table import render
from .graph import WHOLE
from .hooks import refuse_hooks
from .modes import plain_mode
from .network import IntegerNetwork


@dataclass(frozen=True)
class Mismatch:
    """The first place where two networks differ: what, where, and both values."""

    what: str  # "spike", "membrane" or "output"
    step: int
    sample: int
    index: tuple[int, ...]
    expected: float
    received: float

    def __str__(self) -> str:
        return (
            f"{self.what} at step {self.step}, sample {self.sample}, {self.index}: the model has "
            f"{self.expected:g}, the integer network {self.received:g}"
        )


@dataclass(frozen=True)
class LayerCheck:
    """What was compared in one neuron layer (or an output), and how much differs."""

    path: str
    compared: int
    different: int
    first: Mismatch | None
    rate: float  # share of spikes, or of values that are not zero

    @property
    def exact(self) -> bool:
        """Whether everything is the same."""
        return self.different == 0


@dataclass(frozen=True)
class Verification:
    """The comparison, layer by layer. ``exact`` says that not one value differs."""

    layers: tuple[LayerCheck, ...]
    outputs: tuple[LayerCheck, ...]
    samples: int

    @property
    def exact(self) -> bool:
        """Whether all spikes, all stored membranes and all outputs are the same."""
        return all(check.exact for check in (*self.layers, *self.outputs))

    @property
    def first(self) -> LayerCheck | None:
        """The first layer, in the order they run, that differs."""
        return next((check for check in (*self.layers, *self.outputs) if not check.exact), None)

    def table(self) -> str:
        """A row for each layer."""
        rows = [
            (
                check.path,
                f"{check.compared:,}",
                f"{check.different:,}",
                f"{100 * check.rate:.1f} %",
                "" if check.first is None else str(check.first),
            )
            for check in (*self.layers, *self.outputs)
        ]
        verdict = "equal" if self.exact else "NOT equal"
        head = f"verification on {self.samples} samples: {verdict}"
        return f"{head}\n{render(('layer', 'compared', 'different', 'active', 'first'), rows)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "exact": self.exact,
            "samples": self.samples,
            "layers": [asdict(check) for check in self.layers],
            "outputs": [asdict(check) for check in self.outputs],
        }

    def __str__(self) -> str:
        return self.table()


def verify(net: IntegerNetwork, model: nn.Module, x: Tensor) -> Verification:
    """Compare an integer network with the model that it was lowered from, value by value.

    ``x`` is what ``net`` takes: a sequence ``[T, N, ...]``, also for a model that takes single
    steps (a copy of it is then called once per step), or one input ``[N, ...]`` for a model that
    repeats it. A copy of the model runs from rest in eval mode; the model itself is left at rest.

    >>> import torch, spquant_plugin as spq
    >>> from spikingjelly.activation_based import layer, neuron
    >>> model = torch.nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 2))
    >>> model = spq.convert(model, spq.presets.quant_snn())
    >>> net = spq.to_integer(model, torch.ones(1, 6))  # one step: the model is in step mode "s"
    >>> spq.verify(net, model, torch.randint(0, 2, (10, 32, 6)).float()).exact
    True
    """
    _check(net, model)
    run = net.run(x, record=True)
    try:
        seen, outputs = _run_model(net, model, x)
    finally:
        reset(model)
    missing = sorted(set(run.spikes) - set(seen))
    if missing:
        raise DeployError(
            f"{missing[0]}: is a neuron layer of only one of the two: must be the model that the "
            "network was lowered from. Lower it anew with spq.to_integer."
        )
    layers = tuple(
        _compare(path, ("spike", "membrane"), seen[path], (run.spikes[path], run.membranes[path]))
        for path in run.spikes
    )
    if len(outputs) != len(run.outputs):
        raise DeployError(
            f"the model returns {len(outputs)} tensors, the integer network {len(run.outputs)}: "
            "must be the model that the network was lowered from. Lower it anew."
        )
    checks = tuple(
        _compare(f"(output {number})", ("output",), (expected,), (received,))
        for number, (expected, received) in enumerate(zip(outputs, run.outputs, strict=True), 1)
    )
    samples = run.integers[0].shape[1]
    return Verification(layers, checks, samples)


def _check(net: object, model: object) -> None:
    if not isinstance(net, IntegerNetwork):
        raise DeployError(
            f"net = {type(net).__name__}: must be an IntegerNetwork. Use spq.to_integer(model, x)."
        )
    refuse_hooks(require_model(model))


def _run_model(
    net: IntegerNetwork, model: nn.Module, x: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    """Spikes and stored levels ``[T, N, ...]`` of every neuron that ran, and what is returned."""
    spikes: dict[str, list[Tensor]] = {}
    levels: dict[str, list[Tensor]] = {}
    with plain_mode(), quiet_copy(model) as copy:
        for path, neuron in copy.named_modules():
            path = path or WHOLE
            if isinstance(neuron, QuantizedNeuron):
                neuron.register_forward_hook(_keep_spikes(path, neuron, spikes), prepend=True)
                neuron.watched = True
                neuron._tell = _keep_levels(path, neuron, levels)  # type: ignore[method-assign]
        try:
            outputs = _call(copy, net.graph.takes, x)
        except Exception as error:
            raise cannot_run(model, x, error) from error
    untold = sorted(set(spikes) - set(levels))
    if untold:
        raise DeployError(
            f"{untold[0]}: tells nothing of the membrane that it stores: its forward must be that "
            "of its class. Remove what replaces it."
        )
    return {path: (torch.cat(spikes[path]), torch.cat(levels[path])) for path in spikes}, outputs


def _call(copy: nn.Module, takes: str, x: Tensor) -> list[Tensor]:
    if takes != "step":
        return [*tensors_in(copy(x.clone()))]
    each = [[*tensors_in(copy(step.clone()))] for step in x]
    return [torch.stack(list(parts)) for parts in zip(*each, strict=True)]


def _keep_spikes(
    path: str, neuron: Any, spikes: dict[str, list[Tensor]]
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        train = next(tensors_in(output)).detach().cpu() / neuron.spike_size
        multi = getattr(neuron, "step_mode", "s") == "m"
        spikes.setdefault(path, []).append(train if multi else train.unsqueeze(0))

    return hook


def _keep_levels(path: str, neuron: Any, levels: dict[str, list[Tensor]]) -> Callable[..., None]:
    tell = neuron._tell

    def keep(steps: Iterable[Tensor], **options: Any) -> None:
        steps = list(steps)
        stored = torch.stack([neuron.stored_levels(step) for step in steps])
        levels.setdefault(path, []).append(stored.cpu())
        tell(steps, **options)

    return keep


def _compare(
    path: str,
    words: tuple[str, ...],
    expected: tuple[Tensor, ...],
    received: tuple[Tensor, ...],
) -> LayerCheck:
    compared = different = 0
    found: list[Mismatch] = []
    for what, want, got in zip(words, expected, received, strict=True):
        if want.shape != got.shape:
            raise DeployError(
                f"{path}: the model gave shape {tuple(want.shape)}, the integer network "
                f"{tuple(got.shape)}: must be the same. Lower the model anew."
            )
        want, got = want.detach().cpu().double(), got.double()
        wrong = want != got
        compared, different = compared + want.numel(), different + int(wrong.sum())
        if bool(wrong.any()):
            place = tuple(wrong.nonzero()[0].tolist())
            step, sample = (*place, 0, 0)[:2]
            values = float(want[place]), float(got[place])
            found.append(Mismatch(what, step, sample, place[2:], *values))
    # A membrane that differs makes a spike differ in a later step; the earlier one tells more.
    first = min(found, key=lambda mismatch: mismatch.step, default=None)
    rate = float((received[0] != 0).double().mean())
    return LayerCheck(path, compared, different, first, rate)
