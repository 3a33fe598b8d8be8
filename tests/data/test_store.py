"""The cache: one file for one way of making, never trusted, never half written."""

from __future__ import annotations

import functools
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tonic.transforms
import torch

from spquant_plugin.data import Motion, MotionLevel, cache_folder, store
from spquant_plugin.data.store import describe, stored
from spquant_plugin.errors import DataError, DataWarning

ARRAYS = {"frames": np.arange(64, dtype=np.int16).reshape(4, 4, 4), "labels": np.arange(4)}
NAMES = ("frames", "labels")


class Maker:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {name: array.copy() for name, array in ARRAYS.items()}


def load(folder: Path, maker: Maker, **made_from):
    return stored("test", {"seed": 0} | made_from, maker, folder, NAMES)


def same(arrays) -> bool:
    return set(arrays) == set(ARRAYS) and all(
        np.array_equal(arrays[name], ARRAYS[name]) and arrays[name].dtype == ARRAYS[name].dtype
        for name in ARRAYS
    )


def test_the_second_time_the_file_is_read(tmp_path):
    maker = Maker()
    assert same(load(tmp_path, maker))
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert same(load(tmp_path, maker))
    assert maker.calls == 1
    assert file.stat().st_mtime_ns == written


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
def test_others_may_read_a_stored_file_if_the_user_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        load(tmp_path, Maker())
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_data_set_is_made_once(tmp_path, monkeypatch):
    first = Motion(count=16, cache=tmp_path)

    def fails(*_):
        raise AssertionError("made again")

    monkeypatch.setattr("spquant_plugin.data.motion._make", fails)
    again = Motion(count=16, cache=str(tmp_path))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.labels, again.labels)
    with pytest.raises(AssertionError, match="made again"):
        Motion(count=16, cache=False)


@dataclass(frozen=True)
class Keep:
    """A transform that says its settings."""

    steps: int

    def __call__(self, spikes):
        return spikes[: self.steps]


