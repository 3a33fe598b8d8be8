"""
Levels for weights
==================

Four families of levels, on the same weights (:doc:`/methods/weights`). The weights of a trained
layer look much like a bell: many small ones, few large ones.
"""

import matplotlib.pyplot as plt
import torch

import spquant_plugin as spq
from spquant_plugin.modules.layers import QuantizedLinear

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
WEIGHTS = 0.05 * torch.randn(64, 576, generator=torch.Generator().manual_seed(0))  # 64 channels


def quantize(rule: object) -> torch.Tensor:
    """The weights that a layer with this rule computes with."""
    layer = QuantizedLinear(576, 64, bias=False, weights=rule)
    with torch.no_grad():
        layer.weight.copy_(WEIGHTS)
        layer.refit()  # after writing a weight by hand
        return layer.effective_weight()


# %%
# One channel
# -----------
# The grey bell is the histogram of one output channel; each line is a level, as high as the share
# of weights that take it. Powers of two lie densely near 0, where most weights are. Uniform levels
# are spread evenly. Ternary weights have the same three levels as powers of two in 2 bits, but a
# narrower zero.

RULES = {
    "PowerOfTwoWeights(2)": spq.PowerOfTwoWeights(2),
    "TernaryWeights()": spq.TernaryWeights(),
    "PowerOfTwoWeights(4)": spq.PowerOfTwoWeights(4),
    "UniformWeights(4)": spq.UniformWeights(4),
    "AdditivePowerOfTwoWeights(5)": spq.AdditivePowerOfTwoWeights(5),
    "UniformWeights(5)": spq.UniformWeights(5),
}
figure, axes = plt.subplots(3, 2, figsize=(9, 7), layout="constrained", sharex=True)
for axis, (name, rule) in zip(axes.flat, RULES.items(), strict=True):
    levels, counts = quantize(rule)[0].unique(return_counts=True)
    density = axis.twinx()
    density.hist(WEIGHTS[0], bins=36, color="#d9d9d9")
    density.set(yticks=[])
    density.spines[:].set_visible(False)
    axis.set_zorder(density.get_zorder() + 1)
    axis.patch.set_visible(False)
    axis.vlines(levels, 0, 100 * counts / counts.sum(), color="#0b6e8f", linewidth=2.2)
    axis.set(title=f"{name}: {len(levels)} levels in use", ylabel="share (%)", ylim=(0, None))
for axis in axes[-1]:
    axis.set_xlabel("weight")
plt.show()

# %%
# Error for each number of bits
# -----------------------------
# The mean squared error as a share of the weights' own variance. Uniform levels have the least
# error for a bell; what powers of two buy instead is that every product is a shift. Their error
# hardly falls from 3 bits to 4, since new levels appear only near 0; so from 5 bits on sums of
# powers of two take over.

FAMILIES = {
    "power of two": ("#0b6e8f", "o", [spq.PowerOfTwoWeights(bits) for bits in (2, 3, 4)]),
    "additive power of two": (
        "#e69f00",
        "s",
        [spq.AdditivePowerOfTwoWeights(bits) for bits in (5, 6, 7, 8)],
    ),
    "uniform": ("#8a8a8a", "^", [spq.UniformWeights(bits) for bits in range(2, 9)]),
    "ternary": ("#d1495b", "D", [spq.TernaryWeights()]),
}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, (colour, marker, rules) in FAMILIES.items():
    errors = [
        float((quantize(rule) - WEIGHTS).square().mean() / WEIGHTS.square().mean())
        for rule in rules
    ]
    bits = [rule.stored_bits for rule in rules]
    axes.semilogy(bits, errors, marker=marker, color=colour, label=name)
    for bit, error in zip(bits, errors, strict=True):
        print(f"{name:22} {bit} bits: {error:.3%}")
axes.set(xlabel="bits", ylabel="squared error / variance", xticks=range(2, 9))
axes.grid(axis="y", alpha=0.3)
axes.legend(frameon=False)
plt.show()
