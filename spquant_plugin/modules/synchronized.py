"""Batch norms that measure what all processes of a training see, not their own part of it.

torch's ``SyncBatchNorm`` needs an accelerator and knows neither SpikingJelly's step modes nor our
quantised norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ..errors import ConversionError
from .norm_statistics import channel_axis, follow_statistics, global_moments, processes
from .quantized_norm import QuantizedBatchNorm

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronize_norms_(model: nn.Module) -> nn.Module:
    """Have every batch norm measure its training statistics over all processes, and return it.

    Torch's norms, SpikingJelly's in both step modes, and quantised ones. In eval mode, and where
    torch.distributed is not in use, they do what they did. Call it on the network that trains,
    after conversion and before it is wrapped in ``DistributedDataParallel``; every process must run
    the same norms in the same order, forward and backward. Processes may have batches of
    different sizes. ``state_dict`` keys stay, so that a state loads into a network without this.

    The network is changed in place. Raises :class:`~spquant_plugin.errors.ConversionError` for a
    norm with a ``forward`` of its own. A compiled network has a graph break at each norm.

    >>> import spquant_plugin as spq
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    >>> _ = spq.synchronize_norms_(net)
    >>> print(str(net[1]).split(", ")[-1])
    synchronized)
    """
    norms = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm)}
    for path, norm in norms.items():  # all of them before the first is changed
        _check(path, norm)
    for norm in norms.values():
        if isinstance(norm, QuantizedBatchNorm):
            norm.synchronized = True
        elif not isinstance(norm, SynchronizedNorm | nn.SyncBatchNorm):
            norm.__class__ = _synchronized(type(norm))
    return model


def _check(path: str, norm: Any) -> None:
    if isinstance(norm, QuantizedBatchNorm | SynchronizedNorm | nn.SyncBatchNorm):
        return
    if any(is_lazy(parameter) for parameter in norm.parameters()):
        raise ConversionError(
            f"{path or '(model)'} ({type(norm).__name__}) does not know its channels yet: must "
            "have run once. Run the network on a sample before."
        )
    owner = next(kind for kind in type(norm).__mro__ if "forward" in vars(kind))
    named = owner.__name__ in {kind.__name__ for kind in KNOWN} | {_BatchNorm.__name__}
    of_framework = owner.__module__.partition(".")[0] in ("torch", "spikingjelly")
    if not isinstance(norm, KNOWN) or not (named and of_framework) or "forward" in vars(norm):
        raise ConversionError(
            f"{path or '(model)'} ({type(norm).__name__}) normalises in its own way: must be "
            "BatchNorm1d, BatchNorm2d or BatchNorm3d, of torch, SpikingJelly or this package. Use "
            "one of those, or train with statistics of each process."
        )


class SynchronizedNorm(nn.Module):
    """Mixin: stands before the class of a batch norm, whose ``forward`` serves where it is alone.

    Classes are made when needed, one for each class of norms, under the name of that class.
    """

    weight: Any  # the framework's own
    bias: Any
    eps: float
    synchronized = True
    plain_class: type[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(input)
        axis = channel_axis(self, input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, variance, count = global_moments(x, axis)
        follow_statistics(self, mean.detach(), variance.detach() * (count / (count - 1)))
        slope = (variance + self.eps).rsqrt()
        if self.weight is not None:
            slope = slope * self.weight
        shift = -mean * slope
        if self.bias is not None:
            shift = shift + self.bias
        shape = (-1, *(1,) * (x.ndim - axis - 1))
        return (x * slope.to(x.dtype).view(shape) + shift.to(x.dtype).view(shape)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, synchronized"

    def __reduce__(self) -> tuple[Any, ...]:
        # The class has no place from which it could be imported.
        return _empty, (self.plain_class,), self.__getstate__()


_MADE: dict[type[nn.Module], Any] = {}


def _synchronized(plain: type[nn.Module]) -> Any:
    if plain not in _MADE:
        names = {"__module__": plain.__module__, "__doc__": plain.__doc__, "plain_class": plain}
        _MADE[plain] = type(plain.__name__, (SynchronizedNorm, plain), names)
    return _MADE[plain]


def _empty(plain: type[nn.Module]) -> nn.Module:
    kind = _synchronized(plain)
    return kind.__new__(kind)
