r"""Neurons as nodes of NIR, and what the nodes cannot say of them.

NIR's neurons are differential equations. One forward Euler step of length ``DT`` turns
:math:`\tau\dot v = (v_{leak} - v) + R I` into :math:`u = r + \lambda (m - r) + \kappa x` with
:math:`\tau = DT / (1 - \lambda)` and :math:`R = \kappa / (1 - \lambda)`, which is how the importers
of both hosts read it. A neuron fires above its threshold and is set to ``v_reset`` at once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...config import SpQuantConfig
from ...convert.hosts import Hosts
from ...functional.membrane import state_dtype
from ...modules.neuron import QuantizedNeuron
from .edges import Refuse

DT = 1e-4  # the step that the importers of both hosts assume
PROBE = (-2.0, -1.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 2.0)
OURS = ("spquant_plugin.spikingjelly.neuron", "spquant_plugin.snntorch.neuron")
NO_NODE = {
    "TernaryLapicque": "drops the step after a spike",
    "TernaryRLeaky": "feeds its spikes back one step later, and an edge of NIR has no delay",
    "TernaryRSynaptic": "feeds its spikes back one step later, and an edge of NIR has no delay",
}


@dataclass(frozen=True)
class Part:
    """A node, its metadata, and what a reader that ignores the metadata does not know."""

    kind: str
    values: dict[str, Any]
    said: dict[str, Any]
    lost: str = ""


@torch.no_grad()
def neuron_part(
    module: nn.Module, step: tuple[int, ...], dtype: torch.dtype, refuse: Refuse
) -> Part:
    """The node of a neuron, converted or the host's own, that sees ``step`` in each time step."""
    neuron = _quantized(module, refuse)
    name = type(neuron).__name__
    if type(neuron).__module__ not in OURS:
        raise refuse("has code of its own, which NIR cannot say. Use a neuron of the host.")
    if name in NO_NODE:
        raise refuse(f"{NO_NODE[name]}: NIR has no such neuron. Use Leaky, or export_c.")
    if neuron.spatial_gate is not None:
        raise refuse(
            "masks pixels by a spatial gate: NIR has no gates. Convert with spatial_gate=None."
        )
    like = torch.zeros((1, *step), dtype=state_dtype(torch.zeros((), dtype=dtype)))
    _check_spikes(neuron, like.dtype, refuse)
    threshold = torch.as_tensor(neuron.threshold_value(like), dtype=like.dtype).detach()
    if not neuron.fires_on_threshold:
        above = threshold
    else:
        # NIR's ">" of the float just below is the host's ">=" of the threshold itself.
        above = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf))
    values = {
        "v_threshold": _filled(above, step),
        "v_reset": _filled(neuron.rest, step),
    }
    kind = _dynamics(neuron, values, like, step, refuse)
    lost = ""
    if neuron.membrane is not None:
        lost = f"keeps its membrane in float instead of {neuron.membrane}"
    said = {"class": type(module).__name__, **_said(neuron, threshold)}
    return Part(kind, values, said, lost)


def _quantized(module: nn.Module, refuse: Refuse) -> Any:
    """The neuron itself, or the twin under an empty configuration, which does the same."""
    if isinstance(module, QuantizedNeuron):
        return module
    hosts = Hosts()
    known: Any = hosts.neuron_kind(module)
    host, kind = known
    if kind.action != "convert":
        raise refuse(
            f"{kind.reason}: nodes are written for IF, LIF, ParametricLIF, Leaky and Synaptic. Use "
            "one of those, or leave it out of the exported part."
        )
    # Of a copy: the twin takes over parameters and states.
    twin = host.build_neuron(copy.deepcopy(module), SpQuantConfig(), None)
    host.leave([twin])
    return twin.eval()


def _check_spikes(neuron: Any, dtype: torch.dtype, refuse: Refuse) -> None:
    """Refuse surrogates that emit anything but a step, such as leaky or stochastic ones."""
    distance = torch.tensor(PROBE, dtype=dtype).repeat(32)
    fires = distance >= 0 if neuron.fires_on_threshold else distance > 0
    emits = getattr(neuron, "spike_grad", None) or neuron.surrogate_function
    if not torch.equal(emits(distance).to(dtype), fires.to(dtype)):
        raise refuse(
            "emits other values than 0 and 1, or by chance: a neuron of NIR emits spikes. Use a "
            "surrogate whose forward is a step."
        )


