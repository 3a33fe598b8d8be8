"""
What bits cost on a chip
========================

:func:`spquant_plugin.analysis.hardware.estimate` maps a network onto crossbars, with the equations
of a public analytical model (nothing in it was measured on silicon). Here the paper's VGG-9 at the
size of an event camera's picture, with ever fewer bits for weights and membranes.
"""

import torch

import spquant_plugin as spq
from spquant_plugin.analysis import hardware

net = spq.models.create("vgg9", in_channels=2, size=48, num_classes=10)
events = torch.zeros(4, 1, 2, 48, 48)  # [T, N, C, H, W]: only the sizes are read
configs = {
    "8 bits": spq.SpQuantConfig(membrane=spq.UniformMembrane(8), weights=spq.UniformWeights(8)),
    "4 bits": spq.SpQuantConfig(membrane=spq.UniformMembrane(4), weights=spq.UniformWeights(4)),
    "2 bits": spq.presets.quant_snn(weight_bits=2),
}
models = {name: spq.convert(net, config, sample=events) for name, config in configs.items()}
reports = {name: hardware.estimate(model, events) for name, model in models.items()}
comparison = hardware.compare(*reports.values(), names=list(reports))
comparison.plot()

# %%
# Fewer columns per weight mean fewer crossbars, which shrinks energy and area. Latency stays: in
# this model it depends on the number of outputs alone. First and last layer keep 8 bits.
#
# Layer by layer
# --------------
# Early layers compute at many pixels and take the time; late layers hold the weights and take the
# area. Energy goes with both.

reports["2 bits"].plot()

# %%
# The table says for each layer how it was mapped, and below it what the numbers do not hold:

print(reports["2 bits"])
