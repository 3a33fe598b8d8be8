"""Still images from files in the published format, as the integers that a network reads."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

import spquant_plugin as spq
from spquant_plugin.data import CIFAR10, CIFAR100, Augmented, ImageNet, crop_and_flip, loader
from spquant_plugin.data.damage import warn_of
from spquant_plugin.data.image_files import read_image
from spquant_plugin.errors import DataError, DataWarning
from spquant_plugin.functional.inputs import quantize_input

from .generated_images import NAMES, cifar10, cifar100, imagenet, python2_pickle, write_batch

KINDS = [(CIFAR10, cifar10), (CIFAR100, cifar100)]


@pytest.mark.parametrize(("kind", "write"), KINDS)
def test_cifar_is_read_as_it_was_written(tmp_path, kind, write):
    written = write(tmp_path, per_class=2, seed=4)
    for split, part in (("train", "train"), ("test", "test")):
        data = kind(tmp_path, split, steps=3, validation=0)
        images, labels = written[part]
        assert len(data) == len(labels)
        assert data.labels.tolist() == labels.tolist()
        for index in (0, 7, len(data) - 1):
            frames, label = data[index]
            assert (frames.dtype, frames.shape, frames.stride(0)) == (
                torch.float32,
                (3, 3, 32, 32),
                0,
            )
            assert label == labels[index]
            expected = torch.from_numpy((images[index] / 255.0).astype(np.float32))
            assert torch.equal(frames, expected.expand(3, 3, 32, 32))
    assert data.sample_shape == (3, 3, 32, 32)
    names = NAMES if kind is CIFAR10 else tuple(f"fine{label}" for label in range(100))
    assert data.classes == names
    assert repr(data).startswith(f"{kind.__name__}({len(data)} images, 3 steps of 3x32x32, ")


def test_the_folder_itself_is_taken_too(tmp_path):
    cifar10(tmp_path)
    assert len(CIFAR10(str(tmp_path / "cifar-10-batches-py"), "test")) == 10


def test_torchvision_reads_the_same_from_these_files(tmp_path, monkeypatch):
    cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = datasets.CIFAR10(tmp_path, train=False)
    ours = CIFAR10(tmp_path, "test", steps=1)
    for (image, label), (frames, same) in zip(theirs, ours, strict=True):
        assert label == same
        assert torch.equal(v2.functional.pil_to_tensor(image), (frames[0] * 255).byte())


@pytest.mark.parametrize("protocol", [2, 5])
def test_files_of_python_3_are_read(tmp_path, protocol):
    images, labels = cifar10(tmp_path)["test"]
    held = {"data": images.reshape(10, -1), "labels": labels.tolist(), "filenames": [b"a"]}
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(held, protocol=protocol))
    assert torch.equal(CIFAR10(tmp_path, "test").images, torch.from_numpy(images))


def test_every_pixel_value_is_the_integer_that_the_input_quantiser_finds(tmp_path):
    images = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 3, 32, 32).repeat(10, 0)
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    write_batch(path, images, labels=np.arange(10), of="testing batch 1 of 1")
    frames, _ = CIFAR10(tmp_path, "test")[0]
    levels = quantize_input(frames, bits=8, low=0.0, high=1.0)
    assert torch.equal(levels, torch.from_numpy(images[0]).float().expand_as(levels))
    assert torch.equal(levels / 255, frames)


def test_splits_are_drawn_per_class_by_the_seed(tmp_path):
    images, labels = cifar10(tmp_path, per_class=10)["train"]
    splits = ("train", "validation")
    parts = {split: CIFAR10(tmp_path, split, seed=1, validation=0.2) for split in splits}
    for split, count in (("train", 8), ("validation", 2)):
        assert parts[split].labels.bincount().tolist() == [count] * 10
        assert parts[split].split == split
    joined = torch.cat([part.images for part in parts.values()]).flatten(1)
    assert {tuple(row) for row in joined.tolist()} == {
        tuple(row) for row in images.reshape(100, -1).tolist()
    }
    again = CIFAR10(tmp_path, "validation", seed=1, validation=0.2)
    other = CIFAR10(tmp_path, "validation", seed=2, validation=0.2)
    assert torch.equal(parts["validation"].images, again.images)
    assert not torch.equal(parts["validation"].images, other.images)
    assert len(labels) == 100


@pytest.mark.parametrize(("size", "pair"), [(48, (48, 48)), ((24, 20), (24, 20))])
def test_resized_images_are_whole_levels(tmp_path, size, pair):
    images, _ = cifar10(tmp_path)["test"]
    data = CIFAR10(tmp_path, "test", steps=2, size=size)
    assert data.sample_shape == (2, 3, *pair)
    levels = data[3][0][0] * 255
    assert torch.equal(levels, levels.round())
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(images[3:4]).float(), pair, mode="bilinear", antialias=True
    )
    assert (levels - smooth[0]).abs().max() < 1.01
    assert torch.equal(quantize_input(data[3][0], 8, 0.0, 1.0)[0], levels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_each_image_once(tmp_path, workers):
    cifar10(tmp_path)
    data = Augmented(CIFAR10(tmp_path, "train", steps=6), crop_and_flip())
    frames, labels = next(iter(loader(data, 4, num_workers=workers)))
    assert (frames.shape, labels.shape) == ((6, 4, 3, 32, 32), (4,))
    assert (frames.stride(0), frames.untyped_storage().nbytes()) == (0, 4 * 3 * 32 * 32 * 4)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


GOOD = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 1]}


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (python2_pickle(GOOD)[:3000], ["damaged or no file of CIFAR", "Unpack the archive again"]),
        (b"", ["damaged or no file of CIFAR (EOFError"]),
        (b"<html>", ["damaged or no file of CIFAR"]),
        (pickle.dumps(Bomb()), ["asks for posix.mkdir", "nothing else is opened"]),
        (pickle.dumps([1]), ["holds list: must be a dict"]),
        (python2_pickle(without("data")), ["data is NoneType: must be bytes"]),
        (pickle.dumps({**GOOD, "data": np.zeros((2, 3072))}), ["data is float64: must be bytes"]),
        (python2_pickle({**GOOD, "data": GOOD["data"][:, :9]}), ["data has the shape (2, 9)"]),
        (python2_pickle(without("labels")), ["one whole number as 'labels'", "2 images"]),
        (python2_pickle({**GOOD, "labels": [1]}), ["one whole number as 'labels'"]),
        (python2_pickle({**GOOD, "labels": ["a", "b"]}), ["one whole number as 'labels'"]),
        (python2_pickle({**GOOD, "labels": [0, 10]}), ["labels from 0 to 10", "0 to 9"]),
        (python2_pickle({**GOOD, "labels": [-1, 1]}), ["labels from -1 to 1"]),
    ],
)
def test_a_damaged_file_of_cifar_is_named(tmp_path, raw, parts):
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        CIFAR10(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not os.path.exists("exploded")
    assert len(CIFAR10(tmp_path, "test")) == 10  # which needs another file


@pytest.mark.parametrize("held", [{}, {"label_names": "cat"}, {"label_names": []}])
def test_names_of_classes_must_be_there(tmp_path, held):
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(python2_pickle(held))
    with pytest.raises(DataError, match=r"batches\.meta: must hold the names .* 'label_names'"):
        CIFAR10(tmp_path)


def test_a_file_as_long_as_the_published_one_must_be_the_published_one(tmp_path):
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    images = np.zeros((10_000, 3, 32, 32), dtype=np.uint8)
    write_batch(path, images, labels=np.arange(10_000) % 10, of="testing batch 1 of 1")
    with pytest.raises(
        DataError, match=r"test_batch: holds 10,000 images .* pass check=False"
    ) as e:
        CIFAR10(tmp_path, "test")
    assert "40351d587109b95175f43aff81a1287e" in str(e.value)
    assert len(CIFAR10(tmp_path, "test", check=False)) == 10_000


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"test_batch: cannot be read \(.*Make it readable"):
        CIFAR10(tmp_path, "test")


@pytest.mark.parametrize("missing", ["data_batch_5", "batches.meta"])
def test_a_missing_file_is_said_with_where_it_belongs(tmp_path, missing):
    cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / missing).unlink()
    with pytest.raises(DataError) as caught:
        CIFAR10(tmp_path)
    parts = (missing, "CIFAR-10 (178 MB)", "www.cs.toronto.edu", "root/cifar-10-batches-py/test_b")
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"split": "tset"}, ["split = 'tset'", "Did you mean 'test'?"]),
        ({"steps": 0}, ["steps = 0", "from 1"]),
        ({"size": (1, 2, 3)}, ["size = (1, 2, 3)", "(height, width)"]),
        ({"size": 0}, ["height of size = 0", "from 1"]),
        ({"size": (8, 2.5)}, ["width of size = 2.5", "whole number"]),
        ({"seed": "a"}, ["seed = 'a'", "whole number"]),
        ({"validation": 1}, ["validation = 1", "below 1"]),
        ({"validation": "some"}, ["validation = 'some'", "share"]),
        ({"validation": 0, "split": "validation"}, ["validation = 0", "no image is left"]),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, options, parts):
    cifar10(tmp_path)
    with pytest.raises(DataError) as caught:
        CIFAR10(tmp_path, **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("index", [slice(3), [0, 1], None])
def test_several_items_at_once_are_refused(tmp_path, index):
    cifar10(tmp_path)
    with pytest.raises(DataError, match=r"must be one whole number\. Take torch\.utils"):
        CIFAR10(tmp_path)[index]


def standard(path, size: int = 224, shorter: int = 256) -> torch.Tensor:
    """What is usual in evaluation, by torchvision from the file."""
    image = Image.open(path).convert("RGB")
    change = v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size)])
    return v2.functional.pil_to_tensor(change(image))


def test_imagenet_is_what_torchvision_makes_of_the_files(tmp_path):
    written = imagenet(tmp_path, per_class=3)["val"]
    data = ImageNet(tmp_path, "test", steps=2)
    theirs = datasets.ImageFolder(tmp_path / "val")
    assert data.classes == tuple(theirs.classes) == ("n00000000", "n00000001", "n00000002")
    assert [(str(data.path(i)), int(data.labels[i])) for i in range(9)] == theirs.samples
    assert [data.path(index) for index in range(9)] == written
    for index, path in enumerate(written):
        frames, label = data[index]
        assert (frames.shape, frames.stride(0), label) == ((2, 3, 224, 224), 0, index // 3)
        assert torch.equal(frames[1], standard(path).float() / 255)
    small = ImageNet(tmp_path, "test", size=56)
    for index, path in enumerate(written):
        assert torch.equal(small.image(index), standard(path, 56, 64))


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70)])
def test_a_size_that_is_no_square_takes_the_middle_too(tmp_path, shape):
    imagenet(tmp_path, per_class=1)
    height, width = shape
    ramp = np.add.outer(2 * np.arange(height), np.arange(width)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "val" / "n00000000" / "n00000000_0.JPEG", quality=100)
    image = ImageNet(tmp_path, "test", size=(28, 42)).image(0)
    assert image.shape == (3, 28, 42)
    # The middle of what is cut out is the middle of the image.
    assert abs(image.float().mean() - ramp.mean()) < 2
    rows, columns = image[0].float().mean(1).diff(), image[0].float().mean(0).diff()
    assert abs(rows.mean() / columns.mean() - 2) < 0.2  # not stretched


def test_a_random_crop_follows_seed_epoch_and_index(tmp_path):
    imagenet(tmp_path, per_class=2)
    data = Augmented(ImageNet(tmp_path, crop="random", size=24, validation=0), crop_and_flip(0))
    assert data.sample_shape == (4, 3, 24, 24)
    first = next(iter(loader(data, 6)))[0]
    assert first.stride(0) == 0
    assert torch.equal(first, next(iter(loader(data, 6, num_workers=1)))[0])
    data.set_epoch(1)
    assert not torch.equal(first, next(iter(loader(data, 6)))[0])


def spoil(written: dict[str, list]) -> dict[str, str]:
    """Damage of four kinds in the training images; the names and what is said of them."""
    empty, page, half, grey, trailing, *_ = written["train"]
    empty.write_bytes(b"")
    page.write_bytes(b"<html>Not found</html>")
    half.write_bytes(half.read_bytes()[:-200])
    whole = bytearray(trailing.read_bytes())
    trailing.write_bytes(bytes(whole) + b"\0\0 and more")  # which readers do not mind
    Image.new("L", (40, 50)).save(grey)
    return {
        f"{empty.parent.name}/{empty.name}": "it is empty",
        f"{page.parent.name}/{page.name}": "it is no image of a known format",
        f"{half.parent.name}/{half.name}": "image file is truncated",
    }


def test_damaged_images_are_left_out_counted_and_named(tmp_path):
    written = imagenet(tmp_path, per_class=4)
    whole = ImageNet(tmp_path, validation=0, cache=tmp_path / "cache")
    bad = spoil(written)
    for check in ("quick", "full", "quick"):
        with pytest.warns(DataWarning) as caught:
            data = ImageNet(
                tmp_path, validation=0, cache=tmp_path / "cache", check=check, workers=2
            )
        assert len(caught) == 1
        assert caught[0].filename == __file__
        text = str(caught[0].message)
        start = (
            "3 of 12 images of 'train' are damaged and were left out: n00000000/n00000000_0.JPEG"
        )
        assert start in text
        assert "See data.damaged" in text
        assert len(data) == 9
        assert len(whole) == 12
        assert [name for name, _ in data.damaged] == list(bad)
        assert all(reason.startswith(bad[name]) for name, reason in data.damaged)
        assert all(torch.isfinite(data[index][0]).all() for index in range(9))
    assert ImageNet(tmp_path, "test", cache=tmp_path / "cache").damaged == ()


@pytest.mark.parametrize("count", [0, 1, 3, 1234])
def test_a_warning_names_the_first_three(count, recwarn):
    warn_of("shelf", [(f"file{number}", "torn") for number in range(count)], 56_789, items="books")
    assert len(recwarn) == (count > 0)
    for caught in recwarn:
        text = str(caught.message)
        assert text.startswith(f"shelf: {count:,} of 56,789 books ")
        assert ("file2: torn" in text) == (count >= 3)
        assert ("; ..." in text) == (count > 3)
        assert "file3" not in text


def test_the_check_is_made_once_and_its_result_is_kept(tmp_path, monkeypatch):
    imagenet(tmp_path)
    ImageNet(tmp_path, cache=tmp_path / "cache")
    monkeypatch.setattr("spquant_plugin.data.image_files._check_all", lambda: "not again")
    ImageNet(tmp_path, cache=tmp_path / "cache")
    ImageNet(tmp_path, cache=tmp_path / "cache", check=False)
    with pytest.raises(TypeError):
        ImageNet(tmp_path, cache=tmp_path / "cache", check="full")


def test_only_a_full_check_finds_what_is_wrong_in_the_middle(tmp_path):
    """A PNG carries checksums; a JPEG may hide such damage even from its reader."""
    written = imagenet(tmp_path)["train"]
    path = written[0].with_suffix(".png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    written[0].unlink()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(bytes(raw))
    data = ImageNet(tmp_path, validation=0, cache=False)
    number = [data.path(index) for index in range(len(data))].index(path)
    with pytest.raises(DataError) as caught:
        data[number]
    text = str(caught.value)
    assert text.startswith(f"{path}: cannot be read as an image (")
    assert 'pass check="full"' in text
    with pytest.warns(DataWarning, match=r"1 of 6 images of 'train' is damaged and was left out"):
        full = ImageNet(tmp_path, validation=0, cache=False, check="full")
    assert len(full) == 5


def test_damage_does_not_move_images_to_another_split(tmp_path):
    written = imagenet(tmp_path, per_class=8)
    splits = ("train", "validation")
    before = {
        split: {data.path(index) for index in range(len(data))}
        for split in splits
        for data in [ImageNet(tmp_path, split, validation=0.5, cache=False)]
    }
    bad = sorted(before["train"])[0]
    bad.write_bytes(b"")
    with pytest.warns(DataWarning, match="1 of 12"):
        data = ImageNet(tmp_path, "train", validation=0.5, cache=False)
    assert {data.path(index) for index in range(len(data))} == before["train"] - {bad}
    # The other split has nothing to say of it.
    assert len(ImageNet(tmp_path, "validation", validation=0.5, cache=False)) == 12
    assert len(written["train"]) == 24


def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    for path in imagenet(tmp_path)["val"]:
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"val: none of the 6 images of 'test' can be read: n.*JPEG"
    ):
        ImageNet(tmp_path, "test", cache=False)


def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path):
    path = imagenet(tmp_path)["val"][0]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot be opened \(.*Make it readable, or take it out"):
        ImageNet(tmp_path, "test", cache=False)


def drop_class(root) -> None:
    for path in (root / "val" / "n00000001").iterdir():
        path.unlink()
    (root / "val" / "n00000001").rmdir()


def empty_class(root) -> None:
    for path in (root / "train" / "n00000001").iterdir():
        path.unlink()


def flat(root) -> None:
    for path in (root / "val").glob("*/*"):
        path.rename(root / "val" / path.name)
    for label in range(3):
        (root / "val" / f"n{label:08d}").rmdir()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop_class, ["train has 3 folders of classes and val 2", "n00000001 is in train alone"]),
        (empty_class, ["train/n00000001: holds no image (.JPEG", "as 1 of 3 folders"]),
        (flat, ["has no val/*/*", "150 GB", "sort the flat archive into them"]),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, change, parts):
    imagenet(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError) as caught:
        ImageNet(tmp_path, cache=False)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"crop": "centre"}, ["crop = 'centre'", "Did you mean 'center'?"]),
        ({"check": "fulll"}, ["check = 'fulll'", "Did you mean 'full'?"]),
        ({"check": True}, ["check = True", "'quick', 'full'"]),
        ({"workers": -1}, ["workers = -1", "from 0"]),
        ({"cache": 3}, ["cache = 3", "folder, True or False"]),
    ],
)
def test_options_of_imagenet_that_do_not_exist_are_refused(tmp_path, options, parts):
    imagenet(tmp_path)
    with pytest.raises(DataError) as caught:
        ImageNet(tmp_path, **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_unreadable_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.JPEG: cannot be read as an image"):
        read_image(tmp_path / "nowhere.JPEG")


def test_a_network_reads_the_pixels_as_integers(tmp_path):
    cifar10(tmp_path, test_per_class=1)
    frames, _ = next(iter(loader(CIFAR10(tmp_path, "test", steps=2, size=16), 4)))
    net = spq.models.create("vgg5", in_channels=3, size=16, num_classes=10, width=0.125).eval()
    rule = spq.UniformInput(bits=8, low=0.0, high=1.0)
    with torch.no_grad():
        held = spq.convert(net, spq.presets.quant_snn(weight_bits=2, input=rule), sample=frames)
        plain = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=frames)
        first, same = held(frames), plain(frames)
    assert first.shape == (2, 4, 10)
    assert torch.allclose(first, same, atol=1e-5)


def test_images_without_torchvision_say_what_to_install(tmp_path):
    cifar10(tmp_path)
    imagenet(tmp_path)
    code = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "import spquant_plugin as spq\n"
        "for kind in (spq.data.CIFAR10, spq.data.CIFAR100, spq.data.ImageNet):\n"
        "    try:\n"
        f"        kind({str(tmp_path)!r})\n"
        "    except spq.errors.MissingHostError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        f"spquant_plugin.data.{name}" for name in ("CIFAR10", "CIFAR100", "ImageNet")
    ]
    assert all('python -m pip install "spquant-plugin[data]"' in line for line in lines)
