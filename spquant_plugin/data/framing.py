"""From a recording in its file to frames of a fixed size, by one or several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, MissingHostError
from .camera import LONGEST, as_events
from .frames import Frames, tonic_to_frame
from .prepared import Outcome

Reader = Callable[[str], NDArray[np.void]]


@dataclass(frozen=True)
class Framing:
    """Events of a ``sensor`` (height, width) as frames ``[steps, polarities, *grid]``.

    Windows are of equal length, from a recording's first event to its last. Each event is counted
    once, at ``x * grid_width // sensor_width``; ``binary`` keeps only whether there was one.

    >>> import numpy as np
    >>> from spquant_plugin.data import EVENT
    >>> events = np.array([(0, 0, 0, 1), (3, 0, 9, 1), (2, 0, 5, 1)], dtype=EVENT)
    >>> Framing(steps=2, sensor=(1, 4), grid=(1, 2))(events)[:, 1, 0].tolist()
    [[1, 0], [0, 2]]
    """

    steps: int
    sensor: tuple[int, int]
    grid: tuple[int, int]
    polarities: int = 2
    binary: bool = False

    def __call__(self, events: NDArray[np.void]) -> NDArray[np.int16]:
        if not len(events):
            raise DataError("it holds no event.")
        height, width = self.sensor
        x, y = events["x"].astype(np.int64), events["y"].astype(np.int64)
        for name, column, most in (("x", x, width), ("y", y, height)):
            if column.min() < 0 or column.max() >= most:
                raise DataError(
                    f"{name} goes from {column.min()} to {column.max()}: must lie in 0 to "
                    f"{most - 1}, the sensor's size."
                )
        x, y = x * self.grid[1] // width, y * self.grid[0] // height
        moved = as_events(x, y, events["t"].astype(np.int64), events["p"])
        if (moved["t"][1:] < moved["t"][:-1]).any():
            # Cameras deliver events a little out of order; equal times keep the file's order.
            moved = moved[np.argsort(moved["t"], kind="stable")]
        moved["t"] -= moved["t"][0]
        if moved["t"][-1] > LONGEST:
            raise DataError(
                f"it lasts {moved['t'][-1]} microseconds: must be {LONGEST}, 12 days, or less."
            )
        counts = Frames(self.steps, *self.grid)(moved)[:, : self.polarities]
        return (counts > 0).astype(np.int16) if self.binary else counts

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def framed(
    framing: Framing, read: Reader, paths: Sequence[str], workers: int, progress: bool
) -> Iterator[Outcome]:
    """Frames of each recording in order, or why it has none.

    A file that the machine cannot read is an error, not a damaged recording: it may be whole.
    """
    tonic_to_frame()  # says what to install; tqdm comes along with Tonic
    from tqdm.auto import tqdm

    # batch_size=None: recordings one by one, in their order whatever the number of workers.
    outcomes = DataLoader(
        _Framed(framing, read, paths), batch_size=None, num_workers=workers, collate_fn=_as_it_is
    )
    # disable=None: a bar where someone looks, none in a log file.
    hidden = None if progress else True
    for kind, outcome in tqdm(outcomes, desc="framing recordings", unit="file", disable=hidden):
        if kind == "unreadable":
            raise DataError(outcome)
        yield outcome


class _Framed(Dataset[tuple[str, Outcome]]):
    """What became of each recording, as ("frames", counts), ("damaged", why) or ("unreadable", why)

    Returned and not raised, because an error that crosses processes loses its own words.
    """

    def __init__(self, framing: Framing, read: Reader, paths: Sequence[str]) -> None:
        self.framing, self.read, self.paths = framing, read, tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Outcome]:
        path = self.paths[index]
        try:
            return "frames", self.framing(self.read(path))
        except OSError as error:
            return "unreadable", (
                f"{path}: cannot be read ({error}). Make it readable, or take it out of the folder."
            )
        except (MemoryError, MissingHostError):
            raise
        except DataError as error:
            return "damaged", str(error).removesuffix(".")
        except Exception as error:  # what a reader makes of bytes that mean nothing
            return "damaged", f"{type(error).__name__}: {error}"


def _as_it_is(item: Any) -> Any:
    return item
