"""Random changes of samples: the same for the same seed, epoch and sample, whoever reads them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from spquant_plugin.data import Augmented, Motion, crop_and_flip, loader, roll_and_flip
from spquant_plugin.errors import DataError
from spquant_plugin.functional.inputs import quantize_input


class Stills(Dataset):
    """Different images, each seen three times without a copy."""

    classes = ("all",)
    split = "train"
    sample_shape = (3, 2, 6, 7)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        image = 1 + torch.arange(84.0).view(1, 2, 6, 7) + 100 * index
        return image.expand(3, 2, 6, 7), 0


class Moving(Stills):
    def __getitem__(self, index: int):
        still, label = super().__getitem__(index)
        return still + 1000 * torch.arange(3.0)[:, None, None, None], label


def everything(data, **options) -> torch.Tensor:
    return torch.cat([frames for frames, _ in loader(data, 4, **options)], dim=1)


def test_samples_follow_seed_epoch_and_index_alone():
    first = everything(Augmented(Moving(), roll_and_flip(3), seed=1))
    again = Augmented(Moving(), roll_and_flip(3), seed=1)
    torch.manual_seed(99)
    backwards = torch.stack([again[index][0] for index in reversed(range(12))], dim=1).flip(1)
    assert torch.equal(first, backwards)
    assert torch.equal(first, everything(again, num_workers=2))
    assert torch.equal(first[:, 4:], everything(again, start=1))
    assert torch.equal(first[:, 2:4], next(iter(loader(again, 4, rank=1, world=2)))[0])
    assert torch.equal(again[-1][0], first[:, 11])
    others = [Augmented(Moving(), roll_and_flip(3), seed=2)]
    others.append(Augmented(Moving(), roll_and_flip(3), seed=1, epoch=1))
    again.set_epoch(1)
    assert torch.equal(everything(again, num_workers=1), everything(others[1]))
    for other in others:
        assert not torch.equal(first, everything(other))


def test_every_sample_draws_its_own():
    data = Augmented(Moving(), lambda frames: torch.rand(()).expand(frames.shape))
    assert len({data[index][0][0, 0, 0, 0].item() for index in range(12)}) == 12


def test_the_generators_of_the_run_go_on_as_if_nothing_was_drawn():
    def draw(frames):
        return frames * 0 + torch.rand(()) + float(np.random.random()) + random.random()

    def state():
        return torch.rand(3).tolist(), np.random.random(3).tolist(), random.random()

    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    data, expected = Augmented(Moving(), draw), state()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    first, again = data[3][0], data[3][0]
    assert state() == expected
    assert torch.equal(first, again)
    with pytest.raises(ZeroDivisionError):
        Augmented(Moving(), lambda frames: 1 / 0)[0]
    assert len(state()) == 3


def test_what_the_data_set_draws_itself_is_seeded_too():
    class Noisy(Moving):
        def __getitem__(self, index: int):
            return torch.rand(3, 2, 6, 7), 0

    data = Augmented(Noisy(), crop_and_flip(0, flip=False))
    assert torch.equal(data[1][0], data[1][0])
    assert not torch.equal(data[1][0], data[2][0])


@pytest.mark.parametrize("transform", [crop_and_flip(2), roll_and_flip(2)])
def test_images_are_changed_once_and_stay_one_copy(transform):
    seen = []

    def watched(frames):
        seen.append(frames.shape)
        return transform(frames)

    frames, _ = Augmented(Stills(), watched)[4]
    assert seen == [(1, 2, 6, 7)]
    assert frames.shape == (3, 2, 6, 7)
    assert frames.stride(0) == 0
    batch = everything(Augmented(Stills(), transform), num_workers=1)
    assert torch.equal(batch[:, 4], frames)
    assert next(iter(loader(Augmented(Stills(), transform))))[0].stride(0) == 0


def places(data, index: int) -> tuple[int, int, bool]:
    """Where the pixel of row 3, column 3 went, and whether the row was mirrored."""
    frames, original = data[index][0], data.data[index][0]
    assert all(torch.equal(frames[t] > 0, frames[0] > 0) for t in range(3))
    assert torch.equal((frames[1] - frames[0])[frames[0] > 0].unique(), torch.tensor([1000.0]))
    ((row, column),) = (frames[0, 0] == original[0, 0, 3, 3]).nonzero().tolist()
    _, right = (frames[0, 0] == original[0, 0, 3, 4]).nonzero()[0].tolist()
    mirrored = (right - column) % 7 == 6
    return row - 3, (6 - column if mirrored else column) - 3, mirrored


def test_roll_and_flip_moves_all_steps_alike_and_loses_nothing():
    found = set()
    for epoch in range(40):
        data = Augmented(Moving(), roll_and_flip(2), epoch=epoch)
        for index in range(12):
            frames, original = data[index][0], data.data[index][0]
            down, right, mirrored = places(data, index)
            expected = original.roll((down, right), dims=(2, 3))
            assert torch.equal(frames, expected.flip(3) if mirrored else expected)
            found.add((down, right, mirrored))
    moves = range(-2, 3)
    assert found == {(y, x, flip) for y in moves for x in moves for flip in (True, False)}


def test_crop_and_flip_fills_with_zeros():
    found = set()
    for epoch in range(40):
        data = Augmented(Moving(), crop_and_flip(2), epoch=epoch)
        for index in range(12):
            frames, original = data[index][0], data.data[index][0]
            down, right, mirrored = places(data, index)
            expected = torch.zeros(3, 2, 10, 11)
            expected[:, :, 2 + down : 8 + down, 2 + right : 9 + right] = original
            expected = expected[:, :, 2:8, 2:9]
            assert torch.equal(frames, expected.flip(3) if mirrored else expected)
            found.add((down, right, mirrored))
    moves = range(-2, 3)
    assert found == {(y, x, flip) for y in moves for x in moves for flip in (True, False)}


@pytest.mark.parametrize("transform", [crop_and_flip(1, flip=False), roll_and_flip(1, flip=False)])
def test_mirrors_can_be_left_out(transform):
    data = Augmented(Moving(), transform)
    assert not any(places(data, index)[2] for index in range(12))
    assert "flip=False" in repr(transform)


def test_levels_of_images_stay_whole():
    class Bytes(Stills):
        def __getitem__(self, index: int):
            pixels = torch.arange(84).view(1, 2, 6, 7) + index
            return (pixels.float() / 255).expand(3, 2, 6, 7), 0

    for transform in (crop_and_flip(), roll_and_flip()):
        levels = quantize_input(Augmented(Bytes(), transform)[5][0], 8, 0.0, 1.0)
        assert set(levels.unique().tolist()) <= {0.0, *map(float, range(5, 90))}


def test_transforms_of_torchvision_are_taken():
    data = Augmented(Moving(), v2.RandomVerticalFlip(0.5))
    flipped = [not torch.equal(data[index][0], Moving()[index][0]) for index in range(12)]
    assert 0 < sum(flipped) < 12
    for index in range(12):
        original = Moving()[index][0]
        expected = original.flip(2) if flipped[index] else original
        assert torch.equal(data[index][0], expected)


def test_it_says_what_the_data_set_says():
    data = Augmented(Moving(), roll_and_flip())
    assert (data.classes, data.sample_shape, data.split) == (("all",), (3, 2, 6, 7), "train")
    assert len(data) == 12
    assert repr(data) == "Augmented Moving(12 samples, 3 steps of 2x6x7, 1 classes)"
    with pytest.raises(IndexError):
        Augmented(Motion(count=4, cache=False), roll_and_flip())[4]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((torch.utils.data.TensorDataset(torch.zeros(2)), abs), ["TensorDataset", "no classes"]),
        ((Moving(), None), ["transform = None", "callable", "crop_and_flip()"]),
    ],
)
def test_data_and_transforms_that_cannot_be_used_are_refused(arguments, parts):
    with pytest.raises(DataError) as caught:
        Augmented(*arguments)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("epoch", 0.5)])
def test_seeds_and_epochs_are_whole_numbers(name, value):
    with pytest.raises(DataError, match=f"{name} = {value}: must be a whole number"):
        Augmented(Moving(), roll_and_flip(), **{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [(crop_and_flip, "padding = -1: must be a"), (roll_and_flip, "shift = -1: must be a")],
)
def test_distances_are_whole_numbers(make, message):
    with pytest.raises(DataError, match=message):
        make(-1)


@pytest.mark.parametrize(
    ("transform", "said"),
    [(lambda frames: frames[..., :3], r"\(3, 2, 6, 3\)"), (lambda frames: None, "NoneType")],
)
def test_a_transform_must_keep_the_shape(transform, said):
    for data in (Moving(), Stills()):
        with pytest.raises(DataError, match=rf"sample 3: the transform returned {said}: must be"):
            Augmented(data, transform)[3]
