"""Depthwise layers: their weights as rows of bits, and their input as their kernel reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..graph import Convolution, Shape
from .rows import (
    WeightRows,
    Words,
    aligned,
    bits_for,
    pack,
    planes_of,
    side_by_side,
    tiled,
    unpack,
    width_for,
    window_rows,
)
from .stages import NO_EVENTS, Weights
from .values import Events, Value, Window, plane

# Bits of an input that its planes are multiplied one by one.
MOST_BITS = 8


@dataclass
class Depthwise(Weights):
    """Rows ``[tiles, kernel, planes, 8]``, which repeat a place as often as it fits."""

    @staticmethod
    def knows(node: Convolution, low: int, high: int) -> bool:
        """Whether each filter reads one channel, of counts."""
        single = node.groups > 1 and node.weight.shape[1] == 1
        return single and low >= 0 and high < 2**MOST_BITS

    @classmethod
    def of(cls, node: Convolution, source: Shape, sign: Tensor | None) -> Depthwise:
        """Pack the weights, times each channel's sign."""
        numbers = window_rows(node.weight, sign)
        low, high = int(numbers.min()), int(numbers.max())
        planes = bits_for(low, high)
        words, tiles = width_for(node.shape[0])
        rows = side_by_side(tiled(planes_of(numbers, planes, words * tiles), tiles))
        kernel = tuple(node.weight.shape[2:])
        window = Window(kernel, node.stride, node.padding, node.dilation)
        packed = WeightRows(rows, node.shape[0], max(-low, high), planes)
        return cls(source, window, kernel, packed, sign)

    def restored(self, shape: Shape) -> Tensor:
        """The layer's own weights, int8 in this shape."""
        words, _ = width_for(self.rows.outputs)
        rows = np.moveaxis(self.rows.words[..., :words], 0, 2)
        bits = unpack(rows.reshape(*rows.shape[:2], -1), self.rows.outputs).astype(np.int16)
        factors = np.int16(1) << np.arange(self.rows.planes, dtype=np.int16)
        factors[-1] *= -1
        numbers = torch.from_numpy((bits * factors[:, None]).sum(1, dtype=np.int16))
        if self.sign is not None:
            numbers = numbers * self.sign.to(torch.int16)
        return numbers.T.reshape(shape).to(torch.int8).contiguous()

    def read(self, value: Value, words: int, tiles: int) -> tuple[Events, Words]:
        """The input ``[B, bits, tiles, height, width, words]`` with zeros around."""
        planes = value.planes(words * tiles)
        times = self.rows.outputs // self.source[0]
        if times > 1:  # so many filters of each channel
            spread = np.repeat(unpack(value.planes(), self.source[0]), times, axis=-1)
            planes = pack(spread, words * tiles)
        (height, width), (up, aside) = plane(self.source), self.window.padding
        batch, _, bits, _ = planes.shape
        image = planes.reshape(batch, height, width, bits, tiles, words)
        tall, wide = height + 2 * up, width + 2 * aside
        found = aligned((batch, bits, tiles, tall, wide, words))
        inside = found[:, :, :, up : up + height, aside : aside + width]
        inside[...] = image.transpose(0, 3, 4, 1, 2, 5)
        return NO_EVENTS, found
