"""A value of all steps and samples, in whatever form its readers want it.

The forms are whole numbers, the same as rows of numbers or as sums of other values that nobody has
added up yet, planes of bits (spikes and counts) and events; each is made from another when it is
first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Shape, size
from . import spiking
from .counts import add_windows
from .rows import LANES, Words, pack, unpack

Events = tuple[NDArray[np.int64], NDArray[np.int32]]
# The kernel that moves events reads so many at a time, also behind the last.
MARGIN = 32


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


class Terms:
    """Values that are still to be added up, each times factors, and an offset; per channel."""

    def __init__(self, parts: Sequence[tuple[Value, Tensor]], offset: Tensor | None = None) -> None:
        self.parts, self.offset = tuple(parts), offset

    def times(self, factor: Tensor) -> Terms:
        """All of it times a factor."""
        offset = None if self.offset is None else self.offset * factor
        return Terms([(value, own * factor) for value, own in self.parts], offset)

    def plus(self, other: Terms) -> Terms:
        """Both together."""
        offset = other.offset if self.offset is None else self.offset
        if self.offset is not None and other.offset is not None:
            offset = self.offset + other.offset
        return Terms((*self.parts, *other.parts), offset)

    def rows(self, channels: int, lanes: int) -> Tensor:
        """What they add up to, int32 ``[B, places, lanes]``; 0 behind the channels."""
        offset = torch.zeros(1, dtype=torch.int32) if self.offset is None else self.offset
        total = _in_lanes(offset, channels, lanes)
        for i, (value, factor) in enumerate(self.parts):
            rows, factors = value.rows(lanes), _in_lanes(factor, channels, lanes)
            total = total.addcmul_(rows, factors) if i else torch.addcmul(total, rows, factors)
        return total


class Value:
    """Whole numbers of a shape for ``batch`` steps and samples."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        *,
        whole: Tensor | None = None,
        words: Words | None = None,
        planes: Words | None = None,
        rows: Tensor | None = None,
        terms: Terms | None = None,
        events: Events | None = None,
        pooled: tuple[Value, Window] | None = None,
    ) -> None:
        self.shape, self.batch = shape, batch
        self._whole, self._rows, self._terms = whole, rows, terms
        self._planes = planes if words is None else words[:, :, None]
        self._events, self._pooled = events, pooled

    @property
    def area(self) -> int:
        return size(self.shape[1:])

    def whole(self) -> Tensor:
        """int32 ``[B, C, *space]``."""
        if self._whole is None:
            if self._planes is None and self._pooled is not None:
                counted = np.zeros((self.batch, self.area, self.shape[0]), np.int32)
                starts, codes = self.events()
                spiking.count_codes(starts, codes, plane(self.shape)[1], counted)
                numbers = torch.from_numpy(counted)
            else:
                numbers = self.rows()[:, :, : self.shape[0]]
            self._whole = numbers.transpose(1, 2).reshape(self.batch, *self.shape)
        return self._whole

    def rows(self, lanes: int | None = None) -> Tensor:
        """int32 ``[B, places, lanes]``, 0 behind the channels."""
        lanes = LANES * -(-self.shape[0] // LANES) if lanes is None else lanes
        if self._rows is None:
            if self._terms is not None:
                self._rows = self._terms.rows(self.shape[0], lanes)
            elif self._planes is not None:
                self._rows = _numbers(self._planes, lanes)
            else:
                whole = self.whole()
                self._rows = (whole.flatten(2) if whole.ndim > 2 else whole[..., None]).mT
        if self._rows.shape[2] == lanes:
            return self._rows
        shared = min(lanes, self._rows.shape[2])
        found = torch.zeros(*self._rows.shape[:2], lanes, dtype=torch.int32)
        found[:, :, :shared] = self._rows[:, :, :shared]
        return found

    def signed(self, sign: Tensor, lanes: int) -> NDArray[np.int32]:
        """The rows, each channel times a sign."""
        terms = self.terms().times(sign.to(torch.int32))
        found: NDArray[np.int32] = terms.rows(self.shape[0], lanes).numpy()
        return found

    def terms(self) -> Terms:
        """What the value is the sum of: itself, where that is known."""
        if self._terms is not None and self._rows is None and self._whole is None:
            return self._terms
        return Terms([(self, torch.ones(1, dtype=torch.int32))])

    def planes(self, count: int | None = None) -> Words:
        """Counts as planes of bits ``[B, places, bits, words]``, with this many words."""
        if self._planes is None:
            if self._pooled is not None:
                source, window = self._pooled
                sides, out = plane(source.shape), plane(self.shape)
                self._planes = add_windows(
                    source.planes(), sides, out, window.kernel, window.stride, window.padding
                )
            else:
                numbers = places(self.whole())
                bits = max(1, int(numbers.max(initial=0)).bit_length())
                bits_of = numbers[:, :, None] >> np.arange(bits)[:, None] & 1
                self._planes = pack(bits_of, -(-self.shape[0] // LANES))
        if count is None or self._planes.shape[-1] == count:
            return self._planes
        found = np.zeros((*self._planes.shape[:-1], count), np.uint64)
        shared = min(count, self._planes.shape[-1])
        found[..., :shared] = self._planes[..., :shared]
        return found

    def words(self, count: int | None = None) -> Words:
        """Rows of bits ``[B, places, words]`` of spikes, with this many words."""
        return self.planes(count)[:, :, 0]

    def events(self) -> Events:
        """Where the events of each place begin, and all events; numbers must be counts."""
        if self._events is None:
            if self._pooled is not None:
                source, window = self._pooled
                self._events = _listed(source, window, plane(self.shape))
            elif self._planes is not None:
                self._events = _listed(self, ITSELF, plane(self.shape))
            else:
                self._events = _counts(places(self.whole()), plane(self.shape)[1])
        return self._events

    def any_of(self, window: Window, shape: Shape) -> Value:
        """The largest of each window of spikes."""
        words = self.words()
        found = np.zeros((self.batch, size(shape[1:]), words.shape[-1]), np.uint64)
        options = _pool_shape(self, window, plane(shape), 1)
        spiking.any_spike(
            options, words.reshape(-1, words.shape[-1]), found.reshape(-1, words.shape[-1])
        )
        return Value(shape, self.batch, words=found)


def _in_lanes(factors: Tensor, channels: int, lanes: int) -> Tensor:
    """One factor or one per channel in all lanes, 0 behind the channels."""
    found = torch.zeros(lanes, dtype=torch.int32)
    found[:channels] = factors
    return found


def _numbers(planes: Words, lanes: int) -> Tensor:
    """int32 ``[B, places, lanes]`` of planes."""
    held = min(lanes, LANES * planes.shape[3])
    found = torch.zeros(*planes.shape[:2], lanes, dtype=torch.int32)
    for bit in range(planes.shape[2]):
        ones = torch.from_numpy(unpack(planes[:, :, bit], held))
        found[:, :, :held].add_(ones, alpha=1 << bit)
    return found


def _pool_shape(
    source: Value, window: Window, out: tuple[int, int], bits: int
) -> NDArray[np.int64]:
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
            bits,
        ],
        np.int64,
    )


def _room(starts: NDArray[np.int64]) -> NDArray[np.int32]:
    np.cumsum(starts, out=starts)
    codes = np.empty(int(starts[-1]) + MARGIN, np.int32)
    codes[-MARGIN:] = 0
    return codes


def _listed(source: Value, window: Window, out: tuple[int, int]) -> Events:
    planes = source.planes()
    flat = planes.reshape(-1, planes.shape[2] * planes.shape[3])
    options = _pool_shape(source, window, out, planes.shape[2])
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
