"""The camera's path, and the film that it sees: image content moves against the camera."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from spquant_plugin.data.saccade import enlarge, film, saccade
from spquant_plugin.errors import DataError

IMAGE = np.random.default_rng(0).integers(0, 64, (5, 6)).astype(float)


def slow_look(image: np.ndarray, row: float, column: float) -> float:
    """One pixel between pixels; beyond the border the border's value."""
    row = min(max(row, 0), image.shape[0] - 1)
    column = min(max(column, 0), image.shape[1] - 1)
    value = 0.0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            value += max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x)) * image[y, x]
    return value


# Quarters of a pixel and whole intensities are exact in binary.
@pytest.mark.parametrize(
    "shift", [(0, 0), (1, 0), (0, -2), (-3, 4), (0.5, 0), (-0.25, 1.75), (40, -40)]
)
def test_the_film_is_that_of_a_slow_loop(shift):
    (seen,) = film(IMAGE, np.array([shift], dtype=float))
    slow = [[slow_look(IMAGE, y + shift[0], x + shift[1]) for x in range(6)] for y in range(5)]
    assert seen.tolist() == slow


def test_a_camera_that_moves_right_sees_the_image_move_left():
    before, after = film(IMAGE, np.array([[0.0, 0.0], [0.0, 1.0]]))
    assert np.array_equal(after[:, :-1], before[:, 1:])
    before, after = film(IMAGE, np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert np.array_equal(after[:-1], before[1:])


def test_half_a_pixel_is_the_mean_of_two():
    (seen,) = film(IMAGE, np.array([[0.0, 0.5]]))
    assert np.array_equal(seen[:, :-1], (IMAGE[:, :-1] + IMAGE[:, 1:]) / 2)
    assert np.array_equal(seen[:, -1], IMAGE[:, -1])


def test_beyond_the_border_is_the_border():
    (seen,) = film(IMAGE, np.array([[-2.0, 0.0]]))
    assert np.array_equal(seen, IMAGE[[0, 0, 0, 1, 2]])


def test_nothing_moves_in_the_film_of_a_plain_wall():
    path = saccade(2.0, 13, np.random.default_rng(0))
    seen = film(np.full((6, 6), 0.5), path)
    assert seen.shape == (13, 6, 6)
    assert np.abs(seen - 0.5).max() < 1e-15


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_the_smallest_images(shape):
    image = np.arange(math.prod(shape), dtype=float).reshape(shape)
    (seen,) = film(image, np.array([[0.5, 0.5]]))
    slow = [[slow_look(image, y + 0.5, x + 0.5) for x in range(shape[1])] for y in range(shape[0])]
    assert seen.tolist() == slow


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_a_triangle_and_ends_where_it_began(seed):
    reach, legs = 3.0, 10
    path = saccade(reach, 3 * legs + 1, np.random.default_rng(seed))
    assert path.shape == (31, 2)
    assert np.array_equal(path[0], path[-1])
    corners = path[::legs][:3]
    assert np.hypot(*corners.T) == pytest.approx([reach] * 3, rel=1e-12)
    assert np.abs(corners.mean(0)).max() < 1e-12
    # Equal steps along three legs, all of one length: the triangle has equal sides.
    speeds = np.hypot(*np.diff(path, axis=0).T)
    assert speeds == pytest.approx([reach * math.sqrt(3) / legs] * 30, rel=1e-12)
    turns = np.diff(path, n=2, axis=0)
    bends = np.flatnonzero(np.hypot(*turns.T) > 1e-9) + 1
    assert bends.tolist() == [legs, 2 * legs]
    assert np.hypot(*path.T).max() <= reach + 1e-12


def test_paths_turn_by_up_to_30_degrees():
    random = np.random.default_rng(0)
    starts = np.array([saccade(1.0, 4, random)[0] for _ in range(500)])
    angles = np.degrees(np.arctan2(starts[:, 0], starts[:, 1]))
    assert -30 <= angles.min() < -28
    assert 28 < angles.max() <= 30


def test_an_enlarged_image_keeps_its_corners_and_its_slopes():
    small = np.add.outer(np.arange(8.0) * 3, np.arange(8.0))
    large = enlarge(small, 15)
    assert np.array_equal(large[::2, ::2], small)
    assert np.array_equal(large, np.add.outer(np.arange(15) * 1.5, np.arange(15) * 0.5))
    assert np.array_equal(enlarge(small, 8), small)


@pytest.mark.parametrize(
    ("image", "path", "parts"),
    [
        (np.ones(4), [[0, 0]], ["image of shape (4,)", "[height, width]"]),
        (np.ones((0, 4)), [[0, 0]], ["image of shape (0, 4)", "not empty"]),
        (IMAGE, [0, 0], ["path of shape (2,)", "[frames, 2]", "rows and columns"]),
        (IMAGE, [[0, 0, 0]], ["path of shape (1, 3)"]),
        (IMAGE, [[0, np.nan]], ["path of shape (1, 2)", "finite"]),
    ],
)
def test_what_cannot_be_filmed_says_why(image, path, parts):
    with pytest.raises(DataError, match=re.escape(parts[0])) as caught:
        film(image, np.array(path, dtype=float))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
