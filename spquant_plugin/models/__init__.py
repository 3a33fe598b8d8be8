"""Spiking networks by name, for either host: the paper's and a few small ones.

Importing this loads no host; creating a network loads the one that it belongs to.

>>> import torch
>>> import spquant_plugin as spq
>>> net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=4, width=0.25)
>>> net(torch.ones(3, 1, 2, 16, 16)).shape
torch.Size([3, 1, 4])
"""

from .create import create, list_models

__all__ = ["create", "list_models"]
