"""Small event sets in the real formats and folders, written byte by byte from their descriptions.

Each function takes the folder to write to and returns what it wrote: events by path.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EVENT = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
Written = dict[str, NDArray[np.void]]


def events(
    random: np.random.Generator, width: int, height: int, count: int = 200, duration: int = 100_000
) -> NDArray[np.void]:
    """Events in order of time; the first ones are at the sensor's corners, at time 0."""
    made = np.zeros(count, EVENT)
    made["x"], made["y"] = random.integers(0, width, count), random.integers(0, height, count)
    made["t"] = np.sort(random.integers(0, duration, count))
    made["p"] = random.integers(0, 2, count)
    made["x"][:2], made["y"][:2], made["t"][:2] = (0, width - 1), (0, height - 1), 0
    return made


def dvs_cifar10(
    root: Path, per_class: int = 4, classes: int = 3, seed: int = 0, version: int = 2
) -> Written:
    """``<class>/cifar10_<class>_<number>.aedat``, or .aedat4 in ``version`` 4."""
    random = np.random.default_rng(seed)
    written = {}
    for name in CIFAR10_CLASSES[:classes]:
        for number in range(per_class):
            path = f"{name}/cifar10_{name}_{number}.aedat" + "4" * (version == 4)
            written[path] = events(random, 128, 128)
            write = write_aedat4 if version == 4 else write_aedat2
            write(_made(root / path), written[path])
    return written


def n_caltech101(root: Path, per_class: int = 4, classes: int = 3, seed: int = 0) -> Written:
    """``<class>/image_<number>.bin``, of areas of several sizes."""
    random = np.random.default_rng(seed)
    names = ("BACKGROUND_Google", "Faces_easy", "Leopards", "Motorbikes", "accordion")[:classes]
    written = {}
    for name in names:
        for number in range(1, per_class + 1):
            path = f"{name}/image_{number:04d}.bin"
            width, height = int(random.integers(80, 241)), int(random.integers(80, 181))
            written[path] = events(random, width, height)
            write_bin(_made(root / path), written[path])
    return written


def n_mnist(root: Path, per_class: int = 4, classes: int = 3, seed: int = 0) -> Written:
    """``Train/<digit>/<number>.bin`` and ``Test/...``, ``per_class`` in each."""
    random = np.random.default_rng(seed)
    written = {}
    for part in ("Train", "Test"):
        for digit in range(classes):
            for number in range(per_class):
                path = f"{part}/{digit}/{number * 10 + digit:05d}.bin"
                written[path] = events(random, 34, 34)
                write_bin(_made(root / path), written[path])
    return written


