"""Small files in the formats and folders in which sets of images are published."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Part = tuple[np.ndarray, np.ndarray]  # images [N, 3, 32, 32] and labels [N], in the files' order


def cifar10(
    root: Path, per_class: int = 2, classes: int = 10, seed: int = 0, test_per_class: int = 1
) -> dict[str, Part]:
    """Five training batches and one of the test part, as ``cifar-10-python.tar.gz`` holds them."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    train = _part(random, per_class, classes)
    test = _part(random, test_per_class, classes)
    for number, rows in enumerate(np.array_split(np.arange(len(train[1])), 5), start=1):
        batch = f"training batch {number} of 5"
        write_batch(
            folder / f"data_batch_{number}", train[0][rows], labels=train[1][rows], of=batch
        )
    write_batch(folder / "test_batch", test[0], labels=test[1], of="testing batch 1 of 1")
    meta = {"num_cases_per_batch": 10_000, "label_names": list(NAMES[:classes]), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return {"train": train, "test": test}


def cifar100(
    root: Path, per_class: int = 2, classes: int = 100, seed: int = 0, test_per_class: int = 1
) -> dict[str, Part]:
    """Both parts with fine and coarse labels, as ``cifar-100-python.tar.gz`` holds them."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    parts = {
        "train": _part(random, per_class, classes),
        "test": _part(random, test_per_class, classes),
    }
    for name, (images, labels) in parts.items():
        write_batch(
            folder / name, images, fine_labels=labels, coarse_labels=labels // 5, of=f"{name}ing"
        )
    names = {
        "fine_label_names": [f"fine{label}" for label in range(classes)],
        "coarse_label_names": [f"coarse{label}" for label in range(-(-classes // 5))],
    }
    (folder / "meta").write_bytes(python2_pickle(names))
    return parts


def imagenet(
    root: Path, per_class: int = 2, classes: int = 3, seed: int = 0, side: int = 64
) -> dict[str, list[Path]]:
    """JPEG files of several shapes in one folder per class, in ``train`` and in ``val``."""
    random = np.random.default_rng(seed)
    written = {}
    for part in ("train", "val"):
        written[part] = []
        for label in range(classes):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                height, width = side + random.integers(0, side, 2)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                path = folder / f"{folder.name}_{number}.JPEG"
                Image.fromarray(pixels).save(path, format="JPEG", quality=90)
                written[part].append(path)
    return written


def _part(random: np.random.Generator, per_class: int, classes: int) -> Part:
    labels = random.permutation(np.repeat(np.arange(classes), per_class))
    return random.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels


def write_batch(path: Path, images: np.ndarray, *, of: str, **labels: np.ndarray) -> None:
    """One file of CIFAR: a row of 3,072 bytes for each image, red, then green, then blue."""
    names = [f"image_{number:06d}.png" for number in range(len(images))]
    lists = {name: numbers.tolist() for name, numbers in labels.items()}
    held = {"batch_label": of, **lists, "data": images.reshape(len(images), -1), "filenames": names}
    path.write_bytes(python2_pickle(held))


def python2_pickle(value: object) -> bytes:
    """What Python 2 and the numpy of 2009 write, as in the published files: protocol 2."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, str | bytes):
        raw = value.encode("ascii") if isinstance(value, str) else value
        size = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        return size + raw
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(k) + _opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        state = b"(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
        shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
        return (
            empty + b"(K\x01" + shape + kind + state + b"\x89" + _opcodes(value.tobytes()) + b"tb"
        )
    raise TypeError(f"{type(value).__name__} is in no published file.")
