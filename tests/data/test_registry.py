"""Data sets by their names."""

from __future__ import annotations

import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.data import create, digits, list_datasets
from spquant_plugin.data.registry import SETS
from spquant_plugin.errors import DataError

from .generated_images import cifar10, cifar100, imagenet

NAMES = [
    "cifar10", "cifar100", "digits", "dvs-cifar10", "dvs-gesture", "imagenet", "motion",
    "motion-hard", "n-caltech101", "n-cars", "n-mnist", "shd",
]  # fmt: skip


def test_the_names_are_listed():
    assert list_datasets() == NAMES


def test_the_embedded_sets_are_made():
    hard = create("motion-hard", "test", steps=4, size=(12, 12), seed=3, count=16, cache=False)
    direct = spq.data.Motion(
        "test", steps=4, size=12, seed=3, count=16, level="hard", cache=False
    )  # fmt: skip
    assert torch.equal(hard.frames, direct.frames)
    assert hard.classes == direct.classes
    easy = create("motion", steps=3, size=8, count=4, level="easy", cache=False)
    assert easy.sample_shape == (3, 1, 8, 8)


def test_digits_get_what_was_asked_for(monkeypatch):
    """Recording all of them takes long: these are the first twenty."""
    images, numbers = digits._load_digits()
    monkeypatch.setattr(digits, "_load_digits", lambda: (images[:20], numbers[:20]))
    data = create("digits", "validation", steps=2, size=8, variants=2, cache=False, progress=False)
    assert isinstance(data, spq.data.DigitEvents)
    assert (data.sample_shape, data.split, data.variants) == ((2, 2, 8, 8), "validation", 2)


@pytest.mark.parametrize(
    ("name", "write", "shape"),
    [
        ("cifar10", cifar10, (2, 3, 32, 32)),
        ("cifar100", cifar100, (2, 3, 32, 32)),
        ("imagenet", imagenet, (2, 3, 224, 224)),
    ],
)
def test_sets_on_disk_are_read(tmp_path, name, write, shape):
    write(tmp_path)
    data = create(name, "test", root=tmp_path, steps=2)
    assert type(data).__name__ == SETS[name].name
    assert data.sample_shape == tuple(data[0][0].shape) == shape
    small = create(name, root=tmp_path, steps=3, size=16, validation=0.5, seed=1)
    assert (small.split, small.seed, small.sample_shape) == ("train", 1, (3, 3, 16, 16))
    assert len(small) * 2 == len(create(name, root=tmp_path, steps=1, validation=0))


@pytest.mark.parametrize("name", [name for name in NAMES if SETS[name].on_disk])
def test_a_missing_folder_is_said_with_what_belongs_where(tmp_path, name):
    for root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as caught:
            create(name, root=root, steps=4)
        text = str(caught.value)
        assert text.startswith(f"root = {None if root is None else str(root)!r}: ")
        assert all(part in text for part in ("B", "https://", "\n    root/", "never downloaded"))


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("cifar-10", {}, ["name = 'cifar-10'", "'shd'", "Did you mean 'cifar10'?"]),
        (3, {}, ["name = 3: must be one of"]),
        ("motion", {"speed": 1}, ["create('motion', speed=1)", "takes no such option", "level"]),
        ("cifar10", {"validaton": 0.2}, ["cifar10 takes", "Did you mean 'validation'?"]),
        ("cifar10", {"binary": True}, ["binary=True", "check, validation."]),
        ("motion-hard", {"level": "easy"}, ["level='easy'", "settles level = 'hard'"]),
        ("digits", {"root": "here"}, ["root='here'", "comes with the package", "Leave root out"]),
        ("motion", {"size": (8, 9)}, ["size = (8, 9)", "square"]),
        ("motion", {"size": "big"}, ["size = 'big'", "whole number"]),
        ("motion", {"split": "val"}, ["split = 'val'", "Did you mean 'validation'?"]),
        ("dvs-cifar10", {"transform": 1}, ["transform=1", "takes no such option", "binary"]),
    ],
)
def test_what_does_not_exist_is_refused_with_what_is_closest(name, options, parts):
    with pytest.raises(DataError) as caught:
        create(name, **{"steps": 4} | options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
