"""DVS-Gesture: eleven hand gestures, cut into one recording each, as Tonic's archives have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .camera import as_events
from .folders import Layout
from .listing import Recording, by_class
from .recordings import EventSet


class DVSGesture(EventSet):
    """DVS-Gesture: 11 gestures of 29 people in several lights, seen by a DVS128.

    "test" is the published test part, of other people; "validation" is drawn from the training part
    by ``seed``. Frames have 128 x 128 pixels unless another ``size`` is asked for. See
    :class:`~spquant_plugin.data.EventSet` for the parameters.
    """

    layout = Layout(
        name="DVS-Gesture",
        size="two archives of about 3 GB together, more when unpacked",
        source=(
            "https://figshare.com/ndownloader/files/38022171 (train) and "
            "https://figshare.com/ndownloader/files/38020584 (test), as Tonic prepared it"
        ),
        tree=(
            "ibmGestureTrain/user01_fluorescent/0.npy   (0 to 10: the gesture)\n"
            "ibmGestureTrain/...\n"
            "ibmGestureTest/user24_fluorescent/0.npy\n"
            "ibmGestureTest/..."
        ),
    )
    sensor = (128, 128)
    inside = ("DVSGesture",)
    parts = ("ibmGestureTrain", "ibmGestureTest")
    gestures = (
        "hand clapping",
        "right hand wave",
        "left hand wave",
        "right arm clockwise",
        "right arm counter clockwise",
        "left arm clockwise",
        "left arm counter clockwise",
        "arm roll",
        "air drums",
        "air guitar",
        "other gestures",
    )

    @classmethod
    def needed(cls, part: str) -> tuple[str, ...]:
        return (f"{cls.place(part)}/*/*.npy",)

    @classmethod
    def listed(cls, folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
        # Folders are people and lights; the gesture is the file's name.
        _, found = by_class(folder / cls.place(part), (".npy",), below=cls.place(part))
        numbers = {str(label): label for label in range(len(cls.gestures))}
        recordings = []
        for each in found:
            gesture = Path(each.path).stem
            if gesture not in numbers:
                raise DataError(
                    f"{folder / each.path}: a recording is named after its gesture, 0.npy to "
                    f"{len(numbers) - 1}.npy. Take other files out of the folder."
                )
            recordings.append(Recording(each.path, numbers[gesture], each.size))
        return cls.gestures, recordings

    @classmethod
    def read(cls, folder: Path, path: str) -> NDArray[np.void]:
        # Opened here: numpy leaves a file open that it cannot read.
        with (folder / path).open("rb") as stream:
            held = np.load(stream, allow_pickle=False)
        if held.ndim != 2 or held.shape[1] != 4 or held.dtype.kind not in "iuf":
            raise DataError(
                f"{held.dtype} of shape {held.shape}: must be numbers [events, 4], which are x, y, "
                "polarity and milliseconds."
            )
        whole = held.astype(np.int64)
        if (whole != held).any() or (abs(whole) >= 2**32).any() or (whole[:, :2] >= 2**15).any():
            raise DataError("numbers that are not whole or far too large for an event.")
        x, y, p, milliseconds = whole.T
        return as_events(x, y, milliseconds * 1000, p)
