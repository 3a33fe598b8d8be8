"""Which samples stand in which batch, for any process and from any batch on."""

from __future__ import annotations

import random
from itertools import zip_longest

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from spquant_plugin.data import Batches, Motion, collate, loader
from spquant_plugin.errors import DataError


def orders_of_torch(count: int, seed: int, epochs: int) -> list[list[int]]:
    """Those of a DataLoader with a RandomSampler: stored results were trained in them."""
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for _ in range(epochs):
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # seed of the workers
        orders.append(torch.randperm(count, generator=generator).tolist())
        torch.randperm(count, generator=generator)
    return orders


class Numbers(Dataset):
    """Items that say which they are, and what three generators draw when they are read."""

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int):
        drawn = torch.rand(()).item(), np.random.random(), random.random()
        return torch.tensor([[[float(index), *drawn]]]), index


def seen(load) -> list[list[int]]:
    return [labels.tolist() for _, labels in load]


def cut(order: list[int], size: int) -> list[list[int]]:
    return [order[first : first + size] for first in range(0, len(order), size)]


@pytest.mark.parametrize("workers", [0, 1])
def test_passes_over_one_loader_have_the_orders_they_always_had(workers):
    load = loader(Numbers(), 4, shuffle=True, seed=5, drop_last=True, num_workers=workers)
    passes = [seen(load) for _ in range(2)]
    assert passes == [cut(order, 4)[:-1] for order in orders_of_torch(21, 5, 2)]


