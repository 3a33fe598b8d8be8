"""Distillation: a low-precision student learns from a full-precision teacher's potentials."""

from .losses import DistillationLoss
from .membranes import plot_membranes
from .parts import DistillationParts

__all__ = ["DistillationLoss", "DistillationParts", "plot_membranes"]
