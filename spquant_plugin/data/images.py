"""Still images, each shown to a network several times: CIFAR-10, CIFAR-100, ImageNet."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, MissingHostError
from .checks import one_of, whole_number
from .cifar_files import read_batches, read_names
from .dataset import SPLITS, describe_set
from .folders import Layout, require_folder
from .listing import members


class Images(Dataset[tuple[Tensor, int]]):
    """Images of one size, each shown ``steps`` times; what the sets of images here have in common.

    Items are ``(frames [T, 3, height, width], label)``. A pixel of value :math:`p` is the number
    :math:`p / 255`, so that :class:`~spquant_plugin.UniformInput` with 8 bits from 0 to 1 finds
    the very integer :math:`p`. The steps are one image, seen ``T`` times without a copy, and
    :func:`collate` keeps that.
    """

    labels: Tensor
    classes: tuple[str, ...]

    def __init__(
        self, split: str, steps: int, size: object, usual: int, seed: int, validation: float
    ) -> None:
        one_of("split", split, SPLITS)
        whole_number("steps", steps, 1, 10_000)
        whole_number("seed", seed, 0, 2**63)
        number = isinstance(validation, int | float) and not isinstance(validation, bool)
        if not number or not 0 <= validation < 1:
            raise DataError(
                f"validation = {validation!r}: must be a share of 0 or more, and below 1."
            )
        self.split, self.steps, self.seed, self.validation = split, steps, seed, validation
        self.size = _pair(usual if size is None else size)

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """Steps, channels, height and width of every item."""
        return (self.steps, 3, *self.size)

    def image(self, index: int) -> Tensor:
        """Pixels ``[3, height, width]`` as bytes."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames ``[T, 3, height, width]`` in 0 to 1, and the label."""
        if not hasattr(index, "__index__"):
            raise DataError(
                f"index {index!r}: must be one whole number. Take "
                "torch.utils.data.Subset(data, indices) for several."
            )
        # Divided, not multiplied: p / 255 is the float nearest to it, p * (1 / 255) often is not.
        pixels = self.image(index).float() / 255
        return pixels.expand(self.steps, *pixels.shape), int(self.labels[index])

    def __repr__(self) -> str:
        return describe_set(type(self).__name__, len(self), "images", self)

    def _drawn(self, labels: list[int]) -> list[int]:
        """Which images belong to this split; the test part is published apart."""
        if self.split == "test":
            return list(range(len(labels)))
        chosen = members(labels, self.split, self.seed, self.validation, 0.0)
        if not chosen:
            raise DataError(
                f"validation = {self.validation}: no image is left for {self.split!r}. There are "
                f"{len(labels)} to share out. Use another share."
            )
        return chosen


class _CIFAR(Images):
    """How both sets of CIFAR are published."""

    layout: ClassVar[Layout]
    folder: ClassVar[str]
    keys: ClassVar[tuple[str, str]]  # of the labels, and of their names

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        steps: int = 4,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
        validation: float = 0.1,
        check: bool = True,
    ) -> None:
        super().__init__(split, steps, size, 32, seed, validation)
        published = getattr(torchvision_for(type(self).__name__).datasets, type(self).__name__)
        parts = {"train": published.train_list, "test": published.test_list}
        names = [name for part in parts.values() for name, _ in part]
        folder = require_folder(
            root, self.layout, [*names, published.meta["filename"]], (self.folder,)
        )
        self.classes = read_names(folder / published.meta["filename"], self.keys[1])
        part = parts["test" if split == "test" else "train"]
        count = {"train": 50_000, "test": 10_000}["test" if split == "test" else "train"]
        images, labels = read_batches(
            folder,
            [(name, checksum, count // len(part)) for name, checksum in part],
            self.keys[0],
            len(self.classes),
            check,
        )
        chosen = self._drawn(labels.tolist())
        self.images = torch.from_numpy(images[chosen])
        self.labels = torch.from_numpy(labels[chosen])

    def image(self, index: int) -> Tensor:
        """Pixels ``[3, height, width]`` as bytes, resized where ``size`` asks for it."""
        pixels = self.images[index]
        if tuple(pixels.shape[1:]) == self.size:
            return pixels
        resize = torchvision_for(type(self).__name__).transforms.v2.functional.resize
        return resize(pixels, list(self.size), antialias=True)


class CIFAR10(_CIFAR):
    """The 60,000 images of CIFAR-10, 32 x 32 pixels of 10 classes, each shown ``steps`` times.

    ``root`` is the folder ``cifar-10-batches-py`` of the published archive "for Python", or the
    folder around it. ``split`` is "test" (the published 10,000), or "validation" (the share
    ``validation`` of the other 50,000, drawn per class by ``seed``) or "train" (what is left).
    ``size`` is another height and width, to which images are resized with antialiasing and rounded
    to whole pixel values. ``check=False`` takes files of the published length that are not the
    published ones. Nothing is downloaded.

    Raises :class:`~spquant_plugin.errors.DataError` where files are missing or damaged.
    """

    layout = Layout(
        "CIFAR-10",
        "178 MB",
        "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 python version)",
        "cifar-10-batches-py/data_batch_1 ... data_batch_5\n"
        "cifar-10-batches-py/test_batch\n"
        "cifar-10-batches-py/batches.meta",
    )
    folder, keys = "cifar-10-batches-py", ("labels", "label_names")


class CIFAR100(_CIFAR):
    """The 60,000 images of CIFAR-100, in 100 classes by the fine labels; else as :class:`CIFAR10`.

    ``root`` is the folder ``cifar-100-python``, or the folder around it.
    """

    layout = Layout(
        "CIFAR-100",
        "178 MB",
        "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-100 python version)",
        "cifar-100-python/train\ncifar-100-python/test\ncifar-100-python/meta",
    )
    folder, keys = "cifar-100-python", ("fine_labels", "fine_label_names")


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a ``size`` that is one number for both, or a pair."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise DataError(f"size = {size!r}: must be a whole number or (height, width).")
    for name, number in zip(("height", "width"), pair, strict=True):
        whole_number(f"{name} of size", number, 1, 10_000)
    return int(pair[0]), int(pair[1])


def torchvision_for(name: str) -> Any:
    """The package that a set of images needs."""
    try:
        import torchvision.transforms.v2  # type: ignore[import-untyped]
    except ImportError:
        raise MissingHostError(
            f"spquant_plugin.data.{name} needs torchvision, which is not installed. "
            'Run: python -m pip install "spquant-plugin[data]"'
        ) from None
    return torchvision
