"""An event camera: what a pixel array reports when the light on it changes.

A pixel remembers the logarithm of the intensity at its last event and fires when the present one
differs by its contrast threshold: polarity 1 when it got brighter, 0 when darker. After an event
it is blind for the refractory time. Thresholds differ a little between pixels, and each pixel
fires at random now and then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..records import Record, fail, real, whole

# Tonic's event format: column, row, microseconds, polarity (1 brighter, 0 darker).
EVENT = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", np.bool_)])
LONGEST = 2**40  # microseconds, 12 days
LARGEST = 2**15  # pixels


@dataclass(frozen=True)
class EventCamera(Record):
    """A simulated event camera.

    ``contrast`` is the change of log intensity that makes a pixel fire, ``mismatch`` the standard
    deviation of that threshold over pixels, as a share of it. ``refractory`` is in microseconds,
    ``noise`` in events per pixel and second. ``dark`` is added to every intensity, as the current
    that flows without light; so black (0) has a logarithm.

    >>> import numpy as np
    >>> film = np.zeros((2, 1, 3))
    >>> film[1, 0, 2] = 1.0  # one pixel lights up
    >>> camera = EventCamera(contrast=0.5, mismatch=0.0, noise=0.0, refractory=0)
    >>> events = camera.record(film, np.array([0, 1000]), np.random.default_rng(0))
    >>> len(events), set(events["x"].tolist()), set(events["p"].tolist())
    (4, {2}, {True})
    """

    contrast: float = 0.25
    mismatch: float = 0.03
    refractory: int = 1000
    noise: float = 1.0
    dark: float = 0.1

    def __post_init__(self) -> None:
        real(self, "contrast", positive=True)
        real(self, "dark", positive=True)
        whole(self, "refractory", 0, LONGEST)
        for name in ("mismatch", "noise"):
            real(self, name)
            if getattr(self, name) < 0:
                raise fail(self, name, getattr(self, name), "must be 0 or above.")
        if self.noise > 1e6:
            rule = "must be 1e6 or below: no more than one event each microsecond."
            raise fail(self, "noise", self.noise, rule)
        if self.contrast < 1e-3:
            rule = "must be 0.001 or above, or a pixel would fire without end."
            raise fail(self, "contrast", self.contrast, rule)
        if self.mismatch > 0.3:
            rule = "must be 0.3 or below, or some pixels would have no threshold left."
            raise fail(self, "mismatch", self.mismatch, rule)

    def record(
        self, film: NDArray[np.floating], times: NDArray[np.integer], random: np.random.Generator
    ) -> NDArray[np.void]:
        """Events of a film ``[frames, height, width]`` of intensities, in order of time.

        ``times`` gives each frame's microsecond; between frames the log intensity goes in a
        straight line. Times of events lie in ``[times[0], times[-1])``.
        """
        film, times = _checked(film, times)
        crossings = self._crossings(np.log(film + self.dark), times, random)
        events = np.concatenate([*crossings, self._noise(film.shape[1:], times, random)])
        events = _after_dead_time(events, film.shape[2], self.refractory)
        return events[np.lexsort((events["p"], events["x"], events["y"], events["t"]))]

    def _crossings(
        self, light: NDArray[np.floating], times: NDArray[np.integer], random: np.random.Generator
    ) -> list[NDArray[np.void]]:
        """Every crossing of a pixel's threshold, frame by frame."""
        spread = random.standard_normal(light.shape[1:]).clip(-3, 3)
        step = self.contrast * (1 + self.mismatch * spread)
        remembered, found = light[0].copy(), []
        for k in range(1, len(light)):
            change = light[k] - remembered
            # Slack for the last bits: light that returns to where it was is no change.
            count = np.floor(np.abs(change) / step + 1e-9).astype(np.int64)
            for nth in range(1, int(count.max(initial=0)) + 1):
                y, x = np.nonzero(count >= nth)
                sign = np.sign(change[y, x])
                level = remembered[y, x] + sign * nth * step[y, x]
                start, end = light[k - 1, y, x], light[k, y, x]
                share = np.clip((level - start) / (end - start), 0, 1)
                t = times[k - 1] + np.floor(share * (times[k] - times[k - 1])).astype(np.int64)
                found.append(as_events(x, y, np.minimum(t, times[k] - 1), sign > 0))
            remembered += np.sign(change) * count * step
        return found

    def _noise(
        self, shape: tuple[int, ...], times: NDArray[np.integer], random: np.random.Generator
    ) -> NDArray[np.void]:
        """Events without a cause, at a constant rate."""
        seconds = (times[-1] - times[0]) * 1e-6
        y, x = np.nonzero(np.ones(shape))
        count = random.poisson(self.noise * seconds, len(x))
        y, x = np.repeat(y, count), np.repeat(x, count)
        t = random.integers(times[0], times[-1], len(x))
        return as_events(x, y, t, random.random(len(x)) < 0.5)


def as_events(x: object, y: object, t: NDArray[np.integer], p: object) -> NDArray[np.void]:
    """Events in Tonic's format from their columns."""
    events = np.empty(len(t), dtype=EVENT)
    for name, column in (("x", x), ("y", y), ("t", t), ("p", p)):
        events[name] = column
    return events


def _after_dead_time(events: NDArray[np.void], width: int, dead: int) -> NDArray[np.void]:
    """Drop what a pixel would have seen within the dead time after the last event it reported."""
    pixel = events["y"].astype(np.int64) * width + events["x"]
    order = np.lexsort((events["p"], events["t"], pixel))
    events, pixel = events[order], pixel[order]
    first = np.flatnonzero(np.r_[True, pixel[1:] != pixel[:-1]]) if len(pixel) else pixel
    count = np.diff(np.r_[first, len(pixel)])
    keep = np.ones(len(events), dtype=bool)
    last = events["t"][first]
    for nth in range(1, int(count.max(initial=0))):
        live = count > nth
        at = first[live] + nth
        keep[at] = events["t"][at] - last[live] >= dead
        last[live] = np.where(keep[at], events["t"][at], last[live])
    return events[keep]


def _checked(
    film: NDArray[np.floating], times: NDArray[np.integer]
) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    film, times = np.asarray(film, dtype=np.float64), np.asarray(times)
    if film.ndim != 3 or len(film) < 2 or 0 in film.shape:
        raise DataError(
            f"film of shape {film.shape}: must be [frames, height, width] with two frames or more."
        )
    if times.shape != film.shape[:1] or not np.issubdtype(times.dtype, np.integer):
        raise DataError(
            f"times of shape {times.shape} and type {times.dtype} for {len(film)} frames: must be "
            "one whole number of microseconds per frame."
        )
    if max(film.shape[1:]) > LARGEST:
        raise DataError(
            f"film of shape {film.shape}: height and width must be {LARGEST} or below, as columns "
            "and rows of events have 16 bits."
        )
    if (times[1:] <= times[:-1]).any():
        raise DataError("times do not grow: each frame must come after the one before it.")
    if not np.isfinite(film).all() or (film < 0).any():
        raise DataError("film holds NaN, infinite or negative intensities: all must be 0 or above.")
    return film, times.astype(np.int64)