def test_a_loader_of_torch_gives_the_same_orders():
    generator = torch.Generator().manual_seed(3)
    theirs = torch.utils.data.DataLoader(Numbers(), 4, shuffle=True, generator=generator)
    ours = loader(Numbers(), 4, shuffle=True, seed=3)
    assert [seen(theirs) for _ in range(3)] == [seen(ours) for _ in range(3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_where_it_was_stopped(workers):
    whole = loader(Numbers(), 4, shuffle=True, seed=2)
    passes = [seen(whole) for _ in range(4)]
    rest = loader(Numbers(), 4, shuffle=True, seed=2, epoch=2, start=4, num_workers=workers)
    assert len(rest) == 2
    assert seen(rest) == passes[2][4:]
    assert len(rest) == 6
    assert seen(rest) == passes[3]


def test_nothing_is_loaded_of_the_batches_left_out():
    class Touched(Numbers):
        def __getitem__(self, index: int):
            touched.append(index)
            return super().__getitem__(index)

    touched: list[int] = []
    assert seen(loader(Touched(), 4, start=4)) == [[16, 17, 18, 19], [20]]
    assert touched == [16, 17, 18, 19, 20]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("sizes", [(21, 4, 2), (23, 6, 3), (8, 8, 4), (9, 4, 4)])
def test_processes_together_see_what_one_sees(sizes, drop_last):
    count, batch, world = sizes
    alike = {"shuffle": True, "seed": 1, "epoch": 2, "drop_last": drop_last}
    expected = cut(orders_of_torch(count, 1, 3)[2], batch)
    if drop_last:
        expected = [part for part in expected if len(part) == batch]
    assert list(Batches(count, batch, **alike)) == expected
    parts = [Batches(count, batch, rank=rank, world=world, **alike) for rank in range(world)]
    lengths = [len(part) for part in parts]
    shared = [list(part) for part in parts]
    assert lengths == [len(part) for part in shared]
    joined = [[i for part in parts for i in part] for parts in zip_longest(*shared, fillvalue=[])]
    assert joined == expected
    for batches in shared:
        assert all(len(part) == batch // world for part in batches[: count // batch])
    last = [len(part[-1]) if len(part) == len(expected) else 0 for part in shared]
    assert max(last) - min(last) <= 1


def test_a_process_without_a_part_of_the_last_batch_has_one_batch_less():
    parts = [Batches(9, 4, rank=rank, world=4) for rank in range(4)]
    assert [len(part) for part in parts] == [3, 2, 2, 2]
    assert [list(part)[-1] for part in parts] == [[8], [5], [6], [7]]
    assert [len(Batches(9, 4, rank=3, world=4, start=start)) for start in (1, 2, 3)] == [1, 0, 0]


def test_without_shuffling_every_epoch_is_in_order():
    assert list(Batches(5, 2, epoch=7)) == [[0, 1], [2, 3], [4]]


def drawn(**options) -> list[list[float]]:
    load = loader(Numbers(), 7, num_workers=2, **options)
    return torch.cat([frames[0, :, 0, 1:] for frames, _ in load]).tolist()


def test_random_numbers_of_workers_follow_seed_epoch_and_process():
    first = drawn(seed=4, epoch=1)
    assert first == drawn(seed=4, epoch=1)
    # Workers 0 and 1 take batches in turn; no two of them draw alike.
    assert len({tuple(row) for row in first}) == 21
    others = [drawn(seed=5, epoch=1), drawn(seed=4, epoch=2), drawn(seed=4)]
    for kind in range(3):
        column = [row[kind] for row in first]
        assert all(column != [row[kind] for row in other] for other in others)
    halves = [
        loader(Numbers(), 14, num_workers=1, rank=rank, world=2, drop_last=True) for rank in (0, 1)
    ]
    (a, _), (b, _) = (next(iter(half)) for half in halves)
    assert not (a[..., 1:] == b[..., 1:]).any()


def test_the_second_pass_draws_as_a_loader_of_the_second_epoch():
    load = loader(Numbers(), 7, num_workers=1)
    list(load)
    again = torch.cat([frames for frames, _ in load], dim=1)
    expected = torch.cat([frames for frames, _ in loader(Numbers(), 7, epoch=1, num_workers=1)], 1)
    assert torch.equal(again, expected)


class Stills(Dataset):
    """One image, seen three times without a copy."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        return torch.full((2, 4, 4), index / 255).expand(3, 2, 4, 4), index


@pytest.mark.parametrize("workers", [0, 1])
def test_repeated_images_stay_one_copy_in_a_batch(workers):
    for frames, labels in loader(Stills(), 2, num_workers=workers):
        assert frames.shape == (3, len(labels), 2, 4, 4)
        assert frames.stride(0) == 0
        assert frames.untyped_storage().nbytes() == frames[0].numel() * 4
        expected = (labels / 255)[None, :, None, None, None].expand_as(frames)
        assert torch.equal(frames, expected)


def test_a_batch_of_images_and_recordings_is_copied():
    still, moving = Stills()[2][0], torch.rand(3, 2, 4, 4)
    frames, _ = collate([(still, 0), (moving, 1)])
    assert torch.equal(frames, torch.stack([still, moving], dim=1))
    assert frames.stride(0) != 0
    alone, _ = collate([(still[:1], 0)])
    assert alone.shape == (1, 1, 2, 4, 4)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="torch can pin here")
def test_pinning_without_a_device_is_a_warning_of_torch_and_the_batches_are_the_same():
    with pytest.warns(UserWarning, match="no accelerator is found"):
        pinned = list(loader(Stills(), 2, pin_memory=True))
    for (x, y), (same_x, same_y) in zip(pinned, loader(Stills(), 2), strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"count": 0}, ["count = 0", "from 1"]),
        ({"batch_size": 0}, ["batch_size = 0", "from 1"]),
        ({"batch_size": 2.5}, ["batch_size = 2.5", "whole number"]),
        ({"seed": -1}, ["seed = -1", "from 0"]),
        ({"epoch": -1}, ["epoch = -1", "from 0"]),
        ({"world": 0}, ["world = 0", "from 1"]),
        ({"world": 2, "rank": 2}, ["rank = 2", "from 0 to 1"]),
        ({"start": 4}, ["start = 4", "from 0 to 3"]),
        ({"world": 3}, ["batch_size = 4 for 3 processes", "divide", "batches of 3 or 6"]),
        ({"world": 5}, ["batch_size = 4 for 5 processes", "batches of 5, or another number"]),
        ({"count": 3, "drop_last": True}, ["batch_size = 4", "3 samples", "drop_last=False"]),
    ],
)
def test_batches_that_cannot_be_are_refused(options, parts):
    with pytest.raises(DataError) as caught:
        Batches(**{"count": 10, "batch_size": 4} | options)
    assert all(part in str(caught.value) for part in parts)


def test_a_stream_without_a_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1, 1, 1, 1), 0

    with pytest.raises(DataError, match=r"received Stream: must be a data set with a length"):
        loader(Stream())


def test_sets_say_the_shape_of_their_items():
    data = Motion("test", count=4, size=8, steps=5, cache=False)
    assert data.sample_shape == tuple(data[0][0].shape) == (5, 1, 8, 8)
