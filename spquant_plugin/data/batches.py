"""Which samples stand in which batch: by seed and epoch, from any batch on, for any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..errors import DataError
from .checks import whole_number


class Batches(Sampler[list[int]]):
    """Indices of the samples of each batch; a batch sampler for torch's ``DataLoader``.

    With ``shuffle`` the order is a permutation of ``count`` samples that follows from ``seed`` and
    ``epoch`` alone. Batch ``k`` is ``order[k * batch_size : (k + 1) * batch_size]``. Process
    ``rank`` of ``world`` gets the ``rank``-th ``batch_size / world`` of it: all processes together
    see what one process sees. A last, smaller batch is shared out as evenly as can be, and a
    process whose part is empty has one batch less; ``drop_last`` leaves that batch out for all.

    ``start`` leaves out that many batches of the first pass, without loading any of their samples.
    Each further pass over the same object is the next epoch, from its first batch. ``len`` is the
    number of batches of the next pass.

    Raises :class:`~spquant_plugin.errors.DataError` for a ``world`` that does not divide the batch,
    a ``start`` behind the last batch, and where ``drop_last`` would leave no batch.

    >>> [list(Batches(5, 4, rank=rank, world=2)) for rank in (0, 1)]
    [[[0, 1], [4]], [[2, 3]]]
    >>> whole, rest = (Batches(5, 2, shuffle=True, epoch=3, start=start) for start in (0, 1))
    >>> list(rest) == list(whole)[1:]
    True
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> None:
        whole_number("count", count, 1, 2**40)
        whole_number("batch_size", batch_size, 1, 2**31)
        whole_number("seed", seed, 0, 2**63 - 1)
        whole_number("epoch", epoch, 0, 10**6)
        whole_number("world", world, 1, 10**6)
        whole_number("rank", rank, 0, world - 1)
        _check_shares(count, batch_size, world, drop_last)
        self.count, self.batch_size, self.drop_last = count, batch_size, drop_last
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world = rank, world
        self.total = count // batch_size if drop_last else -(-count // batch_size)
        whole_number("start", start, 0, self.total)
        self.epoch, self.start = epoch, start
        self._orders = torch.Generator().manual_seed(seed)
        for _ in range(epoch):
            self._drawn()

    def __len__(self) -> int:
        last = self._part(self.total - 1)
        return self.total - self.start - (self.start < self.total and len(last) == 0)

    def __iter__(self) -> Iterator[list[int]]:
        # The pass counts from its first batch on: a loader with workers asks for two and uses one.
        order, start = self._order(), self.start
        self.epoch, self.start = self.epoch + 1, 0
        for number in range(start, self.total):
            part = self._part(number)
            if len(part):
                yield [order[place] for place in part]

    def _part(self, number: int) -> range:
        """Places in the order that this process has of a batch."""
        first = number * self.batch_size
        size = min(self.batch_size, self.count - first)
        each, more = divmod(size, self.world)
        begin = first + self.rank * each + min(self.rank, more)
        return range(begin, begin + each + (self.rank < more))

    def _order(self) -> Sequence[int]:
        """The order of the next epoch."""
        order = self._drawn()
        return range(self.count) if order is None else order.tolist()

    def _drawn(self) -> Tensor | None:
        """The next permutation, as torch's loader and its ``RandomSampler`` draw it.

        They draw a seed for the workers before each permutation and one more permutation, of which
        they use nothing, after it.
        """
        if not self.shuffle:
            return None
        torch.empty((), dtype=torch.int64).random_(generator=self._orders)
        order = torch.randperm(self.count, generator=self._orders)
        torch.randperm(self.count, generator=self._orders)
        return order

    def worker_seed(self) -> int:
        """What random numbers of workers follow from in the next pass: seed, epoch and rank."""
        stream = np.random.SeedSequence(self.seed, spawn_key=(self.epoch, self.rank))
        return int(stream.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_shares(count: int, batch_size: int, world: int, drop_last: bool) -> None:
    if batch_size % world:
        below, above = batch_size // world * world, -(-batch_size // world) * world
        near = " or ".join(str(size) for size in (below, above) if size)
        raise DataError(
            f"batch_size = {batch_size} for {world} processes: world must divide the batch, of "
            f"which each process takes a part. Use batches of {near}, or another number of "
            "processes."
        )
    if drop_last and count < batch_size:
        raise DataError(
            f"batch_size = {batch_size} with drop_last=True: {count} samples do not fill one "
            "batch, and nothing would be left. Use a smaller batch_size or drop_last=False."
        )
