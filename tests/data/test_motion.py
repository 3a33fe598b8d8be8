"""Moving textures: what moves where, what chance adds, and that no single frame tells."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.data import Motion, MotionLevel
from spquant_plugin.data.motion import DIRECTIONS, LEVELS, move
from spquant_plugin.errors import ConfigError, DataError

PURE = MotionLevel(directions=8, speeds=(1, 3), coherence=1.0, noise=0.0)
OPPOSITE = {"right": "left", "down": "up", "down-right": "up-left", "down-left": "up-right"}
STEP = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 0),
    "up": (-1, 0),
    "down-right": (1, 1),
    "up-left": (-1, -1),
    "down-left": (1, -1),
    "up-right": (-1, 1),
}


def random_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def step_of(name: str) -> tuple[int, int]:
    way, speed = name.rsplit(" ", 1)
    return STEP[way][0] * int(speed), STEP[way][1] * int(speed)


def make(split: str = "train", **options) -> Motion:
    return Motion(split, **({"count": 64, "cache": False} | options))


@pytest.mark.parametrize("label", range(16))
def test_every_class_moves_its_texture_by_its_step(label):
    """Rolled pixel by pixel, in every recording of the class."""
    data = make(level=PURE, count=48, size=9)
    dy, dx = step_of(data.classes[label])
    chosen = data.frames[data.labels == label].numpy()[:, :, 0]
    assert len(chosen) == 3
    for recording in chosen:
        for before, after in itertools.pairwise(recording):
            for y in range(9):
                for x in range(9):
                    assert after[(y + dy) % 9, (x + dx) % 9] == before[y, x]


def test_right_is_to_the_right():
    level = MotionLevel(speeds=(2,), noise=0.0, density=0.1)
    frames = move(level, level.classes.index("right 2"), 2, 16, random_of())
    _, y, x = np.argwhere(frames[0])[0]
    assert frames[1, 0, y, (x + 2) % 16]
    assert np.array_equal(frames[1, 0], np.roll(frames[0, 0], 2, axis=1))


@pytest.mark.parametrize("way", OPPOSITE)
@pytest.mark.parametrize("speed", [1, 3])
def test_time_reversed_is_the_opposite_direction(way, speed):
    label = PURE.classes.index(f"{way} {speed}")
    back = step_of(f"{OPPOSITE[way]} {speed}")
    backwards = move(PURE, label, 6, 11, random_of(1))[::-1, 0]
    for before, after in itertools.pairwise(backwards):
        assert np.array_equal(after, np.roll(before, back, axis=(0, 1)))


@pytest.mark.parametrize("level", [*LEVELS.values(), PURE])
def test_the_first_frame_does_not_depend_on_the_class(level):
    first = [move(level, label, 3, 16, random_of(7))[0] for label in range(len(level.classes))]
    assert all(np.array_equal(frame, first[0]) for frame in first)


@pytest.mark.parametrize("t", [0, 5])
def test_a_frame_of_any_time_has_the_same_texture_for_every_class(t):
    """Up to where it lies on the torus, which is anywhere."""
    all_of = [move(PURE, label, 6, 16, random_of(7))[t, 0] for label in range(16)]
    for name, frame in zip(PURE.classes, all_of, strict=True):
        back = tuple(-t * step for step in step_of(name))
        assert np.array_equal(
            np.roll(frame, back, axis=(0, 1)), np.roll(all_of[0], (0, -t), (0, 1))
        )


def test_spike_counts_are_alike_in_all_classes_and_steps():
    level = MotionLevel(directions=8, coherence=0.8, noise=0.1, density=0.2)
    data = make(level=level, count=1600)
    share = 0.2 * 0.9 + 0.8 * 0.1
    pixels = 100 * 16 * 16
    bound = 4.5 * math.sqrt(share * (1 - share) / pixels)
    for label in range(16):
        per_step = data.frames[data.labels == label].float().mean((0, 2, 3, 4))
        assert (per_step - share).abs().max() < bound


def test_a_linear_classifier_learns_nothing_from_one_frame_and_all_from_two():
    """Products of neighbours in time are what a network must find."""
    level = LEVELS["easy"]
    train, test = (make(split, level=level, count=800, steps=3) for split in ("train", "test"))

    def features(data, pair: bool) -> torch.Tensor:
        x = data.frames[:, :, 0].double()
        if not pair:
            return torch.cat([x[:, 2].flatten(1), torch.ones(len(x), 1)], 1)
        shifts = [torch.roll(x[:, 1], STEP[way], dims=(1, 2)) for way in list(STEP)[:4]]
        return torch.stack([(shift * x[:, 2]).sum((1, 2)) for shift in shifts], 1)

    def accuracy(pair: bool) -> float:
        targets = torch.nn.functional.one_hot(train.labels, 4).double()
        weights = torch.linalg.lstsq(features(train, pair), targets).solution
        guess = (features(test, pair) @ weights).argmax(1)
        return float((guess == test.labels).double().mean())

    assert abs(accuracy(pair=False) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 800)
    assert accuracy(pair=True) > 0.98


@pytest.mark.parametrize("coherence", [1.0, 0.9, 0.6, 0.0])
def test_the_share_of_pixels_that_move_along_is_the_coherence(coherence):
    level = MotionLevel(speeds=(1,), density=0.3, coherence=coherence, noise=0.0)
    spikes = move(level, 0, 41, 64, random_of(2))[:, 0]
    stays = np.roll(spikes[:-1], 1, axis=2) == spikes[1:]
    # A pixel drawn anew is what it was with probability d² + (1 - d)².
    share = coherence + (1 - coherence) * (0.3**2 + 0.7**2)
    assert abs(stays.mean() - share) <= 4 * math.sqrt(share * (1 - share) / stays.size)


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.5, 1.0])
def test_the_share_of_flipped_pixels_is_the_noise(noise):
    quiet, loud = (
        move(MotionLevel(noise=share), 3, 20, 64, random_of(4)) for share in (0.0, noise)
    )
    flipped = (quiet != loud).mean()
    assert abs(flipped - noise) <= 4 * math.sqrt(noise * (1 - noise) / quiet.size)


def test_items_are_spikes_and_labels():
    data = make("test", level="hard", count=33, steps=5, size=12)
    frames, label = data[7]
    assert (frames.shape, frames.dtype, label) == ((5, 1, 12, 12), torch.float32, 7)
    assert set(frames.unique().tolist()) == {0.0, 1.0}
    assert (len(data), len(list(data))) == (33, 33)
    assert data.frames.dtype == torch.uint8
    assert repr(data) == "Motion(33 recordings, 5 steps of 1x12x12, 16 classes)"


@pytest.mark.parametrize(("level", "classes"), [("easy", 4), ("medium", 8), ("hard", 16)])
def test_classes_are_equally_frequent_and_levels_grow(level, classes):
    data = make(level=level, count=classes * 5)
    assert len(data.classes) == len(set(data.classes)) == classes
    assert torch.bincount(data.labels, minlength=classes).tolist() == [5] * classes


def test_levels_are_harder_one_after_the_other():
    easy, medium, hard = LEVELS.values()
    assert list(LEVELS) == ["easy", "medium", "hard"]
    assert easy.coherence > medium.coherence > hard.coherence
    assert easy.noise < medium.noise < hard.noise
    assert len(DIRECTIONS) == 8


def test_recordings_follow_seed_split_and_number_only():
    data = make(count=8, seed=3)
    assert torch.equal(make(count=8, seed=3).frames, data.frames)
    assert torch.equal(make(count=40, seed=3).frames[:8], data.frames)  # more change no others
    others = [make(count=8, seed=4), make("validation", count=8, seed=3)]
    others.append(make("test", count=8, seed=3))
    for other in others:
        for index in range(8):
            assert not torch.equal(other.frames[index], data.frames[index])
    assert len({recording.numpy().tobytes() for recording in data.frames}) == 8


def test_a_numpy_seed_is_the_same_seed(tmp_path):
    plain = Motion(count=8, seed=3, cache=tmp_path)
    level = MotionLevel(speeds=(np.int64(1), 2), coherence=0.95, noise=0.02)
    other = Motion(count=np.int64(8), level=level, seed=np.int64(3), cache=tmp_path)
    assert torch.equal(plain.frames, other.frames)
    assert len(list(tmp_path.iterdir())) == 1


class OnOff:
    """What began and what ended: two channels, one step less."""

    def __call__(self, spikes):
        return np.concatenate([spikes[1:] & ~spikes[:-1], spikes[:-1] & ~spikes[1:]], axis=1)


def test_a_transform_may_change_steps_and_channels():
    plain, data = make(count=4), make(count=4, transform=OnOff())
    assert data.frames.shape == (4, 7, 2, 16, 16)
    change = plain.frames[:, 1:, 0].int() - plain.frames[:, :-1, 0].int()
    assert torch.equal(data.frames[:, :, 0].int() - data.frames[:, :, 1].int(), change)


def test_a_transform_may_return_negative_and_large_numbers():
    data = make(count=4, transform=lambda spikes: spikes.astype(int) * 600 - 300)
    assert set(data[0][0].unique().tolist()) == {-300.0, 300.0}
    data = make(count=4, transform=lambda spikes: -spikes.astype(np.int8))
    assert set(data[0][0].unique().tolist()) == {-1.0, 0.0}


@pytest.mark.parametrize(
    ("transform", "parts"),
    [
        (lambda s: s * 0.5, ["recording 0: transform returned float64", "whole numbers"]),
        (lambda s: s[0], ["of shape (1, 16, 16)", "[steps, channels, height, width]"]),
        (lambda s: s * 2**15, ["int64", "16 bits"]),
        (lambda s: s[: 1 + s[0, 0, :2].sum()], ["several shapes", "must have the same"]),
    ],
)
def test_a_transform_that_returns_something_else_is_refused(transform, parts):
    with pytest.raises(DataError, match=re.escape(parts[0])) as caught:
        make(count=16, transform=transform)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_level_of_your_own_round_trips():
    level = MotionLevel(directions=8, speeds=[1, 2, 4], density=0.3)
    assert level.speeds == (1, 2, 4)
    assert MotionLevel.from_dict(json.loads(json.dumps(level.to_dict()))) == level
    assert make(level=level).level == level


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"directions": 5}, ["MotionLevel.directions = 5", "4 or 8"]),
        ({"directions": 4.0}, ["MotionLevel.directions = 4.0", "4 or 8"]),
        ({"speeds": ()}, ["MotionLevel.speeds = ()", "tuple of whole numbers from 1 to 1000"]),
        ({"speeds": 2}, ["MotionLevel.speeds = 2", "tuple"]),
        ({"speeds": (1, 0)}, ["MotionLevel.speeds = (1, 0)", "from 1"]),
        ({"speeds": (1.5,)}, ["MotionLevel.speeds = (1.5,)", "whole numbers"]),
        ({"speeds": (True,)}, ["MotionLevel.speeds = (True,)", "whole numbers"]),
        ({"density": 0}, ["MotionLevel.density = 0", "shows no motion"]),
        ({"density": 1.0}, ["MotionLevel.density = 1.0", "shows no motion"]),
        ({"speeds": (2, 2)}, ["MotionLevel.speeds = (2, 2)", "must differ"]),
        ({"density": 1.1}, ["MotionLevel.density = 1.1", "between 0 and 1"]),
        ({"coherence": -0.1}, ["MotionLevel.coherence = -0.1", "between 0 and 1"]),
        ({"noise": float("nan")}, ["MotionLevel.noise = nan", "finite"]),
    ],
)
def test_a_level_that_cannot_be_says_why(options, parts):
    with pytest.raises(ConfigError, match=re.escape(parts[0])) as caught:
        MotionLevel(**options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"split": "training"}, ["split = 'training'", "'validation'", "Did you mean 'train'?"]),
        ({"split": 3}, ["split = 3", "one of 'train'"]),
        ({"level": "harder"}, ["level = 'harder'", "Did you mean 'hard'?"]),
        ({"level": None}, ["level = None", "'easy', 'medium', 'hard'"]),
        ({"count": 0}, ["count = 0", "from 1 to 10000000"]),
        ({"count": True}, ["count = True", "whole number"]),
        ({"steps": 1}, ["steps = 1", "from 2 to 10000"]),
        ({"size": 2.0}, ["size = 2.0", "from 4 to 1024"]),
        ({"size": 4}, ["speed 2 on a field of 4 pixels", "below half the size", "larger size"]),
        ({"seed": -1}, ["seed = -1", "from 0"]),
    ],
)
def test_a_task_that_cannot_be_says_why(options, parts):
    with pytest.raises(DataError, match=re.escape(parts[0])) as caught:
        spq.data.Motion(**({"cache": False} | options))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(("size", "speed"), [(5, 2), (4, 1)])
def test_the_largest_speed_still_tells_left_from_right(size, speed):
    data = make(level=MotionLevel(speeds=(speed,), noise=0.0), size=size)
    steps = {tuple(s % size for s in step_of(name)) for name in data.classes}
    assert len(steps) == 4
