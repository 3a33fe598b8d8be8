"""SpikingJelly neurons with a quantised membrane and, on request, a learnable threshold.

They subclass ``BaseNode`` and carry any membrane of the configuration, not only the ternary one.
The host's names ``TernaryIFNode`` and ``TernaryLIFNode`` mean ternary *spikes*; these mean ternary
*membranes*.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import LearnableThreshold, TernaryMembrane, _Membrane
from ..modules.spatial_gate import _SpatialGate
from .constants import time_constant
from .membrane_node import _QuantizedMembraneNode

__all__ = [
    "TernaryMembraneIFNode",
    "TernaryMembraneLIFNode",
    "TernaryMembraneParametricLIFNode",
]


class TernaryMembraneIFNode(_QuantizedMembraneNode):
    """``IFNode`` with a quantised membrane.

    >>> import torch
    >>> node = TernaryMembraneIFNode(step_mode="m")
    >>> node.membrane_unit, node(torch.full((4, 1), 0.45)).flatten()
    (tensor(0.7500), tensor([0., 1., 0., 1.]))
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        membrane: _Membrane | None = TernaryMembrane(),  # noqa: B008 (frozen)
        learnable_threshold: LearnableThreshold | None = None,
        channels: int | None = None,
        spatial_gate: _SpatialGate | None = None,
    ) -> None:
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq
        )
        self.install(membrane, learnable_threshold, channels, spatial_gate)

    def dynamics(self, like: Tensor) -> tuple[float, float]:
        return 1.0, 1.0


class TernaryMembraneLIFNode(_QuantizedMembraneNode):
    r"""``LIFNode`` with a quantised membrane: :math:`\lambda = 1 - 1/\tau`.

    >>> import torch
    >>> node = TernaryMembraneLIFNode(tau=2.0, decay_input=False, step_mode="m", store_v_seq=True)
    >>> node(torch.tensor([[0.7], [0.7], [0.2]])).flatten()
    tensor([0., 1., 0.])
    >>> node.v_seq.flatten()
    tensor([1., 0., 0.])
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        membrane: _Membrane | None = TernaryMembrane(),  # noqa: B008 (frozen)
        learnable_threshold: LearnableThreshold | None = None,
        channels: int | None = None,
        spatial_gate: _SpatialGate | None = None,
    ) -> None:
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq
        )
        self.tau = time_constant(self, "tau", tau)
        self.decay_input = decay_input
        self.install(membrane, learnable_threshold, channels, spatial_gate)

    def dynamics(self, like: Tensor) -> tuple[float, float]:
        return 1 - 1 / self.tau, 1 / self.tau if self.decay_input else 1.0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, decay_input={self.decay_input}"


class TernaryMembraneParametricLIFNode(_QuantizedMembraneNode):
    r"""``ParametricLIFNode`` with a quantised membrane: :math:`1/\tau = \sigma(w)` is learned.

    >>> node = TernaryMembraneParametricLIFNode(init_tau=2.0)
    >>> [name for name, _ in node.named_parameters()], list(dict(node.named_buffers()))
    (['w'], ['membrane_unit'])
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        membrane: _Membrane | None = TernaryMembrane(),  # noqa: B008 (frozen)
        learnable_threshold: LearnableThreshold | None = None,
        channels: int | None = None,
        spatial_gate: _SpatialGate | None = None,
    ) -> None:
        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq
        )
        start = -math.log(time_constant(self, "init_tau", init_tau) - 1)
        self.w = nn.Parameter(torch.tensor(start))
        self.decay_input = decay_input
        self.install(membrane, learnable_threshold, channels, spatial_gate)

    def dynamics(self, like: Tensor) -> tuple[Tensor, Tensor | float]:
        rate = self.w.to(like.dtype).sigmoid()
        return 1 - rate, rate if self.decay_input else 1.0

    def extra_repr(self) -> str:
        tau = 1 / self.w.detach().sigmoid().item()
        return f"{super().extra_repr()}, tau={tau:.4g}, decay_input={self.decay_input}"
