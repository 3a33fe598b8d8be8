"""A camera that moves over an image: the film that it sees, and the path that it takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def saccade(reach: float, frames: int, random: np.random.Generator) -> NDArray[np.floating]:
    """Path ``[frames, 2]`` (rows, columns) along a triangle and back to its start.

    Three straight legs of equal time, as the mount of N-MNIST moves; the corners are ``reach``
    pixels from the middle, at an angle that the generator picks within ±30 degrees.
    """
    turn = random.uniform(-np.pi / 6, np.pi / 6)
    angles = turn + np.array([0.0, 2.0, 4.0, 0.0]) * np.pi / 3
    corners = reach * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    at = np.linspace(0, 3, frames)
    return np.stack([np.interp(at, np.arange(4), corners[:, axis]) for axis in (0, 1)], axis=1)


def film(image: NDArray[np.floating], path: NDArray[np.floating]) -> NDArray[np.floating]:
    """What a camera that follows ``path`` sees of an image: ``[frames, height, width]``.

    The image moves against the camera. Positions between pixels are interpolated bilinearly;
    beyond its border the image goes on with the border's value.
    """
    image, path = np.asarray(image, dtype=np.float64), np.asarray(path, dtype=np.float64)
    if image.ndim != 2 or not image.size:
        raise DataError(f"image of shape {image.shape}: must be [height, width] and not empty.")
    if path.ndim != 2 or path.shape[1] != 2 or not np.isfinite(path).all():
        raise DataError(
            f"path of shape {path.shape}: must be [frames, 2] finite numbers, rows and columns."
        )
    rows = _weights(image.shape[0], path[:, 0])
    columns = _weights(image.shape[1], path[:, 1])
    return rows @ image @ columns.transpose(0, 2, 1)


def enlarge(image: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Bilinear enlargement of a square image to ``[size, size]``, corners on corners."""
    stretch = _interpolation(np.linspace(0, len(image) - 1, size), len(image))
    return stretch @ image @ stretch.T


def _weights(length: int, shifts: NDArray[np.floating]) -> NDArray[np.floating]:
    """Interpolation matrices ``[frames, length, length]``, one for each shift."""
    return np.stack([_interpolation(np.arange(length) + shift, length) for shift in shifts])


def _interpolation(positions: NDArray[np.floating], length: int) -> NDArray[np.floating]:
    """Matrix ``[positions, length]`` that reads a line of pixels between its pixels."""
    positions = np.clip(positions, 0, length - 1)
    below = np.minimum(positions.astype(np.int64), max(length - 2, 0))
    share = positions - below
    matrix = np.zeros((len(positions), length))
    at = np.arange(len(positions))
    matrix[at, below] = 1 - share
    matrix[at, np.minimum(below + 1, length - 1)] += share
    return matrix
