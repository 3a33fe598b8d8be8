"""Initial weights of a linear layer with neurons behind it.

No normalisation brings its output near the threshold, and torch's own initial weights are so small
that the neurons would stay silent: nothing would reach the last layer.
"""

from __future__ import annotations

from torch import nn


def let_fire(linear: nn.Linear) -> nn.Linear:
    """Draw the weights with a variance of two over the number of inputs."""
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return linear
