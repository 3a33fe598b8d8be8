"""Windows of convolutions and pools over a value with zeros around."""

from __future__ import annotations

from ...errors import DeployError
from ..graph import Shape


def windows(
    space: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape | None = None
) -> Shape:
    """How many windows there are along each axis of space.

    >>> windows((8, 7), (3, 3), (2, 1), (1, 0)), windows((9,), (3,), (1,), (0,), (4,))
    ((4, 5), (1,))
    """
    if len(space) != len(kernel):
        raise DeployError(
            f"its windows {kernel} lie over pixels {space}: must have as many axes. Put channels "
            "behind time and samples, then space."
        )
    gaps = (1,) * len(kernel) if dilation is None else dilation
    sides = zip(space, kernel, stride, padding, gaps, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
