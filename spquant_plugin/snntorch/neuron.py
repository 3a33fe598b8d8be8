r"""snnTorch neurons with a quantised membrane and, on request, a learnable threshold.

They subclass the host's neurons and keep their signatures, their state-dict keys and their way of
resetting. With ``reset_delay=True`` (the host's default) a neuron resets one step late. The state
that it carries is then the quantised potential *before* the reset, from which a later step could
not tell whether the neuron fired; so the comparison is remembered beside it, one bit per neuron:

.. math::

    m_t = \delta\, Q(u_t / \delta), \qquad s_t = 1[u_t > V], \qquad
    u_{t+1} = \lambda m_t + x - V s_t \;\text{(subtract)}

Leaky's ``zero`` forgets the membrane, :math:`\lambda (1 - s_t) m_t + x`; the ``zero`` of the other
neurons drops the whole step, :math:`(1 - s_t)(\lambda m_t + x)`.
"""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor

from ..kernels import Rule
from .fused import advance, synaptic_currents
from .state_neuron import _QuantizedStateNeuron

__all__ = [
    "TernaryLapicque",
    "TernaryLeaky",
    "TernaryRLeaky",
    "TernaryRSynaptic",
    "TernarySynaptic",
]


class TernaryLeaky(_QuantizedStateNeuron, snn.Leaky):
    """``snntorch.Leaky`` with a quantised membrane.

    >>> import torch
    >>> lif = TernaryLeaky(beta=0.5, reset_mechanism="zero")
    >>> mem = lif.init_leaky()
    >>> spk, mem = lif(torch.tensor([[1.2, 0.7, 0.2]]), mem)
    >>> spk, mem
    (tensor([[1., 0., 0.]]), tensor([[1., 1., 0.]]))
    """

    zero_keeps_input = True

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"mem": mem})
        return self._result(self._step(current), self.mem)


class TernaryLapicque(_QuantizedStateNeuron, snn.Lapicque):
    r"""``snntorch.Lapicque`` with a quantised membrane: :math:`\lambda = 1 - dt/RC`."""

    R: Tensor
    C: Tensor
    time_step: Tensor

    def decay(self) -> Tensor:
        return 1 - self.time_step / (self.R * self.C)

    def _driven(self, current: Tensor) -> Tensor:
        # In the host's order of operations: rounding depends on it.
        return current * self.R * (1 / (self.R * self.C)) * self.time_step

    def _potential(self, membrane: Tensor, current: Tensor, *more: Tensor) -> Tensor:
        return self._driven(current) + self.decay() * membrane

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"mem": mem})
        return self._result(self._step(current), self.mem)


class TernarySynaptic(_QuantizedStateNeuron, snn.Synaptic):
    """``snntorch.Synaptic`` with a quantised membrane. Its ``syn`` stays in float."""

    states = ("syn", "mem")
    alpha: Tensor
    syn: Tensor

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"syn": syn, "mem": mem})
        self.syn = self.alpha.clamp(0, 1) * self.syn + current
        return self._result(self._step(self.syn), self.syn, self.mem)

    def run_sequence(self, x_seq: Tensor, rule: Rule) -> Any:
        currents = self._begin(x_seq)
        currents, self.syn = synaptic_currents(currents, self.syn, self.alpha.clamp(0, 1))
        spikes, membranes = advance(self, currents, rule)
        return self._result(spikes, currents, membranes)


class TernaryRLeaky(_QuantizedStateNeuron, snn.RLeaky):
    """``snntorch.RLeaky`` with a quantised membrane; its spikes come back through ``recurrent``."""

    states = ("spk", "mem")
    spk: Tensor

    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        current = self._restore(input_, {"spk": spk, "mem": mem})
        self.spk = self._step(current, self.recurrent(self.spk.to(input_.dtype)))
        return self._result(self.spk, self.mem)


class TernaryRSynaptic(_QuantizedStateNeuron, snn.RSynaptic):
    """``snntorch.RSynaptic`` with a quantised membrane. Its ``syn`` stays in float."""

    states = ("spk", "syn", "mem")
    alpha: Tensor
    spk: Tensor
    syn: Tensor

    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        current = self._restore(input_, {"spk": spk, "syn": syn, "mem": mem})
        feedback = self.recurrent(self.spk.to(input_.dtype))
        self.syn = self.alpha.clamp(0, 1) * self.syn + current + feedback
        self.spk = self._step(self.syn)
        return self._result(self.spk, self.syn, self.mem)
