"""The event camera: events of a slow loop, and what any event camera must do."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from tonic.io import events_struct

import spquant_plugin as spq
from spquant_plugin.data import EVENT, EventCamera
from spquant_plugin.errors import ConfigError, DataError

CLEAN = EventCamera(contrast=0.2, mismatch=0.0, refractory=0, noise=0.0)


def random_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clean(**options) -> EventCamera:
    return EventCamera(**({"mismatch": 0.0, "refractory": 0, "noise": 0.0} | options))


def slow_record(camera: EventCamera, film: np.ndarray, times: np.ndarray) -> list[tuple]:
    """Pixel by pixel, frame by frame, event by event; for a camera without noise or mismatch."""
    light = np.log(film + camera.dark)
    reported = []
    for y in range(film.shape[1]):
        for x in range(film.shape[2]):
            remembered, last = float(light[0, y, x]), -math.inf
            for k in range(1, len(film)):
                start, end = float(light[k - 1, y, x]), float(light[k, y, x])
                while abs(end - remembered) / camera.contrast + 1e-9 >= 1:
                    sign = 1 if end > remembered else -1
                    remembered += sign * camera.contrast
                    share = min(max((remembered - start) / (end - start), 0.0), 1.0)
                    t = int(times[k - 1]) + math.floor(share * int(times[k] - times[k - 1]))
                    t = min(t, int(times[k]) - 1)
                    if t - last >= camera.refractory:
                        reported.append((t, y, x, sign > 0))
                        last = t
    return sorted(reported)


def random_film(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, still frames, black and sudden light, at uneven times."""
    random = random_of(seed)
    film = random.random((9, 4, 5)) ** 3
    film[3] = film[2]
    film[5, 1] = 0.0
    film[6, :, 2] = 40.0
    film[8] = film[7] * (1 + 0.01 * random.random((4, 5)))
    return film, random.integers(-5000, 5000) + np.cumsum(random.integers(1, 4000, 9))


@pytest.mark.parametrize("refractory", [0, 1, 700, 10**6])
@pytest.mark.parametrize("seed", range(6))
def test_events_are_those_of_a_slow_loop(seed, refractory):
    film, times = random_film(seed)
    camera = clean(contrast=0.17 + 0.05 * seed, refractory=refractory)
    events = camera.record(film, times, random_of())
    slow = slow_record(camera, film, times)
    assert [tuple(row) for row in events[["t", "y", "x", "p"]].tolist()] == slow
    assert len(slow) >= 20


def test_events_have_the_type_that_tonic_reads():
    film, times = random_film(0)
    assert CLEAN.record(film, times, random_of()).dtype == events_struct == EVENT


def test_times_are_sorted_and_inside_the_film():
    for seed in range(5):
        film, times = random_film(seed)
        t = EventCamera(noise=300.0).record(film, times, random_of(seed))["t"]
        assert (np.diff(t) >= 0).all()
        assert times[0] <= t[0]
        assert t[-1] < times[-1]


def test_a_still_image_gives_no_events():
    film = np.repeat(random_of().random((1, 6, 6)), 10, axis=0)
    times = np.arange(10) * 100_000
    assert len(EventCamera(noise=0.0).record(film, times, random_of())) == 0


def test_noise_is_poisson_with_the_rate_asked_for_in_both_polarities():
    pixels, seconds, rate = 40 * 40, 10, 3.0
    camera = clean(noise=rate)
    events = camera.record(np.full((2, 40, 40), 0.3), np.array([0, seconds * 10**6]), random_of())
    mean = rate * seconds
    expected = pixels * mean
    assert abs(len(events) - expected) < 4 * math.sqrt(expected)
    assert abs(events["p"].sum() - len(events) / 2) < 2 * math.sqrt(len(events))
    early = (events["t"] < seconds * 10**6 / 2).sum()
    assert abs(early - len(events) / 2) < 2 * math.sqrt(len(events))
    counts = np.bincount(events["y"].astype(int) * 40 + events["x"], minlength=pixels)
    # The variance of a Poisson count is its mean; that of its estimate is about 2 mean² / pixels.
    assert abs(counts.var() - mean) < 4 * mean * math.sqrt(2 / pixels)


