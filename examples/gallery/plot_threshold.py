"""
How a threshold learns
======================

With ``threshold=spq.LearnableThreshold()`` each layer learns the threshold at which it fires. The
gradient that it follows is a choice, and so are the bounds within which it may move
(:doc:`/methods/threshold`).
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import spquant_plugin as spq
from spquant_plugin.functional.surrogate import firing_triangle
from spquant_plugin.functional.threshold import threshold_window

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
COLOURS = {"gpw": "#0b6e8f", "shared": "#8a8a8a", "doubled": "#d1495b"}

# %%
# Whose voice counts
# ------------------
# A spike at the potential :math:`u` asks the threshold to move, with the weight drawn here.
# ``"gpw"``, the default, listens only to neurons that fired; ``"shared"`` to all near the
# threshold, ``"doubled"`` adds both.

distance = torch.linspace(-1.2, 1.2, 481)
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for gradient, colour in COLOURS.items():
    weight = firing_triangle(distance) * threshold_window(distance, gradient)
    style = "--" if gradient == "doubled" else "-"
    axes.plot(distance, weight, style, color=colour, label=gradient, linewidth=2)
axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
axes.set(xlabel="potential - threshold", ylabel="weight")
axes.legend(frameon=False)
plt.show()

# %%
# A toy training
# --------------
# Two hidden layers learn the direction of a moving texture. The same float network, converted with
# each of the three gradients and without, and trained on the same batches.

level = spq.data.MotionLevel(directions=4, speeds=(1,), noise=0.01)
data = spq.data.Motion("train", count=1024, level=level, steps=8, size=8, cache=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    lif = {"tau": 2.0, "decay_input": False}
    net = nn.Sequential(
        layer.Flatten(),
        *(layer.Linear(64, 128, bias=False), layer.BatchNorm1d(128), neuron.LIFNode(**lif)),
        *(layer.Linear(128, 64, bias=False), layer.BatchNorm1d(64), neuron.LIFNode(**lif)),
        layer.Linear(64, 4),
    )
    functional.set_step_mode(net, "m")
    return net


def train(threshold: spq.LearnableThreshold | None, epochs: int = 12) -> tuple[list, list]:
    """Thresholds of both layers, as used and as stored, and the loss of each batch."""
    config = spq.SpQuantConfig(spq.TernaryMembrane(), spq.Triangle(), threshold)
    net = spq.convert(network(), config)
    layers = [net[3], net[6]]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)  # after the conversion
    moved, losses = [], []
    for epoch in range(epochs):
        for frames, labels in spq.data.loader(data, 64, shuffle=True, seed=epoch):
            functional.reset_net(net)
            loss = nn.functional.cross_entropy(net(frames).mean(0), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if threshold is not None:
                used = [lif.threshold_value(frames).item() for lif in layers]
                moved.append((*used, *(lif.v_threshold.item() for lif in layers)))
    return moved, losses


runs = {rule: train(spq.LearnableThreshold(gradient=rule)) for rule in COLOURS}
_, fixed = train(None)

# %%
# The first layer raises its threshold, the second one lowers it. The grey band holds the allowed
# values: by default up to twice the initial threshold, and down to half of it or, as here, to where
# no neuron fires without input yet. Thin lines are the parameters themselves: the optimizer may
# carry them over a bound, but forward uses the clamped value, and the gradient leads back inside.

bounds = (0.51, 2.0)  # threshold_bounds of both neurons
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for number, axis in enumerate(axes):
    axis.axhspan(*bounds, color="#f0f0f0", zorder=0)
    for rule, (moved, _) in runs.items():
        axis.plot([row[number] for row in moved], color=COLOURS[rule], label=rule, linewidth=2)
        axis.plot([row[number + 2] for row in moved], color=COLOURS[rule], linewidth=0.7)
    axis.set(xlabel="batch", title=f"hidden layer {number + 1}")
axes[0].set_ylabel("threshold")
axes[0].legend(frameon=False, loc="upper left")
plt.show()

# %%
# The losses of a single run on a toy rank nothing; try the choices on your own task.

for rule, (_, losses) in {**runs, "fixed": (None, fixed)}.items():
    print(f"{rule:8} loss of the last 32 batches {sum(losses[-32:]) / 32:.3f}")
