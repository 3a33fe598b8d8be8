"""Spiking Heidelberg Digits: spoken digits as the spikes of an artificial cochlea."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingHostError
from .camera import as_events
from .checks import whole_number
from .folders import Layout
from .listing import Recording
from .recordings import EventSet

LANGUAGES = ("english", "german")


class SHD(EventSet):
    """SHD: 10,420 spoken digits, 0 to 9 in English and in German, as spikes of 700 units.

    Items are ``[T, 1, 1, 700]``. The windows cover each recording from its first to its last spike,
    so that no late spike is lost. "test" is the published test part, with speakers of its own;
    "validation" is drawn from the training part by ``seed``. ``size`` merges neighbouring units
    into as many. See :class:`~spquant_plugin.data.EventSet` for the parameters.
    """

    layout = Layout(
        name="SHD",
        size="two files, about 0.4 GB",
        source="https://zenkelab.org/datasets/ (shd_train.h5.zip and shd_test.h5.zip)",
        tree="shd_train.h5\nshd_test.h5",
    )
    sensor = (1, 700)
    polarities = 1
    inside = ("SHD",)
    parts = ("shd_train.h5", "shd_test.h5")
    words = tuple(f"{language} {digit}" for language in LANGUAGES for digit in range(10))

    @classmethod
    def grid(cls, size: int | tuple[int, int] | None) -> tuple[int, int]:
        if size is None or isinstance(size, tuple | list):
            return super().grid(size)
        whole_number("size", size, 1, cls.sensor[1])
        return 1, int(size)

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return (cls.place(part),)

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        file = folder / cls.place(part)
        try:
            with _h5py().File(file, "r") as held:
                labels = held["labels"][()].astype(np.int64)
                counts = [len(held[f"spikes/{name}"]) for name in ("times", "units")]
        except (OSError, KeyError) as error:
            raise DataError(
                f"{file}: is no file of {cls.layout.name} ({error}). It must hold spikes/times, "
                "spikes/units and labels. Unpack it again."
            ) from error
        if set(counts) != {len(labels)} or not ((labels >= 0) & (labels < len(cls.words))).all():
            raise DataError(
                f"{file}: holds {len(labels)} labels for {counts[0]} and {counts[1]} recordings; "
                f"must be one for each, from 0 to {len(cls.words) - 1}. Unpack it again."
            )
        size = file.stat().st_size
        return cls.words, [
            Recording(f"{file.name}[{row}]", int(label), size) for row, label in enumerate(labels)
        ]

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        name, row = path.removesuffix("]").split("[")
        try:
            with _h5py().File(folder / name, "r") as held:
                seconds = held["spikes/times"][int(row)].astype(np.float64)
                units = held["spikes/units"][int(row)].astype(np.int64)
        except OSError as error:
            raise DataError(f"it cannot be decoded ({error}).") from error
        if len(seconds) != len(units):
            raise DataError(f"{len(seconds)} times for {len(units)} units: must be as many.")
        if not np.isfinite(seconds).all() or (abs(seconds) > 1e6).any():
            raise DataError("times that are no seconds: NaN, infinite or beyond a million.")
        if len(units) and (units.min() < 0 or units.max() >= cls.sensor[1]):
            raise DataError(f"units from {units.min()} to {units.max()}: must lie in 0 to 699.")
        # Every spike is of the one polarity that the frames keep.
        return as_events(units, 0, np.round(seconds * 1e6).astype(np.int64), 0)


def _h5py():  # type: ignore[no-untyped-def]
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError:
        raise MissingHostError(
            "spquant_plugin.data.SHD reads HDF5 with h5py, which is not installed. "
            'Run: python -m pip install "spquant-plugin[data]"'
        ) from None
    return h5py
