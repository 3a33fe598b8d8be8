"""N-Cars: cars and background, cut from recordings of a camera behind a windscreen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .dat import read_dat
from .folders import Layout
from .listing import Recording, by_class
from .recordings import EventSet


class NCars(EventSet):
    """N-Cars: 24,029 recordings of 100 ms, 12,336 of cars and 11,693 of background, by an ATIS.

    "test" is the published test part; "validation" is drawn from the training part by ``seed``.
    Frames have 100 x 120 pixels unless another ``size`` is asked for; most recordings cover a part
    of them. See :class:`~spquant_plugin.data.EventSet` for the parameters.
    """

    layout = Layout(
        name="N-Cars",
        size="24,029 files, about 0.8 GB",
        source="https://www.prophesee.ai/2018/03/13/dataset-n-cars/",
        tree=(
            "n-cars_train/cars/obj_004396_td.dat\n"
            "n-cars_train/background/...\n"
            "n-cars_test/cars/...\n"
            "n-cars_test/background/..."
        ),
    )
    sensor = (100, 120)
    inside = ("Prophesee_Dataset_n_cars",)
    parts = ("n-cars_train", "n-cars_test")

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return tuple(f"{cls.place(part)}/{name}/*.dat" for name in ("background", "cars"))

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        below = cls.place(part)
        return by_class(folder / below, (".dat",), ("background", "cars"), below)

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        return read_dat(folder / path)
