"""A network over all time steps, layer by layer, with what the loop over its steps would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..errors import KernelError
from ..modules.gates import ChannelGate
from ..modules.layers import TORCH_LAYERS, TORCH_NORMS
from ..modules.neuron import QuantizedNeuron
from .fused import fused_rule
from .neuron import TernaryLapicque, TernaryLeaky, TernarySynaptic
from .step_counter import StepClock, all_steps, clocks, in_time

FUSED = (TernaryLeaky, TernaryLapicque, TernarySynaptic)
# Layers without a state, and the axes that a batch of their inputs has. Time joins the batch; where
# a sample comes without one, time takes its place.
LAYERS: dict[type[nn.Module], int] = {
    nn.Linear: 2,
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d, nn.AvgPool1d, nn.MaxPool1d), 3),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d, nn.MaxPool2d), 4),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d, nn.MaxPool3d), 5),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), 3),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), 4),
    **dict.fromkeys((nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), 5),
}
LAYERS |= {TORCH_LAYERS[kind]: axes for kind, axes in LAYERS.items() if kind in TORCH_LAYERS}
NORMS = (*TORCH_NORMS, *TORCH_NORMS.values())
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# These need a batch.
BATCHED = (*NORMS, *DROPOUTS, nn.GroupNorm, nn.PReLU, nn.Flatten, nn.Unflatten)
# These work on single values or on the last axes, and so on all steps as they are; so do gates.
POINTWISE = (
    *(nn.Identity, nn.LayerNorm, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Softplus, nn.Softsign, nn.LogSigmoid, ChannelGate),
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def run(net: nn.Module, x_seq: Tensor) -> Any:
    """Run a ``Sequential`` of ``init_hidden`` neurons over all steps of ``x_seq [T, ...]``.

    It stands for ``[net(x) for x in x_seq]``, stacked: spikes ``[T, ...]``, or a tuple of spikes
    and states where the last neuron has ``output=True``. Like the loop it goes on from the states
    that the neurons are in, and leaves them in the same ones; gradients are the loop's as well.

    Each layer runs over all steps before the next one does: layers without a state once on all of
    them, so that weights are quantised once, and the neurons of this package as one operation. What
    this does not fit is called step by step, as the loop would: the host's own and recurrent
    neurons, inhibition, surrogates that are neither this package's nor one of the host's ``atan``,
    ``fast_sigmoid`` and ``sigmoid``, normalisation over the batch and dropout in training, modules
    with hooks, and modules that are not known. Nothing is called out of its order in time, but
    random numbers are drawn layer by layer, so that two dropouts in training mask other values.

    Given the same currents, neurons spike and store what they do in the loop to the last bit. A
    convolution or linear layer may add up the same terms in another order for a larger batch; its
    sums can then differ in their last bits, and a potential that lies that close to the threshold
    fires in one of the two only. Where sums are exact, as those of spikes and power-of-two weights
    are, nothing differs.

    Layers whose weights change with the time step are given a whole sequence at once where it
    begins and ends here, and go on step by step where it does not.

    A learnable threshold that lies on one of its bounds passes a gradient that leads inside: the
    loop asks that of each step, a run of the sum over the steps. A channel gate's ``open_mask`` is
    that of all steps where its layer ran once. Raises :class:`~spquant_plugin.errors.KernelError`
    where the network or its input cannot be run.

    >>> import spquant_plugin as spq
    >>> from spquant_plugin.snntorch import neuron
    >>> lif = neuron.TernaryLeaky(beta=0.5, init_hidden=True, output=True)
    >>> net = nn.Sequential(nn.Linear(3, 2), lif)
    >>> x_seq = torch.rand(25, 8, 3)
    >>> spikes, mem = spq.snntorch.run(net, x_seq)
    >>> spikes.shape, mem.shape, bool((lif.mem == mem[-1]).all())
    (torch.Size([25, 8, 2]), torch.Size([25, 8, 2]), True)
    """
    _check(net, x_seq)
    steps, value = _Steps(len(x_seq)), x_seq
    try:
        for group in _groups(list(_units(net, ""))):
            value = steps.through(group, value)
    finally:
        steps.finish()
    return value


class _Unit(NamedTuple):
    """A module that runs as a whole, and its path."""

    path: str
    module: nn.Module

    def __str__(self) -> str:
        return f"{self.path or '(net)'} ({type(self.module).__name__})"


class _Group(NamedTuple):
    """Modules that follow each other. A loop calls all of them in one step before the next."""

    units: Sequence[_Unit]
    loops: bool


class _Told(NamedTuple):
    """What a neuron tells channel gates of every step, and whether it began anew."""

    sums: Tensor
    began: bool


class _Steps:
    """All time steps on their way through a network."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.told: dict[QuantizedNeuron, _Told] = {}

    def through(self, group: _Group, value: Any) -> Any:
        """What a group makes of ``value [T, ...]``."""
        if group.loops:
            return self._loop(group, value)
        (unit,) = group.units
        if not isinstance(value, Tensor):
            raise KernelError(
                f"run: {unit} received a {type(value).__name__}: must be a tensor. Only the last "
                "neuron of a network may have output=True. Set output=False in the one before."
            )
        module: Any = unit.module
        if type(module) not in FUSED:
            self._show()
            result = all_steps(module, value) if in_time(module) else _at_once(module, value)
            return self._loop(group, value) if result is None else result
        rule = fused_rule(module, value)
        if rule is None:
            return self._loop(group, value)
        for clock in clocks(module):
            clock.listen()
        result = module.run_sequence(value, rule)
        for clock in clocks(module):
            clock.ran(self.count)
        if module.watched:
            self.told[module] = _Told(module.level_sums, module.began)
        return result

    def _loop(self, group: _Group, value: Any) -> Any:
        """The group step by step."""
        modules = [unit.module for unit in group.units]
        sources = [source for module in modules for source in _watched(module)]
        began: dict[QuantizedNeuron, bool] = {}
        sums: dict[QuantizedNeuron, list[Tensor]] = {source: [] for source in sources}
        results = []
        for t, x in enumerate(_split(value, self.count)):
            self._show(t)
            for module in modules:
                x = module(x)
            results.append(x)
            for source in sums:
                began.setdefault(source, source.began)
                if source.level_sums is not None:
                    sums[source].append(source.level_sums)
        for source, each in sums.items():
            if len(each) == self.count:
                self.told[source] = _Told(torch.stack(each), began[source])
        return _stacked(results, group.units[-1])

    def _show(self, step: int | None = None) -> None:
        """Let gates read what neurons before them told of one step, or of all."""
        for source, (sums, began) in self.told.items():
            source.level_sums = sums if step is None else sums[step]
            source.began = began and not step

    def finish(self) -> None:
        """Leave neurons as they are after the last step."""
        for source, (sums, began) in self.told.items():
            source.level_sums, source.began = sums[-1], began and self.count == 1