def dvs_gesture(root: Path, per_class: int = 4, classes: int = 3, seed: int = 0) -> Written:
    """``ibmGestureTrain/user<number>_<light>/<gesture>.npy`` and ``ibmGestureTest/...``."""
    random = np.random.default_rng(seed)
    written = {}
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        for number in range(per_class):
            for gesture in range(classes):
                path = f"{part}/user{number + 1:02d}_fluorescent_led/{gesture}.npy"
                made = events(random, 128, 128)
                made["t"] = made["t"] // 1000 * 1000  # the files keep milliseconds
                written[path] = made
                columns = [made["x"], made["y"], made["p"], made["t"] // 1000]
                np.save(_made(root / path), np.stack(columns, axis=1))
    return written


def shd(root: Path, per_class: int = 4, classes: int = 3, seed: int = 0) -> Written:
    """``shd_train.h5`` and ``shd_test.h5``; paths are ``file[row]``, times whole microseconds."""
    random = np.random.default_rng(seed)
    written = {}
    for name in ("shd_train.h5", "shd_test.h5"):
        labels = np.arange(per_class * classes) % classes
        spikes = [events(random, 700, 1, duration=1_000_000) for _ in labels]
        for made in spikes:
            # Seconds have 16 bits in the file.
            made["t"] = np.round((made["t"] / 1e6).astype(np.float16).astype(np.float64) * 1e6)
            made["p"] = 0
        write_shd(root / name, labels, [s["t"] / 1e6 for s in spikes], [s["x"] for s in spikes])
        written |= {f"{name}[{row}]": made for row, made in enumerate(spikes)}
    return written


def n_cars(
    root: Path, per_class: int = 4, classes: int = 2, seed: int = 0, version: int = 2
) -> Written:
    """``n-cars_train/cars/obj_<number>_td.dat``, ``.../background/...`` and ``n-cars_test/...``."""
    random = np.random.default_rng(seed)
    written = {}
    for part in ("n-cars_train", "n-cars_test"):
        for name in ("background", "cars")[:classes]:
            for number in range(per_class):
                path = f"{part}/{name}/obj_{number:06d}_td.dat"
                written[path] = events(random, 120, 100)
                write_dat(_made(root / path), written[path], version)
    return written


def write_aedat2(file: Path, made: NDArray[np.void], first: int = 1_000_000) -> None:
    """Bit 0: 1 what got darker; bits 1-7 and 8-14: 127 less row and column; microseconds."""
    address = (127 - made["x"]) << 8 | (127 - made["y"]) << 1 | (1 - made["p"])
    words = np.stack([address, (made["t"] + first) % 2**32], axis=1).astype(">u4")
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    file.write_bytes(header + words.tobytes())


def write_aedat4(file: Path, made: NDArray[np.void], first: int = 1_500_000_000_000_000) -> None:
    """One packet of events without compression, in the flat buffers that the format is made of."""
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        b'<attr key="compression" type="string">NONE</attr>'
        b'<attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        b'<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr>'
        b"</node></node></node></dv>"
    )
    # Root at 20; fields: compression (4 bytes in), position of the index (absent), info (8 in).
    header = struct.pack("<I4sHHHHHxxiiI", 20, b"IOHE", 10, 12, 4, 0, 8, 12, 0, 4)
    header += struct.pack("<I", len(info)) + info + b"\0" * (4 - len(info) % 4)
    packed = np.zeros(len(made), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "?", 4)])
    packed["t"], packed["x"], packed["y"] = made["t"] + first, made["x"], made["y"]
    packed["on"][:, 0] = made["p"]
    # Root at 16; its only field, the events, is 4 bytes in.
    body = struct.pack("<I4sHHHxxiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(made)) + packed.tobytes()
    packet = struct.pack("<I", len(body)) + body
    file.write_bytes(
        b"#!AER-DAT4.0\r\n"
        + struct.pack("<I", len(header))
        + header
        + struct.pack("<iI", 0, len(packet))
        + packet
    )


def write_bin(file: Path, made: NDArray[np.void]) -> None:
    """Five bytes: column, row, polarity in the highest bit of 23 bits of microseconds."""
    t = made["t"]
    columns = [made["x"], made["y"], made["p"] << 7 | t >> 16, t >> 8 & 255, t & 255]
    file.write_bytes(np.stack(columns, axis=1).astype(np.uint8).tobytes())


def write_dat(file: Path, made: NDArray[np.void], version: int = 2) -> None:
    """A text header, type and size of an event, then times and addresses of 32 bits each."""
    y, p = (14, 28) if version >= 2 else (9, 17)
    address = made["x"] | made["y"] << y | made["p"] << p
    words = np.stack([made["t"] % 2**32, address], axis=1).astype("<u4")
    header = f"% Data file containing CD events\n% Version {version}\n% Date 2018-01-01\n"
    file.write_bytes(header.encode() + bytes([0, 8]) + words.tobytes())


def write_shd(
    file: Path,
    labels: NDArray[np.integer],
    seconds: list[NDArray[np.floating]],
    units: list[NDArray[np.integer]],
) -> None:
    """Arrays of their own length for each recording: times as float16, units as uint16."""
    import h5py

    with h5py.File(_made(file), "w") as held:
        held["labels"] = labels.astype(np.uint16)
        for name, kind, rows in (("times", np.float16, seconds), ("units", np.uint16, units)):
            stored = held.create_dataset(f"spikes/{name}", (len(rows),), h5py.vlen_dtype(kind))
            for row, values in enumerate(rows):
                stored[row] = np.asarray(values).astype(kind)


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
