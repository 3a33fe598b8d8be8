"""A value of all steps and samples, in whatever form its readers want it.

The forms are whole numbers, rows of bits (spikes only) and events; each is made from another when
it is first asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Shape, size
from . import spiking
from .rows import LANES, Words, pack, unpack

Events = tuple[NDArray[np.int64], NDArray[np.int32]]
# The kernel that moves events reads so many at a time, also behind the last.
MARGIN = 16


def plane(shape: Shape) -> tuple[int, int]:
    """Height and width: a line has height 1, a flat value one place."""
    sides = (1, 1, *shape[1:])
    return sides[-2], sides[-1]


def places(value: Tensor) -> NDArray[Any]:
    """``[B, C, *space]`` as an array ``[B, places, C]``."""
    rows = value.flatten(2).transpose(1, 2) if value.ndim > 2 else value[:, None]
    return np.ascontiguousarray(rows.numpy())


class Window:
    """Windows of a pool: kernel, stride, padding and gaps along height and width."""

    def __init__(
        self, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape | None = None
    ) -> None:
        missing = 2 - len(kernel)
        ones, zeros = (1,) * missing, (0,) * missing
        self.kernel, self.stride = (*ones, *kernel), (*ones, *stride)
        self.padding = (*zeros, *padding)
        self.dilation = (*ones, *(dilation or (1,) * len(kernel)))


ITSELF = Window((1, 1), (1, 1), (0, 0))


class Value:
    """Whole numbers of a shape for ``batch`` steps and samples."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        *,
        whole: Tensor | None = None,
        words: Words | None = None,
        events: Events | None = None,
        pooled: tuple[Value, Window] | None = None,
    ) -> None:
        self.shape, self.batch = shape, batch
        self._whole, self._words, self._events, self._pooled = whole, words, events, pooled

    @property
    def area(self) -> int:
        return size(self.shape[1:])

    def whole(self) -> Tensor:
        """int32 ``[B, C, *space]``."""
        if self._whole is None:
            if self._words is not None:
                bits = unpack(self._words.reshape(self.batch, self.area, -1), self.shape[0])
                numbers = torch.from_numpy(bits).to(torch.int32)
            else:
                counted = np.zeros((self.batch, self.area, self.shape[0]), np.int32)
                starts, codes = self.events()
                spiking.count_codes(starts, codes, plane(self.shape)[1], counted)
                numbers = torch.from_numpy(counted)
            self._whole = numbers.transpose(1, 2).reshape(self.batch, *self.shape)
        return self._whole

    def words(self, count: int | None = None) -> Words:
        """Rows of bits ``[B, places, words]`` of spikes, with this many words."""
        if self._words is None:
            needed = -(-self.shape[0] // LANES)
            self._words = pack(places(self.whole()), needed)
        if count is None or self._words.shape[-1] == count:
            return self._words
        found = np.zeros((*self._words.shape[:-1], count), np.uint64)
        shared = min(count, self._words.shape[-1])
        found[..., :shared] = self._words[..., :shared]
        return found

    def events(self) -> Events:
        """Where the events of each place begin, and all events; numbers must be counts."""
        if self._events is None:
            if self._pooled is not None:
                source, window = self._pooled
                self._events = _listed(source, window, plane(self.shape))
            elif self._words is not None:
                self._events = _listed(self, ITSELF, plane(self.shape))
            else:
                self._events = _counts(places(self.whole()), plane(self.shape)[1])
        return self._events

    def any_of(self, window: Window, shape: Shape) -> Value:
        """The largest of each window of spikes."""
        words = self.words()
        found = np.zeros((self.batch, size(shape[1:]), words.shape[-1]), np.uint64)
        options = _pool_shape(self, window, plane(shape))
        spiking.any_spike(
            options, words.reshape(-1, words.shape[-1]), found.reshape(-1, words.shape[-1])
        )
        return Value(shape, self.batch, words=found)


def _pool_shape(source: Value, window: Window, out: tuple[int, int]) -> NDArray[np.int64]:
    return np.array(
        [
            source.batch,
            *plane(source.shape),
            source.shape[0],
            *window.kernel,
            *window.stride,
            *window.padding,
            *window.dilation,
            *out,
        ],
        np.int64,
    )


def _room(starts: NDArray[np.int64]) -> NDArray[np.int32]:
    np.cumsum(starts, out=starts)
    codes = np.empty(int(starts[-1]) + MARGIN, np.int32)
    codes[-MARGIN:] = 0
    return codes


def _listed(source: Value, window: Window, out: tuple[int, int]) -> Events:
    words = source.words()
    flat = words.reshape(-1, words.shape[-1])
    options = _pool_shape(source, window, out)
    starts = np.zeros(source.batch * out[0] * out[1] + 1, np.int64)
    spiking.count_events(options, flat, starts)
    codes = _room(starts)
    spiking.list_events(options, flat, starts, codes)
    return starts, codes


def _counts(numbers: NDArray[np.int32], width: int) -> Events:
    flat = numbers.reshape(-1, numbers.shape[-1])
    starts = np.zeros(len(flat) + 1, np.int64)
    spiking.sum_counts(flat, starts)
    codes = _room(starts)
    spiking.list_counts(flat, width, starts, codes)
    return starts, codes
