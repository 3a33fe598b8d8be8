"""The warning that a report of a silent network says little."""

from __future__ import annotations

import warnings

from ..errors import AnalysisWarning


def warn_of_silence(model: object, samples: int, stacklevel: int) -> None:
    """Warn the caller ``stacklevel`` calls above, as :func:`warnings.warn` counts them."""
    warnings.warn(
        f"{type(model).__name__}: no neuron fired on {samples} sample(s), so sparsity, "
        "operations and energy say nothing about the network at work. Pass real data, all time "
        "steps of it, and a trained network, or lower the thresholds.",
        AnalysisWarning,
        stacklevel=stacklevel,
    )
