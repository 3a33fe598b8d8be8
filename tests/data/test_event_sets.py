"""Each event set on generated files in its real format: frames, labels, splits, damage."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import expelliarmus
import numpy as np
import pytest
import torch

from spquant_plugin.data.aedat import read_aedat
from spquant_plugin.data.dat import read_dat
from spquant_plugin.data.dvs_gesture import DVSGesture
from spquant_plugin.data.ncars import NCars
from spquant_plugin.data.neuromorphic_images import DVSCIFAR10, NMNIST, NCaltech101
from spquant_plugin.data.recordings import EventSet
from spquant_plugin.data.shd import SHD
from spquant_plugin.errors import DataError, DataWarning, MissingHostError

from . import generated_events as generated

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    made: type[EventSet]
    write: object
    width: int
    height: int
    frame: tuple[int, int]  # height and width where no size is asked for
    elsewhere: str  # where Tonic or the archive puts the same folders
    official: bool = False
    channels: int = 2


CASES = [
    Case(DVSCIFAR10, generated.dvs_cifar10, 128, 128, (48, 48), "CIFAR10DVS"),
    Case(NCaltech101, generated.n_caltech101, 240, 180, (48, 64), "NCALTECH101/Caltech101"),
    Case(NMNIST, generated.n_mnist, 34, 34, (34, 34), "NMNIST", True),
    Case(DVSGesture, generated.dvs_gesture, 128, 128, (128, 128), "DVSGesture", True),
    Case(SHD, generated.shd, 700, 1, (1, 700), "SHD", True, 1),
    Case(NCars, generated.n_cars, 120, 100, (100, 120), "Prophesee_Dataset_n_cars", True),
]
every_set = pytest.mark.parametrize("case", CASES, ids=lambda case: case.made.__name__)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQUANT_CACHE", str(tmp_path / "cache"))


def counted(events, case: Case, steps: int, frame: tuple[int, int]) -> np.ndarray:
    """Frames as the definition says: one event after the other, windows rounded up."""
    counts = np.zeros((steps, case.channels, *frame), np.int64)
    first, last = int(events["t"].min()), int(events["t"].max())
    window = -(-(last - first + 1) // steps)
    for x, y, t, p in events.tolist():
        step = (t - first) // window
        counts[step, p, y * frame[0] // case.height, x * frame[1] // case.width] += 1
    return counts


def is_test(path: str) -> bool:
    return "test" in path.split("/")[0].lower()


def label_of(case: Case, path: str) -> str:
    """A recording's class as its path says it; the number of the class where it is no name."""
    if case.made is DVSGesture:
        return Path(path).stem
    return Path(path).parent.name


@every_set
@pytest.mark.parametrize("size", [None, 20])
def test_frames_hold_every_written_event_where_it_belongs(tmp_path, case, size):
    written = case.write(tmp_path / "set")
    frame = {None: case.frame, 20: (min(20, case.height), 20)}[size]
    for split in SPLITS:
        data = case.made(tmp_path / "set", split, steps=4, size=size)
        assert data.sample_shape == (4, case.channels, *frame)
        for index, path in enumerate(data.paths):
            frames, label = data[index]
            expected = counted(written[path], case, 4, frame)
            assert frames.dtype == torch.float32
            assert np.array_equal(frames.numpy(), expected)
            assert int(frames.sum()) == len(written[path])
            if case.made is not SHD:
                assert label_of(case, path) in (data.classes[label], str(label))
            events = data.events(index)
            for name in "xyp":
                assert np.array_equal(events[name], written[path][name])
            times = written[path]["t"]
            assert np.array_equal(events["t"] - events["t"][0], times - times[0])


@every_set
def test_binary_frames_say_where_an_event_was(tmp_path, case):
    case.write(tmp_path / "set")
    size = (min(4, case.height), 4)
    counts, binary = (
        case.made(tmp_path / "set", steps=2, size=size, binary=binary) for binary in (False, True)
    )
    assert counts.frames.max() > 1
    assert torch.equal(binary.frames, (counts.frames > 0).to(torch.uint8))


@every_set
def test_splits_are_complete_disjoint_and_fair_to_every_class(tmp_path, case):
    written = case.write(tmp_path / "set", per_class=10, classes=2)
    parts = {split: case.made(tmp_path / "set", split, steps=1, size=1) for split in SPLITS}
    paths = [path for data in parts.values() for path in data.paths]
    assert sorted(paths) == sorted(written)
    expected = {"train": 9, "validation": 1, "test": 10} if case.official else dict(
        zip(SPLITS, (8, 1, 1), strict=True)
    )  # fmt: skip
    for split, data in parts.items():
        assert data.split == split
        assert set(Counter(data.labels.tolist()).values()) == {expected[split]}
        if case.official:
            assert all(is_test(path) == (split == "test") for path in data.paths)


