"""ImageNet, and any other images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .checks import one_of, whole_number
from .damage import warn_of
from .folders import Layout, require_folder
from .image_files import CHECKS, SUFFIXES, damaged_files, read_image
from .images import Images, torchvision_for
from .listing import Recording, by_class

CROPS = ("center", "random")
LAYOUT = Layout(
    "ImageNet",
    "150 GB; 13 GB for 100 of its classes",
    "https://image-net.org (ILSVRC 2012, after registration)",
    "train/n01440764/*.JPEG ... one folder per class\n"
    "val/n01440764/*.JPEG ... the same folders; sort the flat archive into them",
)


class ImageNet(Images):
    """ImageNet, or any images in one folder per class, each shown ``steps`` times.

    ``root`` holds ``train/<class>/*.JPEG`` and ``val/<class>/*.JPEG`` with the same classes, 1,000
    or fewer; JPEG, PNG, BMP and WebP files count. ``split`` is "test" (the published ``val``), or
    "validation" (the share ``validation`` of ``train``, drawn per class by ``seed``) or "train".

    ``crop="center"`` resizes so that the shorter side is 256 pixels and takes the middle 224 x 224;
    ``size``, in the place of 224, scales both numbers. ``crop="random"`` takes a random part
    (torchvision's ``RandomResizedCrop``): wrap the set in :class:`Augmented`.

    ``check`` finds damaged files once, with ``workers`` threads, and remembers them in ``cache``:
    "quick" reads how each file begins and ends, "full" decodes each, False trusts all. They are
    left out of every split, named in ``damaged`` with the reason, and counted in a
    :class:`~spquant_plugin.errors.DataWarning`.

    Raises :class:`~spquant_plugin.errors.DataError` where folders are missing or classes differ,
    and, with the file's name, where an image cannot be decoded later.
    """

    damaged: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        steps: int = 4,
        size: int | tuple[int, int] | None = None,
        seed: int = 0,
        validation: float = 0.1,
        crop: str = "center",
        check: str | bool = "quick",
        cache: bool | str | Path = True,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        super().__init__(split, steps, size, 224, seed, validation)
        one_of("crop", crop, CROPS)
        if check is not False:
            one_of("check", check, CHECKS)
        whole_number("workers", workers, 0, 4096)
        folder = require_folder(root, LAYOUT, ("train/*/*", "val/*/*"))
        self.classes, listed = _listed(folder, "val" if split == "test" else "train")
        self.folder = folder / ("val" if split == "test" else "train")
        self.crop = crop
        self._change = _change(crop, self.size)
        chosen = self._drawn([each.label for each in listed])
        bad: dict[int, str] = {}
        if check is not False:
            bad = damaged_files(self.folder, listed, str(check), cache, workers, progress)
        self._keep(listed, chosen, bad)

    def _keep(self, listed: list[Recording], chosen: list[int], bad: dict[int, str]) -> None:
        """Keep what can be read of this split, and say what cannot."""
        self.damaged = tuple((listed[each].path, bad[each]) for each in chosen if each in bad)
        whole = [listed[each] for each in chosen if each not in bad]
        if not whole:
            raise DataError(
                f"{self.folder}: none of the {len(chosen)} images of {self.split!r} can be read: "
                f"{self.damaged[0][0]}: {self.damaged[0][1]}. Unpack the archive again."
            )
        warn_of(str(self.folder), self.damaged, len(chosen), items=f"images of {self.split!r}")
        self.labels = torch.tensor([each.label for each in whole])
        # Bytes in one array: a million Python strings would be copied into each worker.
        self._paths = np.array([os.fsencode(each.path) for each in whole])

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(bytes(self._paths[index]))

    def image(self, index: int) -> Tensor:
        """Pixels ``[3, height, width]`` as bytes, resized and cropped."""
        functional = torchvision_for("ImageNet").transforms.v2.functional
        return functional.pil_to_tensor(self._change(read_image(self.path(index))))


def _listed(folder: Path, part: str) -> tuple[tuple[str, ...], list[Recording]]:
    """Classes and images of one part; both parts must have the same classes."""
    names = {
        each: tuple(
            sorted(
                entry.name
                for entry in os.scandir(folder / each)
                if entry.is_dir() and not entry.name.startswith(".")
            )
        )
        for each in ("train", "val")
    }
    only = sorted(set(names["train"]) ^ set(names["val"]))
    if only:
        where = "train" if only[0] in names["train"] else "val"
        raise DataError(
            f"{folder}: train has {len(names['train'])} folders of classes and val "
            f"{len(names['val'])}; {only[0]} is in {where} alone. Both must have the same: "
            "their order gives the labels. Unpack the archives again, or remove what is no class."
        )
    classes, listed = by_class(folder / part, SUFFIXES, names[part])
    empty = sorted(set(range(len(classes))) - {each.label for each in listed})
    if empty:
        raise DataError(
            f"{folder / part / classes[empty[0]]}: holds no image ({', '.join(SUFFIXES)}), as "
            f"{len(empty)} of {len(classes)} folders of classes. Unpack the archive again, or "
            "remove the class from train and val."
        )
    return classes, listed


def _change(crop: str, size: tuple[int, int]) -> Any:
    """What makes an image of this size out of one of any size."""
    v2 = torchvision_for("ImageNet").transforms.v2
    if crop == "random":
        return v2.RandomResizedCrop(size, antialias=True)
    return _Middle(size)


class _Middle:
    """The middle of an image, with the border left out that is usual: 224 pixels of 256."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.around = tuple(round(side * 256 / 224) for side in size)

    def __call__(self, image: Any) -> Any:
        functional = torchvision_for("ImageNet").transforms.v2.functional
        height, width = image.height, image.width
        # The side that is short for this size becomes exact, the other one follows.
        if height * self.around[1] <= width * self.around[0]:
            new = self.around[0], max(width * self.around[0] // height, self.around[1])
        else:
            new = max(height * self.around[1] // width, self.around[0]), self.around[1]
        resized = functional.resize(image, list(new), antialias=True)
        return functional.center_crop(resized, list(self.size))
