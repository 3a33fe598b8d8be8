"""From a recording to the frames that a network reads, by Tonic, with every event kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingHostError
from ..records import Record, whole
from .camera import LONGEST


@dataclass(frozen=True)
class Frames(Record):
    """Counts of events ``[steps, 2, height, width]`` in windows of equal length.

    The windows cover ``duration`` microseconds from 0, or the recording from its first to its last
    event where ``duration`` is None. Tonic's own ``n_time_bins`` leaves out the events after its
    last whole window; these windows are rounded up, so that the frames hold each event once.

    >>> import numpy as np
    >>> from spquant_plugin.data import EVENT
    >>> events = np.array([(0, 0, 0, 1), (1, 0, 5, 0), (1, 0, 9, 0)], dtype=EVENT)
    >>> Frames(steps=3, height=1, width=2)(events)[:, 0, 0].tolist()  # what got darker
    [[0, 0], [0, 1], [0, 1]]
    """

    steps: int
    height: int
    width: int
    duration: int | None = None

    def __post_init__(self) -> None:
        whole(self, "steps", 1, 10_000)
        whole(self, "height", 1, 10_000)
        whole(self, "width", 1, 10_000)
        if self.duration is not None:
            whole(self, "duration", 1, LONGEST)

    def __call__(self, events: NDArray[np.void]) -> NDArray[np.int16]:
        to_frame = tonic_to_frame()
        _check_events(events)
        # int: windows of unsigned times would wrap around.
        start, end = 0, self.duration or int(events["t"][-1]) + 1
        if self.duration is None:
            start = int(events["t"][0])
        self._check_ranges(events, start, end)
        window = -(-(end - start) // self.steps)
        counts = to_frame(
            events,
            sensor_size=(self.width, self.height, 2),
            time_window=window,
            start_time=start,
            end_time=start + window * self.steps,
        )
        if counts.sum() != len(events):
            raise DataError(
                f"{len(events)} events became {counts.sum()} in the frames: a pixel has more "
                "events in one window than 16 bits count. Ask for more steps."
            )
        return counts

    def _check_ranges(self, events: NDArray[np.void], start: int, end: int) -> None:
        for name, low, high in (
            ("x", 0, self.width),
            ("y", 0, self.height),
            ("p", 0, 2),
            ("t", start, end),
        ):
            column = events[name]
            if column.min() < low or column.max() >= high:
                if name == "p":
                    raise DataError(
                        f"recording with polarity p from {column.min()} to {column.max()}: must be "
                        "0 (darker) or 1 (brighter). Write events['p'] = events['p'] > 0."
                    )
                raise DataError(
                    f"recording with {name} from {column.min()} to {column.max()}: must lie in "
                    f"{low} to {high - 1}. Give Frames the sensor's size and the recording's "
                    "length."
                )


def _check_events(events: NDArray[np.void]) -> None:
    fields = events.dtype.fields if isinstance(events, np.ndarray) else None
    kinds: dict[str, Any] = dict(fields or {})
    for name in ("x", "y", "t", "p"):
        if name not in kinds or kinds[name][0].kind not in "iub":
            raise DataError(
                f"recording of {getattr(events, 'dtype', type(events).__name__)}: must be a numpy "
                "array with the whole numbers x, y, t and p, see spquant_plugin.data.EVENT."
            )
    if not len(events):
        raise DataError(
            "recording with 0 events: it must hold at least one. Leave it out of the data set."
        )
    if (events["t"][1:] < events["t"][:-1]).any():
        raise DataError(
            "recording whose times go back: they must not. Sort it, for example with "
            "events[numpy.argsort(events['t'], kind='stable')]."
        )


def tonic_to_frame():  # type: ignore[no-untyped-def]
    try:
        from tonic.functional import to_frame_numpy
    except ImportError:
        raise MissingHostError(
            "spquant_plugin.data frames events with tonic, which is not installed. "
            'Run: python -m pip install "spquant-plugin[data]"'
        ) from None
    return to_frame_numpy
