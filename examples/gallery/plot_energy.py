"""
Where the energy goes
=====================

:func:`spquant_plugin.analyze` prices what it counted: every operation by the type of its operands,
and every bit by the memory that it comes from. Here a small VGG sees moving textures, in full
precision and with ternary membranes and 2-bit weights.
"""

import matplotlib.pyplot as plt
import torch

import spquant_plugin as spq

torch.manual_seed(0)
data = spq.data.Motion("train", level="easy", count=64, cache=False)
frames, _ = next(iter(spq.data.loader(data, batch_size=64)))  # [T, N, C, H, W]
full = spq.models.create("vgg5", in_channels=1, size=16, num_classes=4)
quantized = spq.convert(full, spq.presets.quant_snn(weight_bits=2), sample=frames[:, :1])

# %%
# Neither is trained, but their batch norms are measured on the data, so that neurons fire:

models = {"float": full, "quantised": quantized}
reports = {}
for name, model in models.items():
    spq.calibrate(model, [frames])
    for table in ("45nm", "7nm"):
        reports[f"{name}, {table}"] = spq.analyze(model, frames, energy=table)
    rate = reports[f"{name}, 45nm"].sparsity.firing_rate
    print(f"{name}: {rate:.1%} of the neurons fire in a step")
reports["float, 45nm"].plot()

# %%
# In floats, reading weights takes nearly all of it, since every spike fetches each weight behind it
# anew. Layers with more than 32 KiB of weights read them from a larger memory, at 45 nm five times
# as dear: here all of the long bars.
#
# Quantised
# ---------
# Now all weights of a layer fit into the smaller memories, a word of 64 bits holds 32 of them, and
# adding spikes takes next to nothing. Behind an average pool (``conv3``) inputs are quarters, so
# that layer multiplies, which shows:

reports["quantised, 45nm"].plot()

# %%
# What is computed, and what is moved
# -----------------------------------
# The same by what it is spent on, in both technologies:

parts = {
    "compute": ("compute_pj", "#D55E00"),
    "weights": ("weight_pj", "#0072B2"),
    "inputs": ("input_pj", "#999999"),
    "membranes": ("membrane_pj", "#E69F00"),
    "spikes": ("spike_pj", "#009E73"),
}
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
energies = {name: report.energy for name, report in reports.items()}
starts = [0.0] * len(energies)
for part, (field, color) in parts.items():
    sums = [sum(getattr(row, field) for row in energy) for energy in energies.values()]
    shares = [100 * s / e.total_pj for s, e in zip(sums, energies.values(), strict=True)]
    axes.barh(list(energies), shares, left=starts, color=color, label=part)
    starts = [start + share for start, share in zip(starts, shares, strict=True)]
for place, energy in enumerate(energies.values()):
    axes.text(101, place, f"{energy.total_pj / 1e6:.3g} µJ", va="center")
axes.invert_yaxis()
axes.set(xlabel="share of the energy (%)", xlim=(0, 113), xticks=range(0, 101, 20))
axes.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
plt.show()

# %%
# Side by side
# ------------
# A ratio of totals also holds the steps between memories, so say which table it is of:

for table in ("45nm", "7nm"):
    pair = {name: reports[f"{name}, {table}"] for name in models}
    comparison = spq.compare(*pair.values(), names=list(pair))
    print(comparison, end="\n\n")

# %%
# And which model. The last two rows are SpikingJelly's simple one, FP32 whatever the bits, and an
# artificial network of the same bits in one dense pass. At this firing rate, summed over all time
# steps, it takes about as much as the network of spikes does:

print(f"{'45 nm':20}{'float':>14}{'quantised':>14}")
for name, picojoules in energies["quantised, 45nm"].models:
    float_pj = energies["float, 45nm"].model(name)
    print(f"{name:20}{float_pj / 1e6:11.2f} µJ{picojoules / 1e6:11.2f} µJ")
