"""Frames: every event of a recording in exactly one of them."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from tonic.functional import to_frame_numpy

from spquant_plugin.data import EVENT, Frames
from spquant_plugin.errors import ConfigError, DataError, MissingHostError

HEIGHT, WIDTH = 5, 7


def recording(seed: int, duration: int = 1000, start: int = 0, count: int = 200) -> np.ndarray:
    """Random events, some of them at the same time, with the first and last microsecond."""
    random = np.random.default_rng(seed)
    events = np.empty(count, dtype=EVENT)
    events["x"] = random.integers(0, WIDTH, count)
    events["y"] = random.integers(0, HEIGHT, count)
    events["p"] = random.random(count) < 0.5
    t = np.sort(random.integers(0, duration, count))
    t[0], t[-2:] = 0, duration - 1
    events["t"] = t + start
    return events


def slow_frames(events: np.ndarray, steps: int, duration: int | None) -> np.ndarray:
    """Event by event; the first window that ends after an event holds it."""
    first = int(events["t"].min()) if duration is None else 0
    last = int(events["t"].max()) + 1 if duration is None else duration
    window = 1
    while window * steps < last - first:
        window += 1
    frames = np.zeros((steps, 2, HEIGHT, WIDTH), dtype=np.int64)
    for event in events:
        step = 0
        while first + window * (step + 1) <= event["t"]:
            step += 1
        frames[step, int(event["p"]), event["y"], event["x"]] += 1
    return frames


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 999])
@pytest.mark.parametrize("seed", range(3))
def test_frames_are_those_of_a_slow_loop(seed, steps, whole):
    duration = 1000 + 37 * seed
    events = recording(seed, duration, start=0 if whole else 12_345)
    framing = Frames(steps, HEIGHT, WIDTH, duration if whole else None)
    frames = framing(events)
    assert frames.dtype == np.int16
    assert np.array_equal(frames, slow_frames(events, steps, framing.duration))
    assert frames.sum() == len(events)


@pytest.mark.parametrize("steps", [3, 8])
def test_tonic_alone_leaves_out_the_end_of_the_recording(steps):
    """Its windows end before the last event; these hold it."""
    events = recording(0, 1003)
    tonic = to_frame_numpy(events, (WIDTH, HEIGHT, 2), n_time_bins=steps)
    ours = Frames(steps, HEIGHT, WIDTH)(events)
    assert tonic.shape == ours.shape
    assert tonic.sum() < len(events) == ours.sum()


def test_a_recording_that_ends_early_leaves_the_last_windows_empty():
    events = recording(0, 400)
    frames = Frames(4, HEIGHT, WIDTH, 800)(events)
    assert frames[:2].sum() == len(events)
    assert not frames[2:].any()


def test_more_steps_than_microseconds():
    events = recording(0, 5)
    frames = Frames(9, HEIGHT, WIDTH)(events)
    assert frames.shape == (9, 2, HEIGHT, WIDTH)
    assert np.array_equal(frames, slow_frames(events, 9, None))


def test_one_event_is_enough():
    events = np.array([(6, 4, 77, 1)], dtype=EVENT)
    frames = Frames(2, HEIGHT, WIDTH)(events)
    assert np.argwhere(frames).tolist() == [[0, 1, 4, 6]]


@pytest.mark.parametrize("kind", [np.int64, np.uint32])
def test_polarities_and_times_may_be_any_whole_numbers(kind):
    """Unsigned times too; those of other libraries are not Tonic's type."""
    other = np.dtype([("t", kind), ("x", np.uint16), ("y", np.uint16), ("p", np.int8)])
    events = recording(1)
    same = np.empty(len(events), dtype=other)
    for name in other.names:
        same[name] = events[name]
    framing = Frames(4, HEIGHT, WIDTH)
    assert np.array_equal(framing(same), framing(events))
    with pytest.raises(DataError, match="times go back"):
        framing(same[::-1])


def test_events_are_left_alone_and_the_record_round_trips():
    events = recording(2)
    before = events.copy()
    framing = Frames(4, HEIGHT, WIDTH, 1000)
    framing(events)
    assert np.array_equal(events, before)
    assert Frames.from_dict(framing.to_dict()) == framing


def changed(name: str, value: int) -> np.ndarray:
    events = recording(0).astype([("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "i1")])
    events[name][-1 if name == "t" else 5] = value
    return events


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        (recording(0)[:0], ["0 events", "at least one", "Leave it out"]),
        (changed("x", WIDTH), ["x from 0 to 7", "0 to 6", "sensor's size"]),
        (changed("x", -1), ["x from -1 to 6", "0 to 6"]),
        (changed("y", HEIGHT), ["y from 0 to 5", "0 to 4", "sensor's size"]),
        (changed("p", -1), ["polarity p from -1 to 1", "0 (darker) or 1", "events['p'] > 0"]),
        (changed("p", 2), ["polarity p from 0 to 2", "0 (darker) or 1"]),
        (changed("t", 1000), ["t from 0 to 1000", "0 to 999", "recording's length"]),
        (recording(0, start=-1), ["t from -1 to 998", "0 to 999"]),
        (recording(0)[::-1], ["times go back", "numpy.argsort(events['t'], kind='stable')"]),
        (np.zeros((4, 4)), ["recording of float64", "x, y, t and p", "spquant_plugin.data.EVENT"]),
        (recording(0)[["x", "t", "p"]], ["'x'", "x, y, t and p"]),
        (recording(0).astype([("x", "f4"), ("y", "i2"), ("t", "i8"), ("p", "?")]), ["whole"]),
        ([(0, 0, 0, 1)], ["recording of list", "numpy array"]),
    ],
)
def test_a_recording_that_cannot_be_framed_says_why(events, parts):
    with pytest.raises(DataError, match=re.escape(parts[0])) as caught:
        Frames(4, HEIGHT, WIDTH, 1000)(events)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_times_that_go_back_are_named_whatever_the_duration():
    with pytest.raises(DataError, match="times go back"):
        Frames(4, HEIGHT, WIDTH)(recording(0)[::-1])


def test_more_events_in_a_pixel_than_16_bits_count():
    events = np.zeros(2**15, dtype=EVENT)
    events["t"] = np.arange(len(events))
    with pytest.raises(DataError, match=r"32768 events became -32768 .* Ask for more steps"):
        Frames(1, 1, 1)(events)
    assert Frames(2, 1, 1)(events).ravel().tolist() == [2**14, 0, 2**14, 0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"steps": 0}, ["Frames.steps = 0", "from 1 to 10000"]),
        ({"height": 2.5}, ["Frames.height = 2.5", "whole number"]),
        ({"width": -1}, ["Frames.width = -1", "from 1 to 10000"]),
        ({"duration": 0}, ["Frames.duration = 0", "whole number from 1"]),
    ],
)
def test_windows_that_cannot_be_say_why(options, parts):
    with pytest.raises(ConfigError, match=re.escape(parts[0])) as caught:
        Frames(**({"steps": 4, "height": 5, "width": 7} | options))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_without_tonic_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic.functional", None)
    with pytest.raises(MissingHostError, match="tonic, which is not installed") as caught:
        Frames(4, HEIGHT, WIDTH)(recording(0))
    assert 'python -m pip install "spquant-plugin[data]"' in str(caught.value)
