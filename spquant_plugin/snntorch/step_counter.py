"""In which time step a layer is, told by a neuron: snnTorch's layers are torch's own.

A sequence begins where the neurons are reset, and snnTorch resets a neuron by giving it a new
``mem``: ``utils.reset(net)``, ``mem = lif.init_leaky()`` and ``spq.reset(model)`` do. So one clock
for the whole model remembers the membrane that one neuron left, and another one there is a reset.
Each layer asks the clock before it counts. Thus layers before the neuron, which run first, hear a
reset as soon as those behind it.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..errors import TimestepError
from ..modules.quantized_layer import QuantizedLayer
from ..modules.step_counter import StepCounter


class StepClock(nn.Module):
    """Brings counters back to the first step when a neuron was reset."""

    # A dry run leaves out the hooks of a model, which report to the outside; not those of a clock.
    acts_by_hooks = True

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        # In tuples: neuron and layers are modules of the network, not of the clock.
        self.follow(neuron, "")
        self._counters: tuple[NeuronStepCounter, ...] = ()
        self.calls = 0  # of the neuron since its reset
        self.left: Tensor | None = None
        self._began = 0  # steps that layers had begun when the neuron was last called
        self._several = False  # calls of the neuron in one step
        neuron.register_forward_pre_hook(self.before, with_kwargs=True)
        neuron.register_forward_hook(self.after)

    @property
    def neuron(self) -> nn.Module:
        """The neuron that is listened to."""
        return self._neuron[0]

    def follow(self, neuron: nn.Module, path: str) -> None:
        """Listen to this neuron, which holds the clock's hooks."""
        self._neuron, self.path = (neuron,), path

    def count_for(self, counter: NeuronStepCounter) -> None:
        """Tell a counter of resets, too."""
        self._counters += (counter,)

    def begun(self) -> int:
        """Steps of this sequence that layers have begun."""
        return max((counter.step for counter in self._counters), default=0)

    def begin(self) -> None:
        """A new sequence."""
        self.calls, self._began, self._several, self.left = 0, 0, False, None
        for counter in self._counters:
            counter.restart()

    def listen(self) -> None:
        """Begin anew where the neuron was reset since it last ran, or since somebody asked."""
        membrane: Any = self.neuron.mem
        if membrane is self.left:
            return
        # A membrane that was moved to another device, say, is another tensor, and goes on.
        if self.left is None or torch.compiler.is_compiling() or not membrane.any():
            self.begin()
        self.left = membrane

    def before(self, neuron: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The neuron is called."""
        if neuron is not self.neuron:  # conversion has handed this hook to the neuron's twin
            self.follow(neuron, self.path)
        self.listen()
        if torch.compiler.is_compiling():
            return  # the checks look at values
        begun = self.begun()
        self._several |= self.calls > 0 and begun == self._began
        self._began = begun
        # In the first step a membrane may come from anywhere; and a neuron that layers share is
        # handed what it left in another call.
        if self.calls > 0 and begun > 1 and not self._several:
            self._check(neuron, args, kwargs)

    def after(self, neuron: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The neuron has run."""
        self.ran()

    def ran(self, steps: int = 1) -> None:
        """The neuron has run ``steps`` steps."""
        self.calls += steps
        self.left = self.neuron.mem  # type: ignore[assignment]

    def _check(self, neuron: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a new start that layers before this neuron cannot have heard."""
        given = handed_membrane(neuron, args, kwargs)
        current = args[0] if args else kwargs["input_"]
        held = neuron.mem if given is None else given
        what = None
        if held.shape != current.shape:
            what = f"an input of shape {tuple(current.shape)} for a membrane of another shape, "
            what += f"{tuple(held.shape)}"
        elif held is not self.left and not _share(held, self.left) and not held.any():
            what = "a membrane of zeros that it did not leave"
        if what is not None:
            raise TimestepError(
                f"{named(self.path, neuron)}: received {what}, after {self.calls} steps: it starts "
                "anew, and layers whose weights change with the time step run before it and could "
                f"not hear that. Begin a sequence by {self.remedies()}."
            )

    def remedies(self) -> str:
        """The calls that begin a sequence."""
        kind = next(base for base in type(self.neuron).__mro__ if base.__module__ in HOSTS_OWN)
        start = f"init_{kind.__name__.lower()}()"
        own = f"{self.path}.{start}" if self.path else start
        return f"spq.reset(model), snntorch.utils.reset(net) or {own}"

    def _replicate_for_data_parallel(self) -> Any:
        raise TimestepError(
            f"{named(self.path, self.neuron)}: nn.DataParallel copies modules for one call, so "
            "that no time step would follow another: layers whose weights change with the time "
            "step must stay the same modules. Use DistributedDataParallel."
        )

    def extra_repr(self) -> str:
        return f"neuron={self.path or type(self.neuron).__name__}"


class NeuronStepCounter(StepCounter):
    """Counts the calls of one layer from the last reset of the model's first neuron.

    A recurrent layer inside a neuron takes one step in each call of that neuron: for some resets
    the host's neurons call it twice.

    >>> import snntorch as snn
    >>> lif = snn.Leaky(beta=0.5)
    >>> counter = NeuronStepCounter(StepClock(lif))
    >>> counter.next(4), counter.next(4)
    (0, 1)
    >>> mem = lif.init_leaky()
    >>> counter.next(4)
    0
    """

    clock: StepClock

    def __init__(self, clock: StepClock, *, inside: bool = False) -> None:
        super().__init__()
        self.clock = clock
        self.inside = inside
        self._call = -1
        clock.count_for(self)

    def next(self, timesteps: int) -> int:
        if not self.inside:  # the running neuron may fit its states to the input
            self.clock.listen()
        elif self._call == self.clock.calls:
            return self.step - 1
        if self.step >= timesteps:
            clock = self.clock
            raise TimestepError(
                f"received step {self.step + 1} of a sequence of {timesteps} steps, and the "
                "weights of further steps do not exist: no reset of "
                f"{named(clock.path, clock.neuron)} was heard since the sequence began, and "
                f"membranes made by hand cannot be heard. Begin each sequence by {clock.remedies()}"
                ", and give timesteps= the number of steps."
            )
        self._call = self.clock.calls
        return super().next(timesteps)

    def rest(self) -> None:
        self.clock.begin()

    def restart(self) -> None:
        """The clock says that a sequence begins."""
        super().rest()
        self._call = -1

    def ran(self, steps: int) -> None:
        """The layer was given ``steps`` steps at once."""
        self.step += steps


HOSTS_OWN = {
    f"snntorch._neurons.{name}" for name in ("leaky", "lapicque", "synaptic", "rleaky", "rsynaptic")
}


def tells_time(module: nn.Module) -> bool:
    """Whether a module is a neuron whose resets can be heard."""
    return isinstance(module, SpikingNeuron) and any(
        base.__module__ in HOSTS_OWN for base in type(module).__mro__
    )


def attach(layer: Any, model: nn.Module) -> None:
    """Give a layer a counter by the first neuron of a model, or by the neuron that it is inside.

    Nothing happens where no neuron of the model could tell.
    """
    paths = {module: path for path, module in model.named_modules()}
    neurons = [module for module in paths if tells_time(module)]
    around = [neuron for neuron in neurons if any(part is layer for part in neuron.modules())]
    for neuron in (*around, *neurons)[:1]:
        clock = next(iter(clocks(neuron)), None) or StepClock(neuron)
        clock.follow(neuron, paths[neuron])
        if getattr(layer.counter, "clock", None) is not clock:
            layer.counter = NeuronStepCounter(clock, inside=bool(around))


def in_time(module: nn.Module) -> bool:
    """Whether the weight of a module changes with the time step."""
    return isinstance(module, QuantizedLayer) and module.is_temporal


def all_steps(layer: Any, x_seq: Tensor) -> Tensor | None:
    """What a layer makes of a whole sequence, and its counter where the loop would leave it.

    None for a sequence that does not begin and end with this input. Its steps go one by one.
    """
    counter = layer.counter
    if not isinstance(counter, NeuronStepCounter) or len(x_seq) != layer.timesteps:
        return None
    counter.clock.listen()
    if counter.step:
        return None
    result: Tensor = layer.forward_steps(x_seq)
    counter.ran(len(x_seq))
    return result


def clocks(module: nn.Module) -> list[StepClock]:
    """The clocks that listen to a module."""
    owners = [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]
    return [owner for owner in owners if isinstance(owner, StepClock)]


def handed_membrane(neuron: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The membrane that a neuron is called with, where the host's signature has it."""
    place = _membrane_place(neuron.__class__)
    return kwargs.get("mem", args[place] if len(args) > place else None)


@cache
def _membrane_place(kind: type[nn.Module]) -> int:
    return list(inspect.signature(kind.forward).parameters).index("mem") - 1  # without self


def named(path: str, module: nn.Module) -> str:
    """A module for a message."""
    return f"{path or '(model)'} ({type(module).__name__})"


def _share(one: Tensor, other: Tensor | None) -> bool:
    """Whether tensors are the same memory, as that of a detached membrane is."""
    if other is None:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() != 0