@every_set
def test_the_seed_alone_decides_about_the_splits(tmp_path, case):
    case.write(tmp_path / "set", per_class=10, classes=2)

    def chosen(seed: int, split: str = "validation", share: float = 0.3) -> tuple[str, ...]:
        options = {"steps": 1, "size": 1, "seed": seed, "validation": share}
        return case.made(tmp_path / "set", split, **options).paths

    assert chosen(0) == chosen(0)
    assert len(chosen(0)) == 6
    assert chosen(0) != chosen(1)
    assert (chosen(0, "test") == chosen(1, "test")) == case.official


@every_set
def test_the_folder_may_be_where_others_put_it(tmp_path, case):
    case.write(tmp_path / "root" / case.elsewhere)
    assert len(case.made(tmp_path / "root", steps=1, size=1)) > 0
    data = case.made(str(tmp_path / "root" / case.elsewhere), steps=1, size=1)
    assert data.folder == tmp_path / "root" / case.elsewhere


@every_set
@pytest.mark.parametrize("kind", ["absent", "empty", "file", "nothing"])
def test_a_missing_folder_says_what_to_put_there(tmp_path, case, kind):
    root = tmp_path / "root"
    if kind == "empty":
        root.mkdir()
    elif kind == "file":
        root.write_text("")
    says = {"absent": "no such folder", "empty": "has no", "file": "a file", "nothing": "must be"}
    with pytest.raises(DataError, match=says[kind]) as caught:
        case.made(None if kind == "nothing" else root)
    layout = case.made.layout
    for part in (layout.name, layout.size, layout.source, *layout.tree.splitlines()):
        assert part in str(caught.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def other_format(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 an archive that was not unpacked")


FORMATS = {
    "aedat2": (CASES[0], {}),
    "aedat4": (CASES[0], {"version": 4}),
    "bin": (CASES[1], {}),
    "npy": (CASES[3], {}),
    "dat": (CASES[5], {}),
    "old dat": (CASES[5], {"version": 1}),
}
REASONS = {
    ("aedat2", cut): "multiple of 8. It is cut short",
    ("aedat4", cut): "cannot be decoded",
    ("bin", cut): "multiple of 5. It is cut short",
    ("npy", cut): "ValueError",
    ("dat", cut): "multiple of 8. It is cut short",
    ("old dat", cut): "multiple of 8. It is cut short",
    ("aedat2", emptied): "must be #!AER-DAT2.0 or #!AER-DAT4.0",
    ("bin", emptied): "it holds no event",
    ("npy", emptied): "EOFError",
    ("dat", emptied): "a .dat file starts with '%'",
    ("aedat2", other_format): "must be #!AER-DAT2.0 or #!AER-DAT4.0",
    ("npy", other_format): "BadZipFile",
    ("dat", other_format): "a .dat file starts with '%'",
}


@pytest.mark.parametrize(
    ("name", "harm"), REASONS, ids=lambda part: getattr(part, "__name__", part)
)
def test_a_damaged_file_is_left_out_counted_and_named(tmp_path, name, harm):
    case, options = FORMATS[name]
    harmed = sorted(case.write(tmp_path / "set", **options))[-1]
    harm(tmp_path / "set" / harmed)
    found = []
    for split in SPLITS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = case.made(tmp_path / "set", split, steps=2, size=8)
        found += data.damaged
        assert harmed not in data.paths
        assert [each.category for each in caught] == [DataWarning] * len(data.damaged)
        for each in caught:
            total = len(data) + 1
            assert f"1 of {total} recordings" in str(each.message)
            assert harmed in str(each.message)
            assert each.filename == __file__
    ((path, reason),) = found
    assert path == harmed
    assert REASONS[name, harm] in reason


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [("x", 128, "x goes from 0 to 128: must lie in 0 to 119"), ("y", 100, "must lie in 0 to 99")],
)
def test_events_outside_the_sensor_are_damage(tmp_path, column, value, says):
    (path, made), *_ = generated.n_cars(tmp_path).items()
    made[column][5] = value
    generated.write_dat(tmp_path / path, made)
    with pytest.warns(DataWarning, match=re.escape(path)):
        splits = [NCars(tmp_path, split, steps=1, size=1) for split in SPLITS]
    assert any(says in reason for data in splits for _, reason in data.damaged)


def test_a_recording_without_events_is_damage(tmp_path):
    (path, made), *_ = generated.n_cars(tmp_path, per_class=2).items()
    generated.write_dat(tmp_path / path, made[:0])
    with pytest.warns(DataWarning, match="it holds no event"):
        NCars(tmp_path, steps=1, size=1, validation=0)


@pytest.mark.parametrize("share", ["more than half", "all"])
@every_set
def test_a_set_of_damaged_files_is_refused(tmp_path, case, share):
    paths = [path for path in case.write(tmp_path, classes=2) if not is_test(path)]
    harmed = {"more than half": 5, "all": 8}[share]
    if case.made is SHD:
        seconds = [[0.1]] * (8 - harmed) + [[np.nan]] * harmed
        generated.write_shd(tmp_path / "shd_train.h5", np.arange(8) % 2, seconds, [[1]] * 8)
    else:
        for path in paths[:harmed]:
            emptied(tmp_path / path)
    assert len(paths) == 8
    with pytest.raises(DataError, match=r"more than half of the 8 recordings .* are damaged: \S+"):
        case.made(tmp_path, steps=1, size=1)
    assert not list((tmp_path / "cache").glob("*"))


def test_aedat_4_and_2_become_the_same_frames(tmp_path):
    sets = []
    for version in (2, 4):
        generated.dvs_cifar10(tmp_path / str(version), version=version)
        sets.append(DVSCIFAR10(tmp_path / str(version), steps=4))
    assert torch.equal(sets[0].frames, sets[1].frames)


def test_aedat_2_leaves_out_what_no_pixel_said(tmp_path):
    """A word with bit 15 is a special event; more bits than 16 are no DVS128's."""
    words = np.array([[1 << 8 | 2 << 1, 5], [1 << 15, 6], [0, 7]], ">u4")
    (tmp_path / "a.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + words.tobytes())
    assert read_aedat(tmp_path / "a.aedat").tolist() == [(126, 125, 5, True), (127, 127, 7, True)]
    words[0, 0] = 1 << 20
    (tmp_path / "a.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + words.tobytes())
    with pytest.raises(DataError, match="address 0x100000: must have 16 bits"):
        read_aedat(tmp_path / "a.aedat")


@pytest.mark.parametrize("content", [b"#!AER-DAT2.0 and no end", b"%", b"% Version 2"])
def test_a_header_without_an_end_is_cut_short(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="the header has no end"):
        (read_aedat if content.startswith(b"#") else read_dat)(tmp_path / "file")


def test_an_aedat_4_description_that_is_no_text_is_damage(tmp_path):
    """The decoder would end the process."""
    path = next(iter(generated.dvs_cifar10(tmp_path, per_class=1, classes=1, version=4)))
    content = bytearray((tmp_path / path).read_bytes())
    content[content.index(b"compression")] = 0xFF
    (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match="its description is no text"):
        read_aedat(tmp_path / path)


def test_bytes_that_mean_nothing_to_the_aedat_4_decoder_are_damage(tmp_path, capfd):
    path = next(iter(generated.dvs_cifar10(tmp_path, per_class=1, classes=1, version=4)))
    content = bytearray((tmp_path / path).read_bytes())
    content[18 + 24 + 3] = 0x7F  # where the description is; the decoder panics
    (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_aedat(tmp_path / path)


def test_aedat_4_says_what_to_install(tmp_path, monkeypatch):
    generated.dvs_cifar10(tmp_path, version=4)
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(MissingHostError, match="Run: python -m pip install aedat"):
        DVSCIFAR10(tmp_path)


def test_dat_files_agree_with_expelliarmus_both_ways(tmp_path):
    made = generated.events(np.random.default_rng(0), 120, 100)
    generated.write_dat(tmp_path / "ours.dat", made)
    theirs = expelliarmus.Wizard("dat").read(tmp_path / "ours.dat")
    assert all(np.array_equal(theirs[name], made[name]) for name in "xytp")
    expelliarmus.Wizard("dat").save(tmp_path / "theirs.dat", theirs)
    ours = read_dat(tmp_path / "theirs.dat")
    assert all(np.array_equal(ours[name], made[name]) for name in "xytp")


@pytest.mark.parametrize(
    ("version", "address", "event"),
    [
        (0, 0b1_10000001_100000010, (258, 129, 7, True)),
        (1, 0b0_00000001_000000010, (2, 1, 7, False)),
        (2, 1 << 28 | 3 << 14 | 4, (4, 3, 7, True)),
        (3, 99 << 14 | 119, (119, 99, 7, False)),
    ],
)
def test_dat_addresses_follow_the_version(tmp_path, version, address, event):
    header = b"% Width 120\n" + f"% Version {version}\n".encode() * (version > 0)
    words = np.array([7, address], "<u4").tobytes()
    (tmp_path / "a.dat").write_bytes(header + bytes([12, 8]) + words)
    assert read_dat(tmp_path / "a.dat").tolist() == [event]


@pytest.mark.parametrize("kind", [b"\x0e\x08", b"\x00\x10", b""])
def test_dat_files_of_other_events_are_refused(tmp_path, kind):
    (tmp_path / "a.dat").write_bytes(b"% Version 2\n" + kind)
    with pytest.raises(DataError, match="must be of type 0 or 12 and 8 bytes"):
        read_dat(tmp_path / "a.dat")


def test_times_go_on_where_32_bits_overflow(tmp_path):
    made = generated.events(np.random.default_rng(0), 120, 100)
    expected = counted(made, CASES[5], 4, (100, 120))
    made["t"] += 2**32 - 50_000
    for part in ("n-cars_train", "n-cars_test"):
        for name in ("cars", "background"):
            (tmp_path / part / name).mkdir(parents=True)
            generated.write_dat(tmp_path / part / name / "obj_0_td.dat", made)
    assert np.array_equal(NCars(tmp_path, "test", steps=4)[0][0].numpy(), expected)


def test_gestures_are_named_by_their_files(tmp_path):
    generated.dvs_gesture(tmp_path)
    data = DVSGesture(tmp_path, "test", steps=1, size=1)
    assert (data.classes[0], data.classes[10]) == ("hand clapping", "other gestures")
    np.save(tmp_path / "ibmGestureTest/user01_fluorescent_led/11.npy", np.zeros((1, 4)))
    with pytest.raises(DataError, match=r"11.npy: a recording is named after its gesture, 0.npy"):
        DVSGesture(tmp_path, "test", steps=1, size=1)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (np.zeros((5, 3)), "must be numbers [events, 4]"),
        (np.zeros((5, 4), bool), "must be numbers [events, 4]"),
        (np.full((5, 4), 0.5), "not whole or far too large"),
        (np.full((5, 4), 2**16), "not whole or far too large"),
    ],
)
def test_gestures_that_are_no_events_are_damage(tmp_path, held, says):
    np.save(tmp_path / "0.npy", held)
    with pytest.raises(DataError, match=re.escape(says)):
        DVSGesture.read(tmp_path, "0.npy")


def test_one_recording_in_two_formats_is_refused(tmp_path):
    generated.dvs_cifar10(tmp_path, version=4)
    generated.dvs_cifar10(tmp_path, version=2)
    with pytest.raises(DataError, match=r"holds both cifar10_airplane_0\.aedat and .*keep one"):
        DVSCIFAR10(tmp_path)


def test_folders_and_files_that_are_no_recordings_are_no_classes(tmp_path):
    generated.n_caltech101(tmp_path)
    for name in ("accordion/readme.txt", "Leopards/.image_0001.bin", ".hidden/image_0001.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    data = NCaltech101(tmp_path, steps=1)
    assert data.classes == ("BACKGROUND_Google", "Faces_easy", "Leopards")


def shd_rows(tmp_path: Path, seconds: list, units: list) -> tuple[str, ...]:
    """Reasons why rows of a file are damaged."""
    reasons = []
    labels = np.zeros(len(seconds))
    generated.write_shd(tmp_path / "shd_train.h5", labels, seconds, units)
    for row in range(len(seconds)):
        with pytest.raises(DataError) as caught:
            SHD.read(tmp_path, f"shd_train.h5[{row}]")
        reasons.append(str(caught.value))
    return tuple(reasons)


def test_shd_rows_that_are_no_spikes_are_damage(tmp_path):
    lengths, infinite, unit = shd_rows(
        tmp_path, [[0.1, 0.2], [0.1, np.inf], [0.1]], [[1], [1, 2], [700]]
    )
    assert lengths == "2 times for 1 units: must be as many."
    assert "NaN, infinite or beyond a million" in infinite
    assert unit == "units from 700 to 700: must lie in 0 to 699."


def test_shd_files_that_are_none_are_refused(tmp_path):
    generated.shd(tmp_path)
    file = tmp_path / "shd_train.h5"
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no HDF5"):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=r"is no file of SHD .* Unpack it again"):
            SHD(tmp_path)
    generated.write_shd(file, np.array([1, 20]), [[0.1]] * 2, [[1]] * 2)
    with pytest.raises(DataError, match="must be one for each, from 0 to 19"):
        SHD(tmp_path)


def test_a_shd_row_that_cannot_be_decoded_is_damage(tmp_path):
    generated.shd(tmp_path)
    file = tmp_path / "shd_train.h5"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match="it cannot be decoded"):
        SHD.read(tmp_path, "shd_train.h5[0]")


def test_shd_says_what_to_install(tmp_path, monkeypatch):
    generated.shd(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingHostError, match=re.escape('"spquant-plugin[data]"')):
        SHD(tmp_path)


def test_shd_names_its_classes_and_takes_a_pair_as_size(tmp_path):
    generated.shd(tmp_path)
    data = SHD(tmp_path, steps=2, size=(1, 70))
    assert (data.classes[3], data.classes[13]) == ("english 3", "german 3")
    assert data.sample_shape == (2, 1, 1, 70)
