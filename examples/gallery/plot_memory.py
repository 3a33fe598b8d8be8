"""
Where the memory goes
=====================

:func:`spquant_plugin.analyze` counts what a network holds for one sample: weights, membranes and
spikes, at the bits that they are stored in. Here the VGG-9 of the paper, at the size of an event
camera's picture.
"""

import torch

import spquant_plugin as spq

net = spq.models.create("vgg9", in_channels=2, size=48, num_classes=10)
events = 20.0 * (torch.rand(1, 1, 2, 48, 48) < 0.1).float()  # counts, [T, N, C, H, W]
float_report = spq.analyze(net, events)
float_report.plot()

# %%
# Early layers hold membranes, late layers hold weights. Quantised, each weight takes 2 bits (8 in
# the first and the last layer) and each membrane 2 bits:

quantized = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=events)
print(spq.analyze(quantized, events).memory)

# %%
# Side by side
# ------------
# The same network with only one of the two, and with both. Once the weights are small, float
# membranes are the larger part. That holds the more for batches, which multiply the membranes and
# not the weights: 16 recordings at once hold 59 MB of float membranes.

reports = {
    "float": float_report,
    "ternary membranes": spq.analyze(
        spq.convert(net, spq.SpQuantConfig(membrane=spq.TernaryMembrane())), events
    ),
    "2-bit weights": spq.analyze(
        spq.convert(net, spq.SpQuantConfig(weights=spq.PowerOfTwoWeights(2)), events), events
    ),
    "both": spq.analyze(quantized, events),
}
comparison = spq.compare(*reports.values(), names=list(reports))
print(comparison)
comparison.plot()
