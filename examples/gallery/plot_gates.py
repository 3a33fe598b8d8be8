"""
What gates leave out
====================

A channel gate reads the membranes of the neurons before a layer and decides, step by step, which of
the layer's output channels take part; a spatial gate masks the pixels where the least happens. Here
a small network learns four directions of motion with half of its channels closed.
"""

import matplotlib.pyplot as plt
import torch
from spikingjelly.activation_based import functional

import spquant_plugin as spq

torch.manual_seed(0)
data = spq.data.Motion("train", level="easy", count=256, cache=False)
batches = spq.data.loader(data, batch_size=32, shuffle=True)
net = spq.models.create("vgg5", in_channels=1, size=16, num_classes=4, width=0.25)

# %%
# The plan says which layers can be gated, by whom, and why the others cannot:

sample = data[0][0].unsqueeze(1)
config = spq.presets.spquant_snn(weight_bits=2)
for path, pair in spq.plan(net, config, sample).pairs.items():
    print(f"{path:6} from {pair.source!s:8} to {pair.target!s:8} {pair.reason or 'gated'}")

# %%
# Two lines beside an ordinary training loop close the channels and hold their share.

gated = spq.convert(net, config, sample)
optimizer = torch.optim.Adam(gated.parameters(), lr=4e-3)
gates = spq.GateSchedule(gated, target=0.5, steps=6 * len(batches))
for _ in range(6):
    for frames, labels in batches:
        functional.reset_net(gated)
        loss = torch.nn.functional.cross_entropy(gated(frames).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gates.step()
functional.reset_net(gated)

# %%
# Which channels are open differs from step to step and from one recording to the next: yellow
# channels are open for all 64 recordings, dark ones for none.

frames = torch.stack([data[index][0] for index in range(64)], 1)  # [T, N, C, H, W]
with torch.no_grad():
    gated.eval()(frames)
figure, panels = plt.subplots(1, len(gates.gates), figsize=(9, 3), layout="constrained")
for axes, (path, gate) in zip(panels, gates.gates.items(), strict=True):
    shares = gate.open_mask.mean(1).T.numpy()
    image = axes.imshow(shares, aspect="auto", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=f"{path.split('.')[0]}: {1 - shares.mean():.0%} closed", xlabel="step")
panels[0].set_ylabel("output channel")
figure.colorbar(image, ax=list(panels), label="share of recordings")
plt.show()

# %%
# What that leaves to do is counted on the same recordings, the gates' own cost beside it:

functional.reset_net(gated)
print(spq.analyze(gated, frames).operations)
