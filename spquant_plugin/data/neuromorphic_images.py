"""Images that were moved before an event camera: DVS-CIFAR10, N-Caltech101 and N-MNIST."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .aedat import read_aedat, require_aedat
from .camera import EVENT
from .folders import Layout
from .listing import Recording, by_class
from .recordings import EventSet


class DVSCIFAR10(EventSet):
    """CIFAR10-DVS: 10,000 images of CIFAR-10, 1,000 of each class, seen by a DVS128.

    Files may be AEDAT 2.0, as first published, or 4.0, as Tonic's archive has them; the latter need
    ``pip install aedat``. ``size`` is 48 unless another is asked for. There is no published test
    part: all three splits are drawn by ``seed``. For the parameters see
    :class:`~spquant_plugin.data.EventSet`.
    """

    layout = Layout(
        name="DVS-CIFAR10",
        size="10,000 files, about 16 GB as AEDAT 2.0",
        source="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 (CIFAR10-DVS)",
        tree=(
            "airplane/cifar10_airplane_0.aedat   (or .aedat4)\n"
            "airplane/...\n"
            "automobile/..., and a folder for each other class"
        ),
    )
    sensor = (128, 128)
    usual_size = (48, 48)
    inside = ("CIFAR10DVS", "extract")

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return ("*/*.aedat*",)

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        return by_class(folder, (".aedat", ".aedat4"))

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        return read_aedat(folder / path)

    @classmethod
    def require_reader(cls, folder: Path, recordings: list[Recording]) -> None:
        if any(recording.path.endswith(".aedat4") for recording in recordings):
            require_aedat()


class NCaltech101(EventSet):
    """N-Caltech101: 8,709 images of Caltech101 in 101 classes, seen by an ATIS in three saccades.

    ``size`` is (48, 64) unless another is asked for. Recordings cover areas of several sizes; all
    are taken as parts of 180 x 240 pixels. There is no published test part: all three splits are
    drawn by ``seed``. See :class:`~spquant_plugin.data.EventSet` for the parameters.
    """

    layout = Layout(
        name="N-Caltech101",
        size="8,709 files, about 5 GB",
        source="https://www.garrickorchard.com/datasets/n-caltech101",
        tree=(
            "BACKGROUND_Google/image_0001.bin\n"
            "BACKGROUND_Google/...\n"
            "Faces_easy/..., and a folder for each other class"
        ),
    )
    sensor = (180, 240)
    usual_size = (48, 64)
    inside = ("Caltech101", "NCALTECH101/Caltech101", "extract/Caltech101")

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return ("*/*.bin",)

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        return by_class(folder, (".bin",))

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        return read_bin(folder / path)


class NMNIST(EventSet):
    """N-MNIST: the 70,000 digits of MNIST, seen by an ATIS in three saccades.

    "test" is the published test part; "validation" is drawn from the training part by ``seed``.
    Frames have 34 x 34 pixels unless another ``size`` is asked for. See
    :class:`~spquant_plugin.data.EventSet` for the parameters.
    """

    layout = Layout(
        name="N-MNIST",
        size="70,000 files, about 1.5 GB",
        source="https://www.garrickorchard.com/datasets/n-mnist",
        tree="Train/0/00002.bin\nTrain/..., to Train/9/\nTest/0/00004.bin\nTest/..., to Test/9/",
    )
    sensor = (34, 34)
    inside = ("NMNIST", "extract")
    parts = ("Train", "Test")

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return (f"{cls.place(part)}/*/*.bin",)

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        return by_class(folder / cls.place(part), (".bin",), "0123456789", cls.place(part))

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        return read_bin(folder / path)


def read_bin(file: Path) -> NDArray[np.void]:
    """Events of a file of N-MNIST or N-Caltech101, five bytes each, by Tonic."""
    from tonic.io import read_mnist_file

    size = file.stat().st_size
    if size % 5:
        raise DataError(f"{size} bytes: must be a multiple of 5. It is cut short.")
    return read_mnist_file(str(file), dtype=EVENT)