@pytest.mark.parametrize("rises", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 17])
def test_light_that_changes_by_n_thresholds_gives_n_events_at_equal_distances(n, rises):
    light = math.log(0.5) + np.array([0.0, n * CLEAN.contrast if rises else -n * CLEAN.contrast])
    camera = clean(contrast=CLEAN.contrast, dark=1e-9)
    film = (np.exp(light) - camera.dark)[:, None, None]
    events = camera.record(film, np.array([0, 100_001]), random_of())
    assert len(events) == n
    assert (events["p"] == rises).all()
    due = 100_001 * np.arange(1, n + 1) / max(n, 1)
    assert (np.abs(events["t"] - due) <= 1).all()


def test_almost_a_threshold_more_gives_no_event_more():
    film = np.exp([0.0, 2.999 * CLEAN.contrast])[:, None, None]
    camera = clean(contrast=CLEAN.contrast, dark=1e-9)
    assert len(camera.record(film, np.array([0, 1000]), random_of())) == 2


def test_light_that_returns_takes_back_what_it_gave():
    """Exactly, in every pixel, though no sum of thresholds is exact."""
    first, second = random_of().random((2, 20, 20))
    events = CLEAN.record(np.stack([first, second] * 3), np.arange(6) * 1000, random_of())
    found = np.zeros((5, 20, 20), dtype=int)
    np.add.at(found, (events["t"] // 1000, events["y"], events["x"]), np.where(events["p"], 1, -1))
    for k in range(5):
        assert np.array_equal(found[k], found[0] * (-1) ** k)
    assert np.array_equal(np.sign(found[0]) * (second - first) >= 0, np.ones((20, 20), dtype=bool))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("along", ["x", "y"])
def test_a_bright_bar_is_on_at_its_front_and_off_at_its_back(along, backwards):
    """A bar of 3 pixels goes one pixel a millisecond: front and back are where it is then."""
    film = np.zeros((7, 4, 12))
    for k in range(7):
        film[k, :, 2 + k : 5 + k] = 1.0
    film = film[:, :, ::-1] if backwards else film
    film = film.transpose(0, 2, 1) if along == "y" else film
    events = CLEAN.record(film, np.arange(7) * 1000, random_of())
    place = 11 - events[along] if backwards else events[along]
    step = events["t"] // 1000
    assert np.array_equal(place, np.where(events["p"], 5 + step, 2 + step))
    across = events["y" if along == "x" else "x"]
    assert len(set(np.bincount(across, minlength=4).tolist())) == 1
    assert {(p, k) for p, k in zip(events["p"].tolist(), step.tolist(), strict=True)} == {
        (p, k) for p in (True, False) for k in range(6)
    }


def test_a_pixel_is_blind_for_the_refractory_time():
    random = random_of(3)
    film, times = random.random((50, 5, 5)), np.arange(50) * 700
    events = EventCamera(contrast=0.1, refractory=1500, noise=500.0).record(film, times, random)
    gaps = [
        np.diff(events["t"][(events["x"] == x) & (events["y"] == y)])
        for x in range(5)
        for y in range(5)
    ]
    assert all(len(gap) > 5 for gap in gaps)
    assert min(gap.min() for gap in gaps) >= 1500


def test_thresholds_differ_between_pixels_as_much_as_asked_for():
    camera = clean(contrast=0.001, mismatch=0.1, dark=1.0)
    film = np.zeros((2, 40, 40))
    film[1] = math.e - 1  # the log intensity rises by 1
    events = camera.record(film, np.array([0, 1000]), random_of())
    counts = np.bincount(events["y"].astype(int) * 40 + events["x"], minlength=1600)
    thresholds = 1 / counts / camera.contrast
    assert abs(thresholds.mean() - 1) < 0.01
    assert abs(thresholds.std() - 0.1) < 4 * 0.1 / math.sqrt(2 * 1600) + 0.001
    assert thresholds.min() > 0.69  # three deviations at most


def test_recordings_follow_their_seed():
    film, times = random_film(1)
    camera = EventCamera(noise=100.0)
    first, again, other = (camera.record(film, times, random_of(seed)) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_the_record_round_trips_and_the_film_is_left_alone():
    camera = EventCamera(contrast=0.4, refractory=3)
    assert EventCamera.from_dict(camera.to_dict()) == camera
    film, times = random_film(2)
    before = film.copy(), times.copy()
    camera.record(film, times, random_of())
    assert np.array_equal(film, before[0])
    assert np.array_equal(times, before[1])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"contrast": 0}, ["EventCamera.contrast = 0", "above 0"]),
        ({"contrast": float("nan")}, ["EventCamera.contrast = nan", "finite"]),
        ({"dark": -1.0}, ["EventCamera.dark = -1.0", "above 0"]),
        ({"refractory": 1.5}, ["EventCamera.refractory = 1.5", "whole number from 0"]),
        ({"refractory": -1}, ["EventCamera.refractory = -1", "whole number from 0"]),
        ({"noise": -0.1}, ["EventCamera.noise = -0.1", "0 or above"]),
        ({"noise": "loud"}, ["EventCamera.noise = 'loud'", "finite number"]),
        ({"noise": 1e7}, ["EventCamera.noise = 10000000.0", "1e6 or below"]),
        ({"contrast": 1e-9}, ["EventCamera.contrast = 1e-09", "0.001 or above"]),
        ({"mismatch": -0.1}, ["EventCamera.mismatch = -0.1", "0 or above"]),
        ({"mismatch": 0.4}, ["EventCamera.mismatch = 0.4", "0.3 or below", "no threshold left"]),
    ],
)
def test_a_camera_that_cannot_be_says_why(options, parts):
    with pytest.raises(ConfigError, match=re.escape(parts[0])) as caught:
        EventCamera(**options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


GOOD = np.ones((2, 1, 1))


@pytest.mark.parametrize(
    ("film", "times", "parts"),
    [
        (np.ones((2, 3)), [0, 1], ["film of shape (2, 3)", "[frames, height, width]"]),
        (np.ones((1, 3, 3)), [0], ["film of shape (1, 3, 3)", "two frames or more"]),
        (np.ones((2, 0, 3)), [0, 1], ["film of shape (2, 0, 3)"]),
        (np.ones((2, 1, 2**15 + 1)), [0, 1], ["(2, 1, 32769)", "32768 or below", "16 bits"]),
        (GOOD, [0, 1, 2], ["times of shape (3,)", "2 frames", "one whole number"]),
        (GOOD, [0.0, 1.0], ["float64", "whole number of microseconds"]),
        (GOOD, [5, 5], ["times do not grow", "after the one before"]),
        (GOOD, np.array([5, 3], dtype=np.uint64), ["times do not grow"]),
        (GOOD * np.nan, [0, 1], ["film holds NaN", "0 or above"]),
        (GOOD * np.inf, [0, 1], ["infinite"]),
        (-GOOD, [0, 1], ["negative"]),
    ],
)
def test_a_film_that_cannot_be_recorded_says_why(film, times, parts):
    with pytest.raises(DataError, match=re.escape(parts[0])) as caught:
        CLEAN.record(film, np.asarray(times), random_of())
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_the_widest_sensor_keeps_its_columns():
    film = np.zeros((2, 1, 2**15))
    film[1, 0, -1] = 1.0
    assert set(CLEAN.record(film, np.array([0, 9]), random_of())["x"].tolist()) == {2**15 - 1}


def test_the_package_is_loaded_by_name():
    assert spq.data.EventCamera is EventCamera