def test_whatever_changes_the_data_has_a_file_of_its_own(tmp_path):
    base = {"count": 8, "level": "easy", "steps": 4, "size": 8}
    changes = [{}, {"count": 9}, {"level": "hard"}, {"steps": 5}, {"size": 9}, {"seed": 1}]
    changes += [{"split": "test"}, {"level": MotionLevel(speeds=(1,), noise=0.001)}]
    changes += [{"transform": Keep(2)}, {"transform": Keep(3)}]
    for number, change in enumerate(changes):
        data = Motion(**(base | change), cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == number + 1, change
        made = Motion(**(base | change), cache=False)
        assert torch.equal(data.frames, made.frames)
    Motion(**base, split="train", seed=0, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(changes)


def flip(spikes):
    return spikes[::-1]


class Nameless:
    def __call__(self, spikes):
        return spikes


@dataclass(frozen=True)
class Multiply:
    mask: np.ndarray

    def __call__(self, spikes):
        return spikes & self.mask


def test_a_transform_whose_text_leaves_something_out_is_refused(tmp_path):
    transform = Multiply(np.ones((64, 64), dtype=bool))  # printed with dots in the middle
    with pytest.raises(DataError, match="its text leaves something out") as caught:
        Motion(count=4, size=64, transform=transform, cache=tmp_path)
    assert "pass cache=False" in str(caught.value)
    assert len(Motion(count=4, size=64, transform=transform, cache=False)) == 4


@pytest.mark.parametrize("cache", [True, False])
def test_a_transform_that_cannot_be_called_is_refused(cache):
    with pytest.raises(DataError, match="transform = 3: must be callable"):
        Motion(count=4, transform=3, cache=cache)


@pytest.mark.parametrize(
    "transform", [lambda s: s, flip, functools.partial(flip), Nameless()], ids=type
)
def test_a_transform_whose_text_changes_from_run_to_run_is_refused(transform, tmp_path):
    with pytest.raises(DataError, match="its text changes from run to run") as caught:
        Motion(count=4, transform=transform, cache=tmp_path)
    assert all(part in str(caught.value) for part in ("transform = ", "__repr__", "cache=False"))
    assert not list(tmp_path.iterdir())


def test_without_a_cache_any_transform_will_do():
    plain = Motion(count=4, cache=False)
    data = Motion(count=4, transform=lambda spikes: ~spikes, cache=False)
    assert torch.equal(data.frames, 1 - plain.frames)


def test_transforms_are_described_by_type_and_settings():
    crop = tonic.transforms.CropTime(min=0, max=500)
    assert describe(None) is None
    assert describe(crop) == describe(tonic.transforms.CropTime(min=0, max=500))
    assert "max=500" in describe(crop)
    assert describe(crop) != describe(tonic.transforms.CropTime(min=0, max=501))
    assert describe(Keep(1)) == f"{__name__}.Keep(steps=1)"


class Hostile:
    """Leaves a trace where a pickle of it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def hostile(file: Path, name: str) -> None:
    held = {"key": np.load(file)["key"], **ARRAYS}
    held[name] = np.array([Hostile(file.with_name("trace"))], dtype=object)
    np.savez_compressed(file, **held)


def without(file: Path, name: str) -> None:
    held = {"key": np.load(file)["key"], **ARRAYS}
    del held[name]
    np.savez_compressed(file, **held)


def one_array(file: Path) -> None:
    with file.open("wb") as stream:
        np.save(stream, ARRAYS["frames"])


def flip_a_bit(file: Path, share: float) -> None:
    raw = bytearray(file.read_bytes())
    raw[int(len(raw) * share)] ^= 16
    file.write_bytes(raw)


DAMAGE = {
    "empty": (lambda file: file.write_bytes(b""), "not a whole npz"),
    "text": (lambda file: file.write_text("not a data set\n" * 50), "not a whole npz"),
    "first half": (lambda file: file.write_bytes(file.read_bytes()[:300]), "not a whole npz"),
    "last byte": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "not a whole npz"),
    "bit of the frames": (lambda file: flip_a_bit(file, 0.45), "error|CRC"),
    "other key": (
        lambda file: np.savez_compressed(file, key=np.array("{}"), **ARRAYS),
        "made from something else",
    ),
    "no key": (lambda file: without(file, "key"), "key"),
    "no frames": (lambda file: without(file, "frames"), "frames"),
    "one array": (one_array, "not a whole npz"),
    "pickle for the frames": (lambda file: hostile(file, "frames"), "allow_pickle=False"),
    "pickle for the key": (lambda file: hostile(file, "key"), "allow_pickle=False"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "not a whole npz"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_used_is_made_again(damage, tmp_path):
    maker = Maker()
    load(tmp_path, maker)
    (file,) = tmp_path.iterdir()
    spoil, reason = DAMAGE[damage]
    spoil(file)
    if damage == "folder":  # the only one that cannot be replaced
        with pytest.warns(DataWarning, match=reason), pytest.raises(DataError, match="written"):
            load(tmp_path, maker)
        assert list(tmp_path.iterdir()) == [file]
        return
    with pytest.warns(DataWarning, match=reason) as caught:
        assert same(load(tmp_path, maker))
    assert len(caught) == 1
    said = str(caught[0].message)
    assert said.startswith(f"{file}: cannot be used (")
    assert said.endswith("It is made again.")
    assert maker.calls == 2
    assert same(load(tmp_path, maker))
    assert maker.calls == 2
    assert list(tmp_path.iterdir()) == [file]  # and no trace of a pickle


def test_no_flipped_bit_ever_changes_the_data(tmp_path):
    """A bit of every byte: either the file says the same, or it is made again with a warning."""
    maker = Maker()
    load(tmp_path, maker)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        file.write_bytes(raw)
        calls = maker.calls
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert same(load(tmp_path, maker)), place
        assert [w.category for w in caught] == [DataWarning] * (maker.calls - calls), place
    assert maker.calls > len(whole) // 2


def test_the_warning_points_at_the_line_that_asked(tmp_path):
    Motion(count=4, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"")
    with pytest.warns(DataWarning) as caught:
        Motion(count=4, cache=tmp_path)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["numpy.savez_compressed", "os.replace"])
def test_nothing_half_written_remains(where, error, tmp_path, monkeypatch):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr(where, fails)
    refused = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(refused):
        load(tmp_path, Maker())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert same(load(tmp_path, Maker()))


def test_a_failed_write_leaves_the_file_of_another_process_alone(tmp_path, monkeypatch):
    load(tmp_path, Maker())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    monkeypatch.setattr(store, "_read", lambda *_: {}["gone"])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.warns(DataWarning, match="gone"), pytest.raises(DataError):
        load(tmp_path, Maker())
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(DataError, match=re.escape(f"{in_the_way}")) as caught:
        Motion(count=4, cache=in_the_way)
    said = str(caught.value)
    assert "cannot be written" in said
    assert "Pass cache= another folder, or cache=False." in said


@pytest.mark.parametrize("cache", [None, 0, 1.5, ""])
def test_a_cache_that_is_no_folder_is_refused(cache):
    with pytest.raises(DataError, match=re.escape(f"cache = {cache!r}: must be a folder, True")):
        Motion(count=4, cache=cache)


def test_the_usual_folder_is_the_users_to_choose(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQUANT_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "chosen"
    Motion(count=4)
    assert [file.suffix for file in (tmp_path / "chosen").iterdir()] == [".npz"]

    monkeypatch.delenv("SPQUANT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "spquant_plugin"
    Motion(count=4)
    assert len(list((tmp_path / "xdg" / "spquant_plugin").iterdir())) == 1

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "spquant_plugin"
