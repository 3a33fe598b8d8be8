"""Training channel gates: which channels close, when, and how their share is held."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..errors import GateError, GateWarning
from ..modules.gates import ChannelGate
from ..modules.norm_statistics import processes
from ..records import is_finite_number
from .gate_state import SETTINGS, check_state
from .gating import channel_gates, check_target

TOLERANCE = 0.05


class GateSchedule:
    r"""Closes a share ``target`` of every gate's channels, and holds it through training.

    Two lines in a training loop: make it once, beside the optimizer, and call :meth:`step` after
    every ``optimizer.step()``, while the gradients are still there. ``steps`` is how often that
    will be.

    During the first twentieth of the steps (``warmup``) the gates stay open and each channel's
    importance is measured, the mean square of the gradient that its gate receives. Then the least
    important channels close at once: biases are set in the order of importance, with a standard
    deviation of ``spread``. From there on the gates learn by the task's loss, so that decisions
    follow the input, while every gate's bias is moved by ``rate`` times what its closed fraction
    lacks. A smaller ``spread`` leaves more of the decision to the input. Gates that an earlier
    training closed take ``warmup=0``: nothing is measured or closed anew, the share is held.

    Gates take only the share ``pace`` of every step of the optimizer: a decision that changes
    faster than the weights around it can follow is noise to them. So load a network's state before
    its schedule is made, which remembers the gates. At the last step a
    :class:`~spquant_plugin.errors.GateWarning` names those more than 0.05 from the target.

    >>> import torch, spquant_plugin as spq
    >>> net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=10, width=0.25)
    >>> x = torch.rand(4, 2, 2, 16, 16).round()
    >>> net = spq.convert(net, spq.presets.spquant_snn(), sample=x)
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> gates = spq.GateSchedule(net, target=0.5, steps=20)
    >>> for _ in range(20):
    ...     spq.reset(net)
    ...     optimizer.zero_grad()
    ...     net(x).square().mean().backward()
    ...     optimizer.step()
    ...     gates.step()
    >>> all(abs(closed - 0.5) <= 0.05 for closed in gates.closed.values())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        target: float = 0.5,
        *,
        steps: int,
        warmup: int | None = None,
        spread: float = 1.0,
        rate: float = 0.2,
        pace: float = 0.3,
    ) -> None:
        self.gates = dict(channel_gates(model))
        if not self.gates:
            raise GateError(
                f"GateSchedule: {type(model).__name__} holds no channel gate: must hold at least "
                "one. Convert with channel_gate=ChannelGate(...)."
            )
        self.target = check_target("GateSchedule", target)
        softmax = [path for path, gate in self.gates.items() if gate.rule.score == "softmax"]
        if softmax:
            raise GateError(
                f"{softmax[0]} (ChannelGate): score='softmax' leaves no share of channels to "
                "choose, so a schedule cannot hold one: must be 'sigmoid'. Use gate_loss, or "
                "score='sigmoid'."
            )
        self.steps = _whole("steps", steps, 2)
        self.warmup = max(1, steps // 20) if warmup is None else _whole("warmup", warmup, 0)
        if self.warmup >= self.steps:
            raise GateError(
                f"GateSchedule(warmup={self.warmup}, steps={self.steps}): must leave steps after "
                "the warmup, in which channels are closed. Lower warmup."
            )
        self.spread, self.rate = _positive("spread", spread), _positive("rate", rate)
        self.pace = _positive("pace", pace)
        if self.pace > 1:
            raise GateError(
                f"GateSchedule(pace={pace!r}): must be a number above 0 and at most 1, where gates "
                "follow the optimizer fully. Lower it."
            )
        self.taken = 0
        self._importance: dict[str, Tensor] = {}
        self._closed: dict[str, Tensor] = {}
        self._remember()

    def _remember(self) -> None:
        """Keep what the gates are before the optimizer's next step."""
        self._left = {name: value.detach().clone() for name, value in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, gate in self.gates.items():
            for name, value in gate.named_parameters():
                yield f"{path}.{name}", value

    @property
    def closed(self) -> dict[str, float]:
        """Closed fraction of every gate by its path, averaged over the last ten steps or so."""
        return {path: float(closed) for path, closed in self._closed.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Follow one step of the optimizer."""
        self.taken += 1
        if self.taken == self.warmup + 1 and self.warmup:
            self._check_weighed()
        for name, value in self._parameters():
            value.lerp_(self._left[name].to(value), 1 - self.pace)
        for path, gate in self.gates.items():
            if self.taken <= self.warmup:
                self._weigh(path, gate)
            else:
                self._steer(path, gate)
            if self.taken == self.warmup:
                self._close(path, gate)
        self._remember()
        if self.taken == self.steps:
            self._check_reached()

    def _weigh(self, path: str, gate: ChannelGate) -> None:
        """Add to a channel's importance what closing it would have changed in this batch."""
        gradient = gate.bias.grad
        if gradient is None:
            raise GateError(
                f"{path or '(model)'} (ChannelGate): its bias has no gradient: step() must be "
                "called after loss.backward() and before zero_grad()."
            )
        known = self._importance.get(path, torch.zeros_like(gradient))
        # A scaler of mixed precision skips steps whose gradients overflowed.
        self._importance[path] = known + gradient.square().nan_to_num(0.0, posinf=0.0)

    def _check_weighed(self) -> None:
        """A single gate may see no gradient, where its layer is dead; not all of them."""
        if not any(bool(importance.any()) for importance in self._importance.values()):
            raise GateError(
                f"GateSchedule: in {self.warmup} steps every gradient of every gate was 0: step() "
                "must be called after loss.backward() and before zero_grad()."
            )

    def _close(self, path: str, gate: ChannelGate) -> None:
        """Order the biases by importance, and put the threshold where the share is closed."""
        tiny = torch.finfo(gate.bias.dtype).tiny
        order = self._importance[path].clamp(min=tiny).log()
        order = (order - order.mean()) / order.std(correction=0).clamp(min=tiny)
        ranked = order.sort().values
        count = min(round(self.target * len(ranked)), len(ranked) - 1)
        cut = ranked[0] - 1 if count == 0 else (ranked[count - 1] + ranked[count]) / 2
        gate.bias.copy_(gate.threshold_logit + self.spread * (order - cut))

    def _steer(self, path: str, gate: ChannelGate) -> None:
        """Move all biases of a gate by what its last closed fraction lacks."""
        closed = gate.closed_fraction()
        if closed is None:
            raise GateError(
                f"{path or '(model)'} (ChannelGate): has not run since the schedule was made: "
                "step() must follow a training step of the network."
            )
        mask = gate.open_mask
        closed = _over_processes(closed, 1 if mask is None else mask[..., 0].numel())
        gate.bias.sub_(self.rate * (self.target - closed))
        # On the gate's device, so that no step waits for the accelerator.
        self._closed[path] = 0.9 * self._closed.get(path, closed) + 0.1 * closed

    def _check_reached(self) -> None:
        missed = {
            path: closed
            for path, closed in self.closed.items()
            if abs(closed - self.target) > TOLERANCE
        }
        if missed:
            listed = ", ".join(f"{path} {closed:.3f}" for path, closed in missed.items())
            warnings.warn(
                f"target = {self.target:g}: {len(missed)} of {len(self.gates)} gates did not reach "
                f"it within {TOLERANCE:g}, but closed {listed}. Train longer, raise rate, or "
                "choose a target that their channels and score allow.",
                GateWarning,
                stacklevel=4,  # above no_grad and step
            )

    @property
    def settings(self) -> dict[str, float]:
        """What the schedule was made with, as numbers."""
        return {name: getattr(self, name) for name in SETTINGS}

    def state_dict(self) -> dict[str, object]:
        """All that a resumed training needs, for ``torch.save`` and ``load(weights_only=True)``."""
        return {
            "settings": self.settings,
            "taken": self.taken,
            "importance": {path: value.clone() for path, value in self._importance.items()},
            "closed": {path: value.clone() for path, value in self._closed.items()},
            "gates": {name: value.clone() for name, value in self._left.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict` of a schedule of the same network with the same arguments.

        The network's own state may be loaded before or after. Raises
        :class:`~spquant_plugin.errors.GateError` that says what differs.
        """
        gates = dict(self._parameters())
        importance = {path: gate.bias for path, gate in self.gates.items()}
        check_state(state, self.settings, gates, importance)
        self.taken = state["taken"]
        parts = {"importance": self._importance, "closed": self._closed, "gates": self._left}
        for name, part in parts.items():
            likes = gates if name == "gates" else importance
            part.clear()
            for path, value in state[name].items():
                part[path] = value.detach().to(likes[path].device, copy=True)


def _over_processes(value: Tensor, decisions: int) -> Tensor:
    """Mean over all decisions of a distributed training, whose parameters must stay equal."""
    if processes() == 1:
        return value
    total = torch.stack([value * decisions, torch.full_like(value, decisions)])
    dist.all_reduce(total)
    return total[0] / total[1]


def _whole(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise GateError(
            f"GateSchedule({name}={value!r}): must be a whole number from {low} on, counting the "
            "optimizer's steps. For example steps=epochs * len(loader)."
        )
    return value


def _positive(name: str, value: object) -> float:
    if not is_finite_number(value) or value <= 0:  # type: ignore[operator]
        raise GateError(f"GateSchedule({name}={value!r}): must be a number above 0. Leave it out.")
    return float(value)  # type: ignore[arg-type]
