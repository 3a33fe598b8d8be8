"""Digits under an event camera: who is in which split, and that frames are the recordings'."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import tonic.transforms
import torch
from sklearn.datasets import load_digits

import spquant_plugin as spq
from spquant_plugin.data import DigitEvents, EventCamera, digits
from spquant_plugin.errors import ConfigError, DataError, MissingHostError

SPLITS = ("train", "validation", "test")
IMAGES = load_digits()


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """All 1,797 recordings, in their three splits; made once."""
    folder = tmp_path_factory.mktemp("digits")
    return {split: DigitEvents(split, steps=4, size=8, cache=folder) for split in SPLITS}


@pytest.fixture
def few(monkeypatch):
    """The first 60 images only, for what must be made anew."""
    held = IMAGES.images[:60], IMAGES.target[:60]
    monkeypatch.setattr(digits, "_load_digits", lambda: held)

    def make(split: str = "train", **options) -> DigitEvents:
        return DigitEvents(split, **({"steps": 4, "size": 8, "cache": False} | options))

    return make


def test_the_splits_are_disjoint_and_hold_every_image(complete):
    chosen = np.concatenate([data.recordings for data in complete.values()])
    assert sorted(chosen.tolist()) == list(range(1797))
    assert [len(data) for data in complete.values()] == [1258, 180, 359]
    for data in complete.values():
        assert np.array_equal(data.labels, IMAGES.target[data.recordings])


@pytest.mark.parametrize(("split", "share"), [("train", 0.7), ("validation", 0.1), ("test", 0.2)])
def test_every_split_holds_its_share_of_every_digit(complete, split, share):
    found = torch.bincount(complete[split].labels, minlength=10).numpy()
    assert (np.abs(found - share * np.bincount(IMAGES.target)) <= 1).all()


def test_another_seed_is_another_split_and_another_path(few):
    first, again, other = few(seed=0), few(seed=0), few(seed=1)
    assert np.array_equal(first.recordings, again.recordings)
    assert torch.equal(first.frames, again.frames)
    assert not np.array_equal(first.recordings, other.recordings)
    both = sorted(set(first.recordings.tolist()) & set(other.recordings.tolist()))
    assert both
    for image in both:
        here, there = (data.recordings.tolist().index(image) for data in (first, other))
        assert not np.array_equal(first.film(here), other.film(there))


def test_items_are_counts_and_digits(complete):
    data = complete["test"]
    frames, label = data[3]
    assert (frames.shape, frames.dtype) == ((4, 2, 8, 8), torch.float32)
    assert data.classes[label] == str(IMAGES.target[data.recordings[3]])
    assert repr(data) == "DigitEvents(359 recordings, 4 steps of 2x8x8, 10 classes)"


def test_frames_are_the_framed_events_of_the_same_index(complete):
    for data in complete.values():
        for index in range(0, len(data), 23):
            events = data.events(index)
            assert np.array_equal(data.framing(events), data.frames[index])
            assert torch.equal(torch.from_numpy(data.framing(events)).float(), data[index][0])
            assert data[index][0].sum() == len(events)


def test_events_are_the_same_each_time_and_in_any_order(complete):
    data = complete["validation"]
    forwards = [data.events(index).tobytes() for index in (0, 1, 2)]
    backwards = [data.events(index).tobytes() for index in (2, 1, 0)]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 3
    assert data.events(-1).tobytes() == data.events(len(data) - 1).tobytes()


def test_the_film_shows_the_digit_and_the_camera_saw_it(complete):
    data = complete["train"]
    film = data.film(0)
    assert film.shape == (31, 8, 8)
    assert film.min() == 0
    assert film.max() <= 1
    assert np.array_equal(film[0], film[-1])  # the path is closed
    image = IMAGES.images[data.recordings[0]] / 16
    middle = film[:-1].mean(0)
    assert np.corrcoef(middle[1:-1, 1:-1].ravel(), digits.enlarge(image, 6).ravel())[0, 1] > 0.7
    events = data.events(0)
    silent = EventCamera(noise=0.0)
    times = np.linspace(0, digits.DURATION, 31).round().astype(np.int64)
    again = silent.record(film, times, np.random.default_rng(0))
    assert abs(len(again) - len(events)) < 0.1 * len(events)  # thresholds differ, the film does not


def test_every_recording_moves_in_its_own_way(few):
    still = np.broadcast_to(IMAGES.images[0], (20, 8, 8)), np.zeros(20, dtype=int)
    data = few()
    data._images = still[0]
    films = {data._film(number)[0].tobytes() for number in range(20)}
    assert len(films) == 20


@pytest.mark.parametrize("frames", [slice(None), slice(1)], ids=["all frames", "the first alone"])
def test_a_linear_classifier_reads_the_digit(complete, frames):
    """Labels and frames belong together; and the task needs no memory, as its page says."""

    def features(split: str) -> torch.Tensor:
        x = complete[split].frames[:, frames].double().flatten(1)
        return torch.cat([x, torch.ones(len(x), 1)], 1)

    x, targets = features("train"), torch.nn.functional.one_hot(complete["train"].labels).double()
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ targets)
    guess = (features("test") @ weights).argmax(1)
    assert (guess == complete["test"].labels).double().mean() > 0.8


def test_variants_of_an_image_are_in_one_split_and_differ(few):
    once = {split: few(split) for split in SPLITS}
    twice = {split: few(split, variants=2) for split in SPLITS}
    numbers = []
    for split in SPLITS:
        data = twice[split]
        assert np.array_equal(data.recordings[::2] // 2, once[split].recordings)
        assert np.array_equal(data.recordings[::2] + 1, data.recordings[1::2])
        assert torch.equal(data.labels, once[split].labels.repeat_interleave(2))
        assert (data.frames[::2] != data.frames[1::2]).flatten(1).any(1).all()
        assert np.array_equal(data.framing(data.events(1)), data.frames[1])
        numbers += data.recordings.tolist()
    assert sorted(numbers) == list(range(120))


@pytest.mark.parametrize(("steps", "size"), [(1, 8), (5, 11), (16, 20)])
def test_steps_and_size_are_those_asked_for(few, steps, size):
    data = few("test", steps=steps, size=size)
    assert data.frames.shape[1:] == (steps, 2, size, size)
    assert data.film(0).shape == (31, size, size)
    assert np.array_equal(data.framing(data.events(0)), data.frames[0])


def test_more_steps_hold_the_same_events(few):
    coarse, fine = few("test", steps=4), few("test", steps=8)
    assert torch.equal(fine.frames.unflatten(1, (4, 2)).sum(2), coarse.frames.long())


@dataclass(frozen=True)
class Brighter:
    """Leaves what got brighter."""

    def __call__(self, events):
        return events[events["p"]]


def test_a_transform_sees_events_before_they_are_framed(few, tmp_path):
    plain = few("test", cache=tmp_path)
    data = few("test", transform=Brighter(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(data.frames[:, :, 1], plain.frames[:, :, 1])
    assert not data.frames[:, :, 0].any()
    assert data.events(0)["p"].all()
    assert np.array_equal(data.framing(data.events(0)), data.frames[0])


def test_transforms_of_tonic_and_their_settings_have_files_of_their_own(few, tmp_path):
    few("test", transform=tonic.transforms.Denoise(filter_time=5_000), cache=tmp_path)
    data = few("test", transform=tonic.transforms.Denoise(filter_time=20_000), cache=tmp_path)
    few("train", transform=tonic.transforms.Denoise(filter_time=20_000), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # one for all splits
    assert data.frames.sum() < few("test").frames.sum()


def test_whatever_changes_the_recordings_has_a_file_of_its_own(few, tmp_path):
    changes = [{}, {"camera": EventCamera(contrast=0.8)}, {"seed": 1}, {"variants": 2}]
    changes += [{"steps": 5}, {"size": 9}]
    for number, change in enumerate(changes):
        data = few("test", cache=tmp_path, **change)
        assert len(list(tmp_path.iterdir())) == number + 1, change
        assert np.array_equal(data.framing(data.events(0)), data.frames[0])
    few("validation", camera=EventCamera(), variants=1, seed=0, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(changes)


def test_a_camera_that_sees_less_reports_less(few):
    assert few(camera=EventCamera(contrast=0.8)).frames.sum() < few().frames.sum() / 2


def test_a_stored_data_set_needs_no_tonic(few, tmp_path, monkeypatch):
    first = few(cache=tmp_path)
    monkeypatch.setitem(sys.modules, "tonic.functional", None)
    assert torch.equal(few(cache=tmp_path).frames, first.frames)


@pytest.mark.parametrize("progress", [True, False])
def test_no_progress_bar_where_nobody_looks(few, capsys, progress):
    few(progress=progress)
    assert capsys.readouterr() == ("", "")


def test_a_recording_that_a_transform_spoils_is_named(few):
    with pytest.raises(DataError, match=r"recording 0 \(digit image 0\): recording with 0 events"):
        few(transform=lambda events: events[:0])

    def late(events):
        events["t"] += digits.DURATION
        return events

    with pytest.raises(DataError, match=r"digit image 0\): recording with t from"):
        few(transform=late)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"split": "tests"}, DataError, ["split = 'tests'", "Did you mean 'test'?"]),
        ({"split": "valid"}, DataError, ["split = 'valid'", "Did you mean 'validation'?"]),
        ({"split": "x"}, DataError, ["split = 'x': must be one of 'train', 'validation', 'test'."]),
        ({"size": 7}, DataError, ["size = 7", "from 8 to 1024"]),
        ({"size": 16.0}, DataError, ["size = 16.0", "whole number"]),
        ({"seed": -1}, DataError, ["seed = -1", "from 0"]),
        ({"variants": 0}, DataError, ["variants = 0", "from 1 to 1000"]),
        ({"steps": 0}, ConfigError, ["Frames.steps = 0", "from 1 to 10000"]),
        ({"camera": "dvs"}, DataError, ["camera = 'dvs'", "EventCamera or None"]),
    ],
)
def test_a_data_set_that_cannot_be_says_why(options, error, parts):
    with pytest.raises(error, match=re.escape(parts[0])) as caught:
        spq.data.DigitEvents(**({"cache": False} | options))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [("sklearn.datasets", "needs scikit-learn"), ("tonic.functional", "with tonic")],
)
def test_what_is_not_installed_is_named_with_the_command(module, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # it comes along with Tonic
    with pytest.raises(MissingHostError, match=said) as caught:
        DigitEvents(cache=False)
    assert 'python -m pip install "spquant-plugin[data]"' in str(caught.value)
