"""A weight layer, the neurons behind it, or both, ready for the kernels on rows of bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Convolution, Graph, Neuron, Node, Shape, size
from . import convolving as kernel
from . import layout
from .counting import BLOCK
from .grouping import emptied, filled
from .pixels import NO_MASK, known_before, mask_memory, mask_sizes
from .reference import whole_matmul
from .rows import (
    LANES,
    WIDEST,
    NeuronRows,
    WeightRows,
    Words,
    bits_for,
    unpack,
    width_for,
    width_of,
    window_rows,
)
from .values import Events, Value, Window, plane

# A number, also on its way, is int32 at most.
MOST_PLANES = 32
MOST_NUMBERS = 64
MOST_LEVEL_BITS = 5
COLUMN_BYTES = 2**24
# Nanoseconds, measured once; only their ratios count: a row of one plane by its words, 64 numbers,
# what each place costs besides; of a dense layer a product, an entry of its columns, a word of sums
# that become planes, and a number of its input.
ROW = {1: 0.7, 2: 0.4, 4: 0.4, 8: 0.6}
NUMBERS_ROW, SPOT, PRODUCT, COLUMN, WORD, WHOLE = 1.0, 60.0, 0.003, 0.8, 100.0, 2.0

NO_WORDS = np.zeros(0, np.uint64)
NO_NUMBERS = np.zeros(0, np.int32)
NO_EVENTS: Events = (np.zeros(1, np.int64), np.zeros(1, np.int32))


def planes_needed(low: int, high: int) -> int:
    """Planes of sums that leave room for a break that no sum reaches."""
    return bits_for(min(low, 0) - 1, max(high, 0) + 1)


@dataclass
class Weights:
    """Where a layer's windows lie, and its weights as rows; of groups with zeros between them."""

    source: Shape
    window: Window
    kernel: Shape
    rows: WeightRows
    sign: Tensor | None  # which the rows hold already
    keep: bool = False  # unpacked numbers once they were needed
    kept: Tensor | None = None

    @classmethod
    def of(cls, node: Any, source: Shape, sign: Tensor | None) -> Weights:
        """``source`` is the shape before flattening where a dense layer reads a flat value."""
        weight = node.weight
        if isinstance(node, Convolution):
            window = Window(weight.shape[2:], node.stride, node.padding, node.dilation)
            weight = filled(weight, node.groups)
        else:
            weight = weight.view(weight.shape[0], *source)
            window = Window(source[1:], (1,) * len(source[1:]), (0,) * len(source[1:]))
        rows = WeightRows.of(window_rows(weight, sign))
        return cls(source, window, tuple(weight.shape[2:]), rows, sign)

    def dense(self, value: Value, shape: Shape) -> Tensor:
        """Sums ``[B, places, O]`` by multiplying whole matrices."""
        columns = self._unpacked()
        x = value.whole().view(value.batch, self.source[0], *plane(self.source))
        height, width = plane(shape)
        small = int(x.min()) >= -128 and int(x.max()) <= 127
        x = x.permute(0, 2, 3, 1).to(torch.int8 if small else torch.int32)
        up, aside = self.window.padding
        x = torch.nn.functional.pad(x, (0, 0, aside, aside, up, up)).contiguous()
        sums = torch.empty(value.batch, height * width, self.rows.outputs, dtype=torch.int32)
        chunk = max(1, COLUMN_BYTES // (x.element_size() * height * width * len(columns)))
        for begin in range(0, value.batch, chunk):
            part = self._columns(x[begin : begin + chunk], height, width)
            if small:
                found = torch._int_mm(part, columns)
            else:
                found = whole_matmul(columns.T.contiguous(), part.T).T
            sums[begin : begin + chunk] = found.view(-1, height * width, self.rows.outputs)
        return sums

    def _unpacked(self) -> Tensor:
        """The weights int8 ``[inputs, O]``, as they were before the sign."""
        if self.kept is not None:
            return self.kept
        found = self._numbers()
        if self.keep:
            self.kept = found
        return found

    def _numbers(self) -> Tensor:
        weights = torch.from_numpy(self.rows.unpacked())
        if self.sign is not None:  # the rows may hold 128, -128 times -1, which is no int8
            weights = weights * self.sign.to(torch.int16)
        return weights.to(torch.int8)

    def restored(self, shape: Shape) -> Tensor:
        """The layer's own weights, int8 in this shape."""
        numbers = self._numbers().view(*self.kernel, self.source[0], self.rows.outputs)
        axes = range(len(self.kernel))
        weight = numbers.permute(-1, -2, *axes)
        if len(shape) > 2 and shape[1] < weight.shape[1]:
            weight = emptied(weight, shape[1])
        return weight.reshape(shape).contiguous()

    def read(self, value: Value, words: int, tiles: int) -> tuple[Events, Words]:
        """What the kernel reads: events, or planes of bits."""
        return value.events(), NO_WORDS

    def _columns(self, x: Tensor, height: int, width: int) -> Tensor:
        """Each place's window as a row ``[B * places, kernel * I]``."""
        batch, line, step, _ = x.stride()
        (ky, kx), (sy, sx), (gy, gx) = self.window.kernel, self.window.stride, self.window.dilation
        view = x.as_strided(
            (x.shape[0], height, width, ky, kx, x.shape[3]),
            (batch, sy * line, sx * step, gy * line, gx * step, 1),
        )
        return view.reshape(x.shape[0] * height * width, -1)


class Stage:
    """What one call of the kernel does: ``weights``, ``neuron``, or one after the other."""

    def __init__(
        self, node: Node, weights: Weights | None, neuron: Neuron | None, low: int, high: int
    ) -> None:
        self.node, self.weights, self.neuron = node, weights, neuron
        words, self.tiles = width_for(node.shape[0])
        self.row = words  # words of one tile
        self.words = words * self.tiles
        self.full = planes_needed(-max(-low, high), max(-low, high))
        self.small = self.full
        if weights is not None:
            most = BLOCK * weights.rows.largest
            self.small = min(self.full, planes_needed(-most, most))
        planes = weights.rows.planes if weights is not None else 0
        self.together = max(1, min(planes, WIDEST // words))  # planes of weights counted at once
        self._tables: dict[tuple[int, ...], NDArray[np.int64]] = {}  # by what a run is
        self.rows = None
        if neuron is not None:
            self.rows = NeuronRows.of(neuron, self.tiles, words, self.small, self.full)

    def hold(self, graph: Graph) -> None:
        """Refer to the nodes of this graph."""
        self.node = graph[self.node.name]
        if self.neuron is not None:
            self.neuron = cast(Neuron, graph[self.neuron.name])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tables": {}}  # a copy has addresses of its own

    @property
    def nbytes(self) -> int:
        """Bytes of weights and tables."""
        held = self.rows.nbytes if self.rows is not None else 0
        if self.weights is not None:
            held += self.weights.rows.words.nbytes
            held += 0 if self.weights.kept is None else self.weights.kept.numel()
        return held

    def faster(self, value: Value) -> str:
        """The path that should take less time for what enters now."""
        if self.weights is None:
            return "events"
        rows = self.weights.rows
        starts, _ = value.events()
        reach = size(self.weights.window.kernel) / size(self.weights.window.stride)
        spots = value.batch * size(self.node.shape[1:])
        inputs = size(self.weights.window.kernel) * self.weights.source[0]
        words = self.row
        row = rows.planes * ROW[words] if rows.planes else words * NUMBERS_ROW
        kept = 1 - known_before(self.neuron)
        events = self.tiles * (int(starts[-1]) * reach * row * kept + spots * SPOT)
        dense = spots * (inputs * (rows.outputs * PRODUCT + COLUMN) + self.words * WORD)
        dense += value.batch * size(value.shape) * WHOLE
        return "events" if events <= dense else "dense"

    def dense(self, value: Value) -> Tensor:
        """The layer alone, by matrices: ``[B, places, O]``; nothing where there is no layer."""
        if self.weights is None:
            return value.whole().flatten(2).transpose(1, 2)
        return self.weights.dense(value, self.node.shape)

    def sums(self, value: Value, steps: int, threads: int) -> Tensor:
        """The layer alone, by events: ``[B, places, lanes]``."""
        area = size(self.node.shape[1:])
        numbers = np.empty((value.batch, area, LANES * self.words), np.int32)
        none = (NO_WORDS, NO_WORDS, NO_WORDS, numbers, NO_WORDS, NO_WORDS, NO_WORDS)
        self._run(layout.SUM, value, (NO_WORDS, NO_WORDS), none, steps, value.batch, threads)
        sums = torch.from_numpy(numbers)
        sign = self.weights.sign if self.weights is not None else None
        if sign is not None:
            sums[:, :, : len(sign)] *= sign.to(torch.int32)
        return sums

    def fire(
        self,
        value: Value,
        state: Words,
        steps: int,
        threads: int,
        *,
        summed: bool = False,
        begun: Words = NO_WORDS,
        opened: Words = NO_WORDS,
        added: Words = NO_WORDS,
        history: bool = False,
    ) -> tuple[Words, Words]:
        """Spikes and, where asked for, the states after each step.

        The value is what the layer reads or, where it is ``summed`` already, what it gave.
        ``begun`` tells pixel masks, sample by sample, whether there was a step before.
        """
        area = size(self.node.shape[1:])
        bits = state.shape[2]
        batch = steps * len(state)
        spikes = np.empty((batch, area, self.words), np.uint64)
        past = np.empty((batch, area, bits, self.words) if history else 0, np.uint64)
        work, numbers = layout.FIRE, NO_NUMBERS
        if summed and self.neuron is not None:
            work, numbers = layout.FIRE_ON_SUMS, value.signed(self.neuron.sign, LANES * self.words)
        masks = mask_memory(self.neuron, state, begun)
        given = (spikes, state, past, numbers, *masks)
        self._run(work, value, (opened, added), given, steps, batch, threads)
        return spikes, past

    def _run(
        self,
        work: int,
        value: Value,
        extra: tuple[Words, Words],
        given: tuple[Words, Words, Words, NDArray[np.int32], Words, Words, Words],
        steps: int,
        batch: int,
        threads: int,
    ) -> None:
        samples = batch // max(1, steps)
        events, image = NO_EVENTS, cast(Words, NO_WORDS)
        if work != layout.FIRE_ON_SUMS and self.weights is not None:
            events, image = self.weights.read(value, self.row, self.tiles)
        bits = given[1].shape[2] if given[1].ndim > 1 else 1
        key = (work, steps, samples, bits, image.shape[1] if image.size else 0)
        if key not in self._tables:
            self._tables[key] = np.concatenate([self._shape(*key), self._held()])
        area = -(-size(self.node.shape[1:]) * self.row // WIDEST)
        jobs = max(1, samples * self.tiles)
        parts = min(area, 1 if threads == 1 else -(-4 * threads // jobs))
        table = np.concatenate([self._tables[key], _addresses(*events, *extra, *given, image)])
        kernel.run_layer(width_of(self.together * self.row), table, parts)

    def _held(self) -> NDArray[np.int64]:
        """Addresses of weights and tables, with the bytes of one tile."""
        found = [0] * 10
        if self.weights is not None:
            words = self.weights.rows.words
            found[:2] = words.ctypes.data, words.strides[0]
        if self.rows is not None:
            found[2], found[9] = self.rows.valid.ctypes.data, self.rows.flips.ctypes.data
            for i, rows in enumerate((self.rows.small, self.rows.full, self.rows.closed)):
                found[3 + 2 * i : 5 + 2 * i] = rows.ctypes.data, rows.strides[0]
        return np.array(found, np.int64)

    def _shape(
        self, work: int, steps: int, samples: int, bits: int, input_bits: int
    ) -> NDArray[np.int64]:
        weights, rows = self.weights, self.rows
        inside: tuple[int, ...] = (1, 1, 1, *(1,) * 4, 0, 0, 1, 1)
        if weights is not None:
            window = weights.window
            inside = (
                *plane(weights.source),
                weights.source[0],
                *window.kernel,
                *window.stride,
                *window.padding,
                *window.dilation,
            )
        numbers = 1
        if self.neuron is not None and self.neuron.counts is not None:
            numbers = self.neuron.counts[1] - self.neuron.counts[0] + 1
        return np.array(
            [
                steps,
                samples,
                *inside,
                *plane(self.node.shape),
                self.tiles,
                self.row,
                weights.rows.planes if weights is not None else 0,
                self.together,
                self.small,
                self.full,
                rows.states if rows is not None else 0,
                numbers,
                len(rows.flips) if rows is not None else 0,
                bits,
                max(1, (numbers - 1).bit_length()),
                rows.start if rows is not None else 0,
                work,
                *(NO_MASK if work == layout.SUM else mask_sizes(self.neuron)),
                input_bits,
            ],
            np.int64,
        )


def _addresses(*arrays: NDArray[Any]) -> NDArray[np.int64]:
    """Where arrays are, 0 of empty ones."""
    return np.array([array.ctypes.data if array.size else 0 for array in arrays], np.int64)


def levels_of(neuron: Neuron, history: Words) -> Tensor:
    """Stored levels int32 ``[B, *shape]`` of states ``[B, places, bits, words]``."""
    return neuron.level_of(states_of(neuron, history)).to(torch.int32)


def states_of(neuron: Neuron, planes: Words) -> Tensor:
    """States uint8 ``[B, *shape]`` of planes ``[B, places, bits, words]``."""
    bits = unpack(planes, neuron.shape[0])
    index = (bits << np.arange(planes.shape[2], dtype=np.uint8)[:, None]).sum(2, dtype=np.uint8)
    return torch.from_numpy(index).transpose(1, 2).reshape(len(planes), *neuron.shape)
