"""What all event sets share: the file of frames, splits, workers, damage, and their words."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import spquant_plugin as spq
from spquant_plugin.data.framing import Framing
from spquant_plugin.data.listing import members
from spquant_plugin.data.ncars import NCars
from spquant_plugin.data.neuromorphic_images import DVSCIFAR10, NCaltech101
from spquant_plugin.data.prepared import END, mapped
from spquant_plugin.data.recordings import EventSet
from spquant_plugin.errors import DataError, DataWarning

from . import generated_events as generated


@pytest.fixture
def made(tmp_path):
    """Small N-Cars in a folder, and what loads them: (load, folder, cache)."""
    folder, cache = tmp_path / "set", tmp_path / "cache"
    generated.n_cars(folder)

    def load(split: str = "train", **options) -> NCars:
        return NCars(folder, split, **{"steps": 2, "size": 8, "cache": cache} | options)

    load.folder, load.cache = folder, cache
    return load


def read_nothing(monkeypatch) -> None:
    def refuse(folder, path):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(NCars, "read", staticmethod(refuse))


def test_frames_are_read_from_the_file_from_then_on(made, monkeypatch):
    first = made()
    (file,) = made.cache.iterdir()
    assert first.file == file
    read_nothing(monkeypatch)
    for options in ({}, {"split": "validation"}, {"seed": 3}, {"workers": 2}):
        again = made(**options)
        assert again.file == file
    assert torch.equal(made().frames, first.frames)


@pytest.mark.parametrize(
    "options", [{"steps": 3}, {"size": 9}, {"size": (8, 9)}, {"size": None}, {"binary": True}]
)
def test_another_framing_is_another_file(made, options):
    files = {made().file, made(**options).file}
    assert len(files) == len(list(made.cache.iterdir())) == 2


def test_another_listing_is_another_file(made):
    files = [made().file]
    recording = made.folder / "n-cars_train/cars/obj_000000_td.dat"
    events = generated.events(np.random.default_rng(9), 120, 100, count=50)
    generated.write_dat(recording, events)
    files.append(made().file)
    recording.rename(recording.with_name("obj_9_td.dat"))
    files.append(made().file)
    recording.with_name("obj_9_td.dat").unlink()
    files.append(made().file)
    assert len(set(files)) == 4


def test_the_same_set_elsewhere_is_the_same_file(made, tmp_path):
    first = made().file
    made.folder.rename(tmp_path / "moved")
    assert NCars(tmp_path / "moved", steps=2, size=8, cache=made.cache).file == first


@pytest.mark.parametrize("cache", [True, False])
def test_counts_beyond_8_bits_are_kept_whole(made, cache, monkeypatch):
    """One pixel with 300 events, in the middle of the set: what was written before is widened."""
    monkeypatch.setenv("SPQUANT_CACHE", str(made.cache))
    before = made(validation=0).frames.clone()
    many = np.zeros(301, generated.EVENT)
    many["x"], many["t"] = 7, np.arange(301) // 300 * 1000
    generated.write_dat(made.folder / "n-cars_train/cars/obj_000001_td.dat", many)
    data = made(validation=0, cache=cache)
    assert (before.dtype, data.stored.dtype) == (torch.uint8, torch.int16)
    at = data.paths.index("n-cars_train/cars/obj_000001_td.dat")
    frames, _ = data[at]
    assert (frames[0, 0, 0, 0], frames[1, 0, 0, 0], frames.sum()) == (300, 1, 301)
    others = [index for index in range(len(data)) if index != at]
    assert torch.equal(data.frames[others], before[others].short())


def test_more_than_16_bits_count_is_damage_and_never_wraps(made):
    many = np.zeros(2**15, generated.EVENT)
    generated.write_dat(made.folder / "n-cars_train/cars/obj_000001_td.dat", many)
    with pytest.warns(DataWarning, match="more events in one window than 16 bits count"):
        made(steps=1, validation=0)


def test_frames_are_mapped_and_writing_stays_here(made):
    data = made(validation=0)
    content = data.file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(data.stored.numpy())
        data.stored[0] = 77
    assert data.frames.data_ptr() == data.stored.data_ptr()
    assert int(data[0][0].max()) == 77
    assert data.file.read_bytes() == content
    assert int(made(validation=0)[0][0].max()) < 77


def test_frames_of_a_split_are_its_items(made):
    for split in ("train", "validation"):
        data = made(split)
        assert torch.equal(data.frames.float(), torch.stack([data[i][0] for i in range(len(data))]))
        assert data.frames.shape == (len(data), *data.sample_shape)


def test_a_data_set_travels_small_and_arrives_whole(made):
    data = made(steps=10, size=None)
    sent = pickle.dumps(data)
    assert data.stored.numel() > 10**6
    assert len(sent) < 4000
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.frames, data.frames)
    assert (arrived.paths, repr(arrived)) == (data.paths, repr(data))
    in_memory = pickle.loads(pickle.dumps(made(cache=False)))
    assert torch.equal(in_memory.frames, made().frames)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_either_kind_get_the_same_items(made, start):
    data = made()
    options = {"batch_size": 2, "collate_fn": spq.data.collate}
    here = list(torch.utils.data.DataLoader(data, **options))
    there = torch.utils.data.DataLoader(
        data, num_workers=1, multiprocessing_context=start, **options
    )
    for (frames, labels), (expected, numbers) in zip(there, here, strict=True):
        assert torch.equal(frames, expected)
        assert torch.equal(labels, numbers)


def test_a_file_that_was_deleted_meanwhile_says_so(made):
    sent = pickle.dumps(made())
    made().file.unlink()
    with pytest.raises(DataError, match="was deleted or replaced while it was in use"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda content: content[:-1], "it is not a whole file of frames"),
        (lambda content: content[:10], "it is not a whole file of frames"),
        (lambda content: b"", "it is not a whole file of frames"),
        (lambda content: b"\x01" + content[1:], "its checksum is wrong"),
        (lambda content: content[5:], "its checksum is wrong"),
        (lambda content: content[:-30] + b"x" + content[-29:], "its checksum is wrong"),
    ],
)
def test_a_damaged_file_of_frames_is_made_again(made, harm, says):
    good = made()
    frames = good.frames.clone()
    content = good.file.read_bytes()
    good.file.write_bytes(harm(content))
    with pytest.warns(DataWarning, match=f"{re.escape(str(good.file))}: cannot be used .*{says}"):
        again = made()
    assert torch.equal(again.frames, frames)
    assert good.file.read_bytes() == content


def test_a_file_made_from_something_else_is_made_again(made):
    one, other = made(), made(steps=3)
    other.file.write_bytes(one.file.read_bytes())
    with pytest.warns(DataWarning, match="it was made from something else"):
        assert made(steps=3).sample_shape[0] == 3


def test_a_description_that_lies_about_the_frames_is_not_believed(tmp_path):
    (tmp_path / "small").write_bytes(b"1234")
    with pytest.raises(DataError, match="cannot be mapped"):
        mapped(tmp_path / "small", "int16", (2, 2))


def start(target: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def test_processes_at_once_make_one_whole_file(made):
    processes = [start(made) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (file,) = made.cache.iterdir()
    assert made().file == file
    assert torch.equal(made().frames, made(cache=False).frames)


def test_a_preparation_that_was_killed_leaves_nothing_to_be_believed(made, monkeypatch):
    quickly = NCars.read

    def slowly(folder: Path, path: str) -> np.ndarray:
        time.sleep(0.2)
        return quickly(folder, path)

    with monkeypatch.context() as patch:
        patch.setattr(NCars, "read", staticmethod(slowly))
        process = start(made)
    until = time.monotonic() + 60
    while not list(made.cache.glob("*.part")) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)  # two or three recordings of eight
    process.kill()
    process.join()
    (part,) = made.cache.iterdir()
    assert part.suffix == ".part"
    assert torch.equal(made().frames, made(cache=False).frames)
    assert part.exists()  # another process might still write to it
    os.utime(part, (0, 0))
    made().file.unlink()
    made()
    assert not part.exists()


def test_an_error_while_preparing_leaves_nothing(made, monkeypatch):
    def stop(folder, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(NCars, "read", staticmethod(stop))
    with pytest.raises(KeyboardInterrupt):
        made()
    assert not list(made.cache.iterdir())


def test_the_number_of_workers_changes_nothing(made):
    (made.folder / "n-cars_train/cars/obj_000001_td.dat").write_bytes(b"")
    (made.folder / "n-cars_train/background/obj_000003_td.dat").write_bytes(b"%")
    sets, contents = [], []
    for workers in (0, 1, 2):
        with pytest.warns(DataWarning, match="2 of 8 recordings are damaged"):
            sets.append(made(workers=workers, validation=0))
        contents.append(sets[-1].file.read_bytes())
        sets[-1].file.unlink()
    assert len(set(contents)) == 1
    assert len({data.damaged for data in sets}) == 1


def test_what_is_damaged_is_told_every_time_and_leaves_other_splits_alone(made):
    before = {split: made(split, seed=5).paths for split in ("train", "validation")}
    harmed = before["validation"][0]
    (made.folder / harmed).write_bytes(b"")
    for _ in range(2):
        with pytest.warns(DataWarning, match=f"1 of 2 recordings is damaged .*{harmed}") as caught:
            data = made("validation", seed=5)
        assert caught[0].filename == __file__
        assert data.damaged == ((harmed, data.damaged[0][1]),)
        assert data.paths == before["validation"][1:]
    assert made("train", seed=5).paths == before["train"]
    assert made("train", seed=5).damaged == ()


def test_a_file_that_the_machine_cannot_read_is_no_damage(made):
    """A folder stands where a file should; a full disk or a network fails in the same way."""
    path = made.folder / "n-cars_train/cars/obj_000009_td.dat"
    path.mkdir()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"obj_000009_td.dat: cannot be read .* Make it readab"):
            made(workers=workers)
    assert not list(made.cache.iterdir())


def test_a_folder_that_cannot_be_written_is_named(made, tmp_path):
    (tmp_path / "occupied").write_text("")
    with pytest.raises(DataError, match=r"occupied.*cannot be written .* cache=False"):
        made(cache=tmp_path / "occupied")


def test_events_out_of_order_are_sorted_and_equal_times_stay(made):
    events = generated.events(np.random.default_rng(0), 120, 100)
    shuffled = np.random.default_rng(1).permutation(events)
    framing = Framing(5, (100, 120), (10, 12))
    assert np.array_equal(framing(shuffled), framing(events))
    assert np.array_equal(shuffled, np.random.default_rng(1).permutation(events))


@pytest.mark.parametrize("start", [0, 2**50])
def test_a_recording_may_start_at_any_time_but_not_last_for_ever(start):
    events = generated.events(np.random.default_rng(0), 120, 100)
    framing = Framing(5, (100, 120), (10, 12))
    expected = framing(events)
    events["t"] += start
    assert np.array_equal(framing(events), expected)
    events["t"][-1] += 2**41
    with pytest.raises(
        DataError, match=r"it lasts \d+ microseconds: must be 1099511627776, 12 day"
    ):
        framing(events)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "Test"}, "split = 'Test': .* Did you mean 'test'"),
        ({"steps": 0}, "steps = 0: must be a whole number from 1 to 10000"),
        ({"steps": 2.0}, "steps = 2.0: must be a whole number"),
        ({"size": 101}, "height of size = 101: must be a whole number from 1 to 100"),
        ({"size": (10, 121)}, "width of size = 121: must be a whole number from 1 to 120"),
        ({"size": (1, 2, 3)}, r"size = \(1, 2, 3\): must be a whole number or \(height, width\)"),
        ({"binary": 1}, "binary = 1: must be True or False"),
        ({"seed": -1}, "seed = -1: must be a whole number"),
        ({"workers": -1}, "workers = -1: must be a whole number"),
        ({"validation": 1.0}, "validation = 1.0: must be a share of 0 or more, and below 1"),
        ({"validation": "10%"}, "validation = '10%': must be a share"),
        ({"test": 0.2}, "N-Cars has a published test part, which is its test split. Leave it out"),
        ({"cache": 3}, "cache = 3: must be a folder, True or False"),
        ({"split": "validation", "validation": 0}, "no recording of N-Cars is left for 'validatio"),
    ],
)
def test_arguments_are_checked(made, options, says):
    with pytest.raises(DataError, match=says):
        made(**options)


def test_shares_that_leave_nothing_are_refused(tmp_path):
    generated.n_caltech101(tmp_path)
    with pytest.raises(DataError, match=r"validation = 0.5 and test = 0.5: together .* below 1"):
        NCaltech101(tmp_path, validation=0.5, test=0.5)


def test_a_split_without_recordings_is_refused(tmp_path):
    generated.dvs_cifar10(tmp_path, per_class=1)
    with pytest.raises(DataError, match=r"0 of 3 recordings belong to it\. Use larger"):
        DVSCIFAR10(tmp_path, "test", cache=False)


@pytest.mark.parametrize("index", ["a", slice(0, 2), [0, 1], None])
def test_an_index_is_one_number(made, index):
    data = made()
    with pytest.raises(DataError, match="must be one whole number"):
        data[index]
    with pytest.raises(IndexError):
        data[len(data)]
    assert torch.equal(data[-1][0], data[len(data) - 1][0])


def test_members_share_every_class_alike():
    """Ten, three, two and one recordings: the test part comes before validation, training first."""
    labels = [0] * 10 + [1] * 3 + [2] * 2 + [3]
    found = {
        split: members(labels, split, 0, 0.3, 0.2) for split in ("train", "validation", "test")
    }
    counts = {s: np.bincount(np.array(labels)[chosen], minlength=4) for s, chosen in found.items()}
    assert {split: each.tolist() for split, each in counts.items()} == {
        "train": [5, 1, 1, 1], "validation": [3, 1, 0, 0], "test": [2, 1, 1, 0]
    }  # fmt: skip
    assert sorted(number for chosen in found.values() for number in chosen) == list(range(16))
    assert members([], "train", 0, 0.1, 0.1) == []


def test_another_class_does_not_move_the_others():
    few, more = (members([0] * 20 + [1] * n, "test", 0, 0.1, 0.2) for n in (0, 20))
    assert more[: len(few)] == few


def test_the_file_ends_with_its_description(made):
    """The format, read as the module describes it."""
    data = made(validation=0)
    content = data.file.read_bytes()
    length, _, mark = END.unpack(content[-END.size :])
    described = json.loads(content[-END.size - length : -END.size])
    assert mark == b"SPQFRM01"
    assert described["shape"] == list(data.stored.shape)
    frames = np.frombuffer(content, np.uint8, data.stored.numel()).reshape(described["shape"])
    assert np.array_equal(frames, data.stored.numpy())


def test_batches_have_time_first(made):
    frames, labels = next(iter(spq.data.loader(made(), batch_size=3)))
    assert (tuple(frames.shape), tuple(labels.shape)) == ((2, 3, 2, 8, 8), (3,))
    assert repr(made()) == "NCars(6 recordings, 2 steps of 2x8x8, 2 classes)"


def test_nothing_is_drawn_where_nobody_looks(made, capfd):
    made()
    made(progress=False, steps=3)
    assert capfd.readouterr() == ("", "")


def test_a_set_of_your_own_is_three_answers(tmp_path):
    with pytest.raises(NotImplementedError):
        EventSet.needed("train")
    with pytest.raises(NotImplementedError):
        EventSet.listed(tmp_path, "train")
    with pytest.raises(NotImplementedError):
        EventSet.read(tmp_path, "a")
