"""What every data set here is: frames in memory, a label for each, loaded as ``[T, B, ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .checks import whole_number

SPLITS = ("train", "validation", "test")


class FrameDataset(Dataset[tuple[Tensor, int]]):
    """Frames ``[samples, T, C, H, W]`` as small integers, and labels ``[samples]``."""

    frames: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames ``[T, C, H, W]`` as float counts, and the label."""
        if not hasattr(index, "__index__"):
            raise DataError(
                f"index {index!r}: must be one whole number. Take data.frames and data.labels, or "
                "torch.utils.data.Subset(data, indices), for several."
            )
        return self.frames[index].float(), int(self.labels[index])

    def __repr__(self) -> str:
        steps, *shape = self.frames.shape[1:]
        return (
            f"{type(self).__name__}({len(self)} recordings, {steps} steps of "
            f"{'x'.join(map(str, shape))}, {len(self.classes)} classes)"
        )


def collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Frames ``[T, B, C, H, W]``, time first as both hosts take it, and labels ``[B]``.

    Counts become floats, as layers take them; numpy arrays, as Tonic gives them, become tensors.
    """
    if not samples:
        raise DataError("collate received no samples: a batch needs at least one.")
    for sample in samples:
        is_pair = isinstance(sample, tuple | list) and len(sample) == 2
        if not is_pair or not _is_frames(sample[0]):
            raise DataError(
                f"collate received an item of {_describe(sample)}: must be (frames, label) with "
                "frames [T, ...] of numbers. Give a data set of events "
                "transform=spq.data.Frames(...)."
            )
    frames, labels = zip(*samples, strict=True)
    steps = {len(frame) for frame in frames}
    if len(steps) > 1:
        raise DataError(
            f"collate received recordings of {', '.join(map(str, sorted(steps)))} steps: all of "
            "one batch must have the same number. Frame them alike."
        )
    tensors = [torch.as_tensor(frame).float() for frame in frames]
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(
            f"collate received frames of shapes {', '.join(map(str, sorted(shapes)))}: all of one "
            "batch must have the same. Frame them alike."
        )
    return torch.stack(tensors, dim=1), torch.as_tensor(labels)


def _is_frames(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf" and value.ndim > 0
    return isinstance(value, Tensor) and value.ndim > 0


def _describe(sample: object) -> str:
    if isinstance(sample, tuple | list):
        return f"({', '.join(type(part).__name__ for part in sample)})"
    return type(sample).__name__


def loader(
    data: Dataset[Any],
    batch_size: int = 64,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """A torch loader with batches ``[T, B, ...]``, the same order for the same seed.

    Workers get random generators of their own from that seed: torch's, numpy's and Python's.

    >>> import spquant_plugin as spq
    >>> data = spq.data.Motion(count=8, cache=False)
    >>> frames, labels = next(iter(spq.data.loader(data, batch_size=4)))
    >>> tuple(frames.shape), tuple(labels.shape)
    ((8, 4, 1, 16, 16), (4,))
    """
    whole_number("seed", seed, 0, 2**63 - 1)
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        drop_last=drop_last,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )


def as_tensors(counts: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Frames in the smallest type that holds their counts, and labels."""
    if counts.min(initial=0) >= 0 and counts.max(initial=0) <= 255:
        counts = counts.astype(np.uint8)
    return torch.from_numpy(counts), torch.from_numpy(labels.astype(np.int64))


def random_of(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for one recording: what others drew does not matter."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=stream))