def _dynamics(
    neuron: Any, values: dict[str, Any], like: Tensor, step: tuple[int, ...], refuse: Refuse
) -> str:
    """Add time constants and resistances; return the kind of node."""
    if hasattr(neuron, "reset_mechanism"):
        return _snn_torch(neuron, values, step, refuse)
    if neuron.v_reset is None:
        raise refuse(
            "resets softly (v_reset=None), by subtracting its threshold: neurons of NIR are set "
            "to v_reset. Train with a hard reset, for example v_reset=0.0, or use export_c."
        )
    decay, _ = neuron.dynamics(like)
    if not isinstance(decay, Tensor) and decay == 1.0:
        values["r"] = _filled(1 / DT, step)
        return "IF"
    tau = neuron.tau if hasattr(neuron, "tau") else 1 / float(neuron.w.to(like.dtype).sigmoid())
    values["tau"] = _filled(in_seconds(tau), step)
    values["r"] = _filled(1.0 if neuron.decay_input else tau, step)
    values["v_leak"] = _filled(neuron.rest, step)
    return "LIF"


def _snn_torch(neuron: Any, values: dict[str, Any], step: tuple[int, ...], refuse: Refuse) -> str:
    synaptic = hasattr(neuron, "alpha")
    _check_reset(neuron, synaptic, refuse)
    if neuron.inhibition:
        raise refuse(
            "lets only the largest neuron fire (inhibition=True): neurons of NIR fire on their "
            "own. Use inhibition=False."
        )
    if not bool((neuron.graded_spikes_factor == 1).all()):
        raise refuse(
            "emits graded spikes (graded_spikes_factor is not 1): a neuron of NIR emits 0 and 1. "
            "Put the factor into the next layer's weights."
        )
    keeps = _filled(neuron.decay(), step)
    if not synaptic and bool((keeps == 1).all()):
        values["r"] = _filled(1 / DT, step)
        return "IF"
    values["tau_mem" if synaptic else "tau"] = _seconds(keeps, "beta", refuse)
    values["r"] = 1 / (1 - keeps)
    values["v_leak"] = _filled(0.0, step)
    if synaptic:
        current = _filled(neuron.alpha.clamp(0, 1), step)
        values["tau_syn"] = _seconds(current, "alpha", refuse)
        values["w_in"] = 1 / (1 - current)
        return "CubaLIF"
    return "LIF"


def _check_reset(neuron: Any, synaptic: bool, refuse: Refuse) -> None:
    kind, late = neuron.reset_mechanism, neuron.reset_delay
    # Leaky's late reset to zero forgets the membrane only, so it is the immediate one.
    if kind == "zero" and not (late and synaptic):
        return
    found = {
        "subtract": "resets softly, by subtracting its threshold",
        "none": "never resets",
        "zero": "drops the step after a spike",
    }[kind]
    delay = " one step later" if late and kind == "subtract" else ""
    raise refuse(
        f"{found}{delay} (reset_mechanism={kind!r}, reset_delay={late}): neurons of NIR are set to "
        "v_reset at once. Train with reset_mechanism='zero', reset_delay=False, or use export_c."
    )


def _seconds(keeps: np.ndarray, name: str, refuse: Refuse) -> np.ndarray:
    if bool((keeps == 1).any()):
        raise refuse(
            f"has {name} = 1 for some neurons or for its current: NIR would need an infinite time "
            f"constant. Keep {name} below 1, or make it 1 for every neuron of a Leaky."
        )
    return DT / (1 - keeps)


def in_seconds(tau: float) -> float:
    """A time constant in seconds that gives ``tau`` steps of ``DT`` again, exactly if any does.

    >>> in_seconds(3.0) / DT
    3.0
    """
    seconds = tau * DT
    near = (seconds, *(float(np.nextafter(seconds, end)) for end in (0.0, np.inf)))
    return next((value for value in near if value / DT == tau), seconds)


def _filled(value: Any, step: tuple[int, ...]) -> np.ndarray:
    """One value for each neuron of a step."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    return tensor.broadcast_to(step).numpy().copy()


def _when_quantised(neuron: Any, late: bool) -> str:
    if neuron.follows_mint:
        return "after the reset and the leak"
    return "before the reset" if late else "after the reset"


def _said(neuron: Any, threshold: Tensor) -> dict[str, Any]:
    """Everything that a step computes, in plain values."""
    rule, learns = neuron.membrane, neuron.learnable_threshold
    late = bool(getattr(neuron, "reset_delay", False))
    said: dict[str, Any] = {
        "fires": "u >= threshold" if neuron.fires_on_threshold else "u > threshold",
        "threshold": threshold.flatten().tolist(),
        "reset": "hard",
        "reset_delay": late,
        "rest": float(neuron.rest),
        "membrane": None,
        "learnable_threshold": None,
    }
    if rule is not None:
        said["membrane"] = {
            **rule.to_dict(),
            "unit": float(neuron.membrane_unit),
            "lowest": rule.lowest,
            "highest": rule.highest,
            "cut_points": None if rule.cut_points is None else list(rule.cut_points),
            "quantised": _when_quantised(neuron, late),
        }
    if learns is not None:
        bounds = [end.flatten().tolist() for end in neuron.threshold_bounds]
        said["learnable_threshold"] = {**learns.to_dict(), "lower": bounds[0], "upper": bounds[1]}
    return said
