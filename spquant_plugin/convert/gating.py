"""What the channel gates of a network do, as a loss and as numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import GateError
from ..modules.gates import ChannelGate
from ..records import is_finite_number
from .hosts import require_model


def gate_loss(model: nn.Module, target: float) -> Tensor:
    r"""Mean over gated layers of (closed fraction of the last forward - target)\ :sup:`2`.

    Add it to the task's loss. Where one sequence is a loop of single steps, the last forward is all
    steps since the states began. Raises :class:`~spquant_plugin.errors.GateError` where the network
    has no channel gate, or one that did not run.

    >>> import torch, spquant_plugin as spq
    >>> net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=10, width=0.25)
    >>> x = torch.rand(4, 1, 2, 16, 16).round()
    >>> net = spq.convert(net, spq.presets.spquant_snn(), sample=x)
    >>> _ = net(x)  # gates start open
    >>> spq.gate_loss(net, target=0.5).item()
    0.25
    """
    target = check_target("gate_loss", target)
    fractions = dict(_closed_fractions(model))
    if not fractions:
        raise GateError(
            f"gate_loss: {type(model).__name__} holds no channel gate: must hold at least one. "
            "Convert with channel_gate=ChannelGate(...), or leave the loss out."
        )
    return torch.stack([(closed - target) ** 2 for closed in fractions.values()]).mean()


def gate_stats(model: nn.Module) -> dict[str, float]:
    """Closed fraction of the last forward for every channel gate, by its path.

    Raises :class:`~spquant_plugin.errors.GateError` for a gate that did not run.

    >>> import torch, spquant_plugin as spq
    >>> net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=10, width=0.25)
    >>> x = torch.rand(4, 1, 2, 16, 16).round()
    >>> net = spq.convert(net, spq.presets.spquant_snn(), sample=x)
    >>> _ = net(x)
    >>> spq.gate_stats(net)
    {'conv2.channel_gate': 0.0, 'conv3.channel_gate': 0.0, 'conv4.channel_gate': 0.0}
    """
    return {path: float(closed.detach()) for path, closed in _closed_fractions(model)}


def check_target(owner: str, target: object) -> float:
    """A share of channels to close."""
    if not is_finite_number(target) or not 0 <= target < 1:  # type: ignore[operator]
        raise GateError(
            f"{owner}(target={target!r}): must be at least 0 and below 1, the share of channels to "
            "close. For example 0.5."
        )
    return float(target)  # type: ignore[arg-type]


def channel_gates(model: nn.Module) -> Iterator[tuple[str, ChannelGate]]:
    """Every channel gate of a network, with its path."""
    for path, module in require_model(model).named_modules():
        if isinstance(module, ChannelGate):
            yield path, module


def _closed_fractions(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, gate in channel_gates(model):
        closed = gate.closed_fraction()
        if closed is None:
            raise GateError(
                f"{path or '(model)'} (ChannelGate): has not run yet, so nothing is known of what "
                "it closes. Run the network first."
            )
        yield path, closed