def _split(value: Any, count: int) -> list[Any]:
    """The steps of ``[T, ...]``, one by one."""
    if isinstance(value, Tensor):
        # A module may write into its input, which torch forbids for what unbind() returns.
        return [step.squeeze(0) for step in torch.unsafe_split(value, 1)]
    parts = [_split(part, count) for part in value]
    return [type(value)(part[t] for part in parts) for t in range(count)]


def _stacked(results: list[Any], unit: _Unit) -> Any:
    """Undo :func:`_split`."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.stack(results)
    if type(first) in (tuple, list):
        return type(first)(_stacked(list(part), unit) for part in zip(*results, strict=True))
    raise KernelError(
        f"run: {unit} returned {type(first).__name__}: must return a tensor or a tuple of tensors. "
        "Loop over the steps instead: for x in x_seq: net(x)."
    )


def _at_once(module: nn.Module, x_seq: Tensor) -> Tensor | None:
    """A layer on all steps together, or None for a shape of which nothing is known."""
    kind, axes = type(module), x_seq.ndim - 1
    if kind in POINTWISE or axes == LAYERS.get(kind, 0) - 1:
        return module(x_seq)
    if axes < LAYERS.get(kind, 2):
        return None
    return module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


# What runs how.


def _check(net: object, x_seq: object) -> None:
    if not isinstance(net, nn.Module) or not _is_sequential(net):
        raise KernelError(
            f"run(net={type(net).__name__}): must be an nn.Sequential, whose modules follow each "
            "other. Loop over the steps of any other: for x in x_seq: net(x)."
        )
    if not isinstance(x_seq, Tensor):
        raise KernelError(
            f"run(x_seq={type(x_seq).__name__}): must be one tensor [T, ...]. Use torch.stack."
        )
    if x_seq.ndim == 0 or len(x_seq) == 0:
        raise KernelError(
            f"run: x_seq has shape {tuple(x_seq.shape)}: must be [T, ...] with at least one time "
            "step. Put time first."
        )


def _is_sequential(module: nn.Module) -> bool:
    own = getattr(type(module), "forward", None)
    return own is nn.Sequential.forward and "forward" not in module.__dict__


def _units(module: nn.Module, path: str) -> Iterator[_Unit]:
    """What follows each other in a network."""
    if _is_sequential(module) and not _hooks(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _units(child, f"{path}.{name}" if path else name)
        return
    if isinstance(module, SpikingNeuron) and not getattr(module, "init_hidden", True):
        raise KernelError(
            f"run: {_Unit(path, module)} has init_hidden=False: must keep its states itself, since "
            "a Sequential cannot hand them in. Make it with init_hidden=True."
        )
    yield _Unit(path, module)


def _groups(units: list[_Unit]) -> list[_Group]:
    """Units that run alone, and spans of units that only a common loop runs in the right order."""
    alone = [type(unit.module) in FUSED or _folds(unit.module) for unit in units]
    spans = list(_shared(units))
    places: dict[ChannelGate, list[int]] = {}
    homes = {m: k for k, unit in reversed(list(enumerate(units))) for m in unit.module.modules()}
    for k, unit in enumerate(units):
        # Gates hear and change what a layer is called with, and are not told of what it runs here.
        hooked = in_time(unit.module) and _hooks(unit.module)
        alone[k] = not hooked and alone[k] and not _is_altered(unit.module)
        for gate in _gates(unit.module, inside=not alone[k]):
            places.setdefault(gate, []).append(k)
    for gate, where in places.items():
        home = None if gate.neuron is None else homes.get(gate.neuron)
        if home is None:
            # Nothing in this network tells the gate of all steps.
            for k in where:
                alone[k] = False
        elif home > where[0]:
            spans.append((where[0], max(home, where[-1])))
    for where in places.values():
        if not all(alone[k] for k in where):
            spans.append((where[0], where[-1]))  # what it heard has to be of the step it acts on
    groups: list[_Group] = []
    start = 0
    while start < len(units):
        end, grown = start, True
        while grown:
            reached = max([end, *(b for a, b in spans if start <= a <= end)])
            grown, end = reached > end, reached
        loops = end > start or not alone[start]
        groups.append(_Group(units[start : end + 1], loops))
        start = end + 1
    return groups


def _shared(units: list[_Unit]) -> Iterator[tuple[int, int]]:
    """Spans between the uses of one module: it may carry something from the one to the other."""
    uses: dict[nn.Module, list[int]] = {}
    for k, unit in enumerate(units):
        # A layer whose weight changes counts its calls in their order.
        carries = not _folds(unit.module) or in_time(unit.module)
        for module in unit.module.modules() if carries else ():
            if module is unit.module or module._parameters or module._buffers:
                uses.setdefault(module, []).append(k)
    for where in uses.values():
        if where[-1] > where[0]:
            yield where[0], where[-1]


def _folds(module: nn.Module) -> bool:
    """Whether a module gives for all steps together what it gives for each."""
    own: Any = module
    kind = type(module)
    if kind in NORMS:
        return not own.training and own.running_mean is not None
    if getattr(own, "folded_norm", ()) and own.folded_norm[0].training:
        return False  # it takes the statistics of each step
    if kind in DROPOUTS:
        return not own.training
    if kind in (nn.Flatten, nn.Unflatten):
        axis = own.start_dim if kind is nn.Flatten else own.dim
        return isinstance(axis, int) and axis >= 1
    known = kind in LAYERS or kind in BATCHED or kind in POINTWISE
    return known and not getattr(own, "return_indices", False)


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for name in HOOKS for hook in getattr(module, name).values()]


def _owner(hook: object) -> ChannelGate | StepClock | None:
    """The module of the network whose method a hook is, where it can act on all steps together."""
    owner = getattr(hook, "__self__", None)
    if isinstance(owner, StepClock):
        return owner
    return owner if type(owner) is ChannelGate and owner.channel_dim is not None else None


def _is_altered(module: nn.Module) -> bool:
    """Whether a module does more than its class says."""
    gates = [part for part in module.modules() if isinstance(part, ChannelGate)]
    foreign = [hook for hook in _hooks(module) if _owner(hook) is None]
    return bool("forward" in module.__dict__ or foreign or any(map(_hooks, gates)))


def _gates(module: nn.Module, *, inside: bool) -> list[ChannelGate]:
    """Gates that act on a module or listen to it; on request also those of all inside."""
    parts = list(module.modules()) if inside else [module]
    found = [getattr(hook, "__self__", None) for part in parts for hook in _hooks(part)]
    return [gate for gate in dict.fromkeys([*found, *parts]) if isinstance(gate, ChannelGate)]


def _watched(module: nn.Module) -> list[QuantizedNeuron]:
    return [m for m in module.modules() if isinstance(m, QuantizedNeuron) and m.watched]
