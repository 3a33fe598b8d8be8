"""Who computes the recurrence: chosen by name, by environment, or left to the package."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from types import ModuleType, TracebackType

from torch import Tensor

from ..errors import KernelError, KernelWarning
from . import eager, native
from .build import NoCompiler
from .inputs import Gradients, Inputs, Needs, Outputs, Wanted
from .rule import Rule

PROVIDERS = ("eager", "compiled", "auto")
SAVED_BITS = (32, 16, 8)
VARIABLE = "SPQUANT_KERNELS"


class _State:
    """What is chosen in this process."""

    name: str | None = None  # None: as the environment says
    saved_bits = 32
    broken: str | None = None  # why nothing can be compiled for this processor
    broken_gpu: str | None = None


class use:
    """Choose who computes the membrane recurrence, from now on or for the length of a ``with``.

    ``"eager"`` is plain torch, step by step. ``"compiled"`` is one kernel for all steps: built by
    the C++ compiler of this machine for tensors on a CPU, by ``torch.compile`` on a GPU. ``"auto"``
    compiles where that is possible. Without a call the environment variable ``SPQUANT_KERNELS``
    decides, else ``"auto"``. All give the same spikes and membranes, bit for bit, and gradients
    that agree to rounding.

    ``saved_bits`` is what a training step keeps of each neuron and time step: 32, its input, which
    gives exact gradients; or 16 or 8, a code of the distance to the threshold, with gradients that
    are rounded accordingly and spikes that are the same.

    >>> import spquant_plugin as spq
    >>> with spq.kernels.use("eager"):
    ...     spq.kernels.provider()
    'eager'
    """

    def __init__(self, name: str = "auto", *, saved_bits: int = 32) -> None:
        _check(name, "use")
        if saved_bits not in SAVED_BITS:
            raise KernelError(f"use(saved_bits={saved_bits!r}): must be 32, 16 or 8.")
        self._before = _State.name, _State.saved_bits
        _State.name, _State.saved_bits = name, saved_bits

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _State.name, _State.saved_bits = self._before


def provider() -> str:
    """The name that is chosen: ``"eager"``, ``"compiled"`` or ``"auto"``."""
    if _State.name is not None:
        return _State.name
    name = os.environ.get(VARIABLE) or "auto"
    _check(name, f"the environment variable {VARIABLE}")
    return name


def saved_bits() -> int:
    """Bits that a training step keeps of each neuron and time step."""
    return _State.saved_bits


def _check(name: object, source: str) -> None:
    if name not in PROVIDERS:
        raise KernelError(f"{source}: received {name!r}, must be one of {', '.join(PROVIDERS)}.")


def forward(inputs: Inputs, rule: Rule, wanted: Wanted) -> tuple[Outputs, Tensor | None]:
    """One forward pass by the chosen provider."""
    module = _module(inputs.x, rule)
    if module is not eager:
        try:
            return module.forward(inputs, rule, wanted)
        except NoCompiler as error:
            give_up(error)
    return eager.forward(inputs, rule, wanted)


def backward(
    inputs: Inputs, code: Tensor | None, rule: Rule, arriving: Outputs, needs: Needs
) -> Gradients:
    """One backward pass by the chosen provider."""
    module = _module(inputs.x, rule)
    if module is not eager:
        try:
            return module.backward(inputs, code, rule, arriving, needs)
        except NoCompiler as error:
            give_up(error)
    return eager.backward(inputs, code, rule, arriving, needs)


def _module(x: Tensor, rule: Rule) -> ModuleType:
    if native_runs(x) and not rule.smooth:
        return native
    wanted = provider() != "eager" and not _State.broken_gpu and not rule.smooth
    if wanted and x.device.type == "cuda" and x.numel():
        return import_module(".inductor", __package__)  # loads torch's compiler: a second or two
    return eager


def native_runs(x: Tensor) -> bool:
    """Whether code compiled for this processor computes with this tensor."""
    wanted = provider() != "eager" and not _State.broken
    return wanted and x.device.type == "cpu" and x.numel() > 0


def give_up(error: NoCompiler) -> None:
    """Warn once that nothing can be compiled on this machine, and do without from now on."""
    if error.gpu:
        _State.broken_gpu = str(error)
    else:
        _State.broken = str(error)
    warnings.warn(
        f"the membrane recurrence cannot be compiled: {error}. It runs step by step in torch, "
        "with the same results, but several times slower. spquant_plugin.kernels.use('eager') "
        "chooses this without a warning.",
        KernelWarning,
        stacklevel=3,
    )
