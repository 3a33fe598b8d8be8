"""
A membrane through time
=======================

A spiking neuron remembers one number. Here it is stored as a float, as one of three levels or as
one of two; everything else stays the same (:doc:`/methods/membrane`).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import spquant_plugin as spq
from spquant_plugin.functional.membrane import quantize_membrane, shifts_of
from spquant_plugin.functional.surrogate import stacked_slope, stacked_staircase
from spquant_plugin.snntorch.neuron import TernaryLeaky
from spquant_plugin.spikingjelly.neuron import TernaryMembraneLIFNode

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
MEMBRANES = {
    "float": (None, "#8a8a8a"),
    "ternary": (spq.TernaryMembrane(), "#0b6e8f"),
    "binary": (spq.BinaryMembrane(), "#d1495b"),
}
random = torch.Generator().manual_seed(8)
current = 0.35 + 0.6 * torch.randn(40, 1, generator=random)  # [T, N]

# %%
# One neuron, three memories
# --------------------------
# SpikingJelly's LIF neuron keeps half of its membrane from step to step and fires where the
# potential reaches 1. Dots are the potential before firing, which is never quantised; the line is
# what the neuron stores for the next step. With ``membrane=None`` that is the potential itself, or
# 0 after a spike.

decay, spikes = 0.5, {}
figure, axes = plt.subplots(
    4, 1, figsize=(9, 7), sharex=True, layout="constrained", height_ratios=(1, 1, 1, 0.6)
)
for axis, (name, (membrane, colour)) in zip(axes, MEMBRANES.items(), strict=False):
    neuron = TernaryMembraneLIFNode(
        tau=2.0, decay_input=False, step_mode="m", store_v_seq=True, membrane=membrane
    )
    spikes[name] = neuron(current).flatten()
    stored = neuron.v_seq.flatten()
    before = torch.cat([torch.zeros(1), stored[:-1]])
    potential = decay * before + current.flatten()
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.step(range(40), stored, where="post", color=colour, label="stored", linewidth=1.8)
    axis.plot(potential, "o", color="black", markersize=3, label="potential")
    axis.set(ylabel=name, ylim=(-1.6, 2.7), yticks=(-1, 0, 1))
axes[0].legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2, frameon=False)
axes[0].annotate("threshold", (39.2, 1.08), ha="right", fontsize=9)
for row, (name, (_, colour)) in enumerate(MEMBRANES.items()):
    at = torch.nonzero(spikes[name]).flatten()
    axes[3].plot(at, np.full(len(at), -row), "|", color=colour, markersize=13, markeredgewidth=2)
axes[3].set(xlabel="step", ylabel="spikes", yticks=(0, -1, -2), ylim=(-2.6, 0.6))
axes[3].set_yticklabels(MEMBRANES)
plt.show()
for name in ("ternary", "binary"):
    same = (spikes[name] == spikes["float"]).float().mean()
    print(f"{name:8} {int(spikes[name].sum())} spikes, as the float neuron in {same:.0%} of steps")

# %%
# The same in snnTorch
# --------------------
# snnTorch's neurons reset one step late, so the state that is stored is the one before the reset:
# see :doc:`/methods/delayed-reset`.

figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
for axis, name in zip(axes, ("float", "ternary"), strict=True):
    membrane, colour = MEMBRANES[name]
    neuron = TernaryLeaky(beta=decay, membrane=membrane)
    mem, stored, fired = neuron.init_leaky(), [], []
    for step in range(40):
        spike, mem = neuron(current[step], mem)
        stored.append(mem.item())
        fired.append(bool(spike))
    at = np.flatnonzero(fired)
    axis.step(range(40), stored, where="post", color=colour, linewidth=1.8)
    axis.plot(at, np.full(len(at), -1.6), "|", color="black", markersize=9)
    axis.set(title=f"Leaky, {name}: {len(at)} spikes", xlabel="step", yticks=(-1, 0, 1))
axes[0].set_ylabel("stored (spikes below)")
plt.show()

# %%
# The quantiser and its slope
# ---------------------------
# The staircase has no slope to learn along. The stacked surrogate replaces each stair by a bump of
# area 1 (:doc:`/methods/stacked-surrogate`); the smooth staircase on the left is its integral.
# Choose a shape with ``spq.TernaryMembrane(shape=...)``.

z = torch.linspace(-2, 2, 801)
shifts = shifts_of(-1, 1)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
axes[0].plot(z, quantize_membrane(z, unit=1.0), color="black", label="Q, as computed")
for shape, colour in zip(
    ("sigmoid", "arctan", "triangle", "piecewise"),
    ("#0b6e8f", "#d1495b", "#e69f00", "#009e73"),
    strict=True,
):
    axes[0].plot(z, stacked_staircase(z, -1, shifts, shape=shape), color=colour, linewidth=1)
    axes[1].plot(z, stacked_slope(z, shifts, shape=shape), color=colour, label=shape)
for axis in axes:
    for shift in shifts:
        axis.axvline(shift, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("membrane in units")
axes[0].set(ylabel="stored level", yticks=(-1, 0, 1), title="levels and boundaries")
axes[1].set(ylabel="slope", title="stacked surrogate, temperature 2")
axes[0].legend(loc="lower right", frameon=False)
axes[1].legend(frameon=False)
plt.show()
