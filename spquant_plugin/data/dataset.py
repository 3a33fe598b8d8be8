"""What every data set here is: frames in memory, a label for each, loaded as ``[T, B, ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .batches import Batches
from .checks import whole_number

SPLITS = ("train", "validation", "test")


class FrameDataset(Dataset[tuple[Tensor, int]]):
    """Frames ``[samples, T, C, H, W]`` as small integers, and labels ``[samples]``."""

    frames: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    split: str

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """Steps, channels, height and width of every item."""
        steps, channels, height, width = self.frames.shape[1:]
        return steps, channels, height, width

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
        return describe_set(type(self).__name__, len(self), "recordings", self)


class Described(Protocol):
    """What a data set says of its items."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def sample_shape(self) -> tuple[int, int, int, int]: ...


def describe_set(name: str, count: int, items: str, data: Described) -> str:
    """One line that says what a data set holds."""
    steps, *shape = data.sample_shape
    size = "x".join(map(str, shape))
    return f"{name}({count} {items}, {steps} steps of {size}, {len(data.classes)} classes)"


def collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Frames ``[T, B, C, H, W]``, time first as both hosts take it, and labels ``[B]``.

    Counts become floats, as layers take them; numpy arrays, as Tonic gives them, become tensors.
    Images that are shown ``T`` times without copies, ``image.expand(T, C, H, W)``, stay so: the
    batch holds each of them once.
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
    numbers = torch.as_tensor(labels)
    if all(is_repeated(tensor) for tensor in tensors):
        images = torch.stack([tensor[0] for tensor in tensors])
        return images.expand(len(tensors[0]), *images.shape), numbers
    return torch.stack(tensors, dim=1), numbers


def is_repeated(frames: Tensor) -> bool:
    """Whether all steps are the same memory: one image, shown several times."""
    return len(frames) > 1 and frames.stride(0) == 0


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
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A torch loader with batches ``[T, B, ...]``, the same order for the same seed.

    Each pass over a loader has an order of its own, that of the next epoch. ``epoch`` and ``start``
    go on where a run was stopped, ``rank`` and ``world`` share the batches out over processes:
    :class:`Batches` says how. Workers get random generators of their own from seed, epoch and
    rank: torch's, numpy's and Python's.

    >>> import spquant_plugin as spq
    >>> data = spq.data.Motion(count=8, cache=False)
    >>> frames, labels = next(iter(spq.data.loader(data, batch_size=4)))
    >>> tuple(frames.shape), tuple(labels.shape)
    ((8, 4, 1, 16, 16), (4,))
    """
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"loader received {type(data).__name__}: must be a data set with a length and items by "
            "index, so that batches can be drawn, shared out and resumed."
        )
    batches = Batches(
        len(data), batch_size, shuffle=shuffle, seed=seed, epoch=epoch, start=start, rank=rank,
        world=world, drop_last=drop_last,
    )  # fmt: skip
    whole_number("num_workers", num_workers, 0, 4096)
    return _Loader(
        data,
        batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


class _Loader(DataLoader[Any]):
    """Torch's loader, whose workers draw other numbers in each epoch and in each process.

    Torch cannot pin a view that shows one image several times: it pins the image, and the view is
    made when the batch arrives.
    """

    def __init__(self, data: Dataset[Any], batches: Batches, **options: Any) -> None:
        super().__init__(
            data,
            batch_sampler=batches,
            collate_fn=_collate_once,
            generator=torch.Generator(),
            **options,
        )
        self.batches = batches

    def __iter__(self) -> Any:
        self.generator.manual_seed(self.batches.worker_seed())
        return (
            (frames if steps is None else frames.expand(steps, *frames.shape[1:]), labels)
            for frames, steps, labels in super().__iter__()
        )


def _collate_once(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, int | None, Tensor]:
    """A batch, or its first step and the number of steps where they are one."""
    frames, labels = collate(samples)
    return (frames[:1], len(frames), labels) if is_repeated(frames) else (frames, None, labels)


def as_tensors(counts: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Frames in the smallest type that holds their counts, and labels."""
    if counts.min(initial=0) >= 0 and counts.max(initial=0) <= 255:
        counts = counts.astype(np.uint8)
    return torch.from_numpy(counts), torch.from_numpy(labels.astype(np.int64))


def random_of(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for one recording: what others drew does not matter."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=stream))
