"""Batches with time first, in the same order for the same seed, into both hosts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import Dataset

import spquant_plugin as spq
from spquant_plugin.data import EVENT, Frames, Motion, collate, loader
from spquant_plugin.data.dataset import as_tensors
from spquant_plugin.errors import DataError


@pytest.fixture(scope="module")
def data():
    return Motion(count=21, size=8, steps=5, cache=False)


def batches(data, **options):
    return list(loader(data, batch_size=4, **options))


def labels(data, **options) -> list[int]:
    return torch.cat([label for _, label in batches(data, **options)]).tolist()


def test_batches_have_time_first(data):
    frames, numbers = batches(data)[1]
    assert (frames.shape, frames.dtype) == ((5, 4, 1, 8, 8), torch.float32)
    assert numbers.dtype == torch.int64
    for place in range(4):
        item, label = data[4 + place]
        assert torch.equal(frames[:, place], item)
        assert numbers[place] == label


def test_without_shuffling_the_order_is_that_of_the_data(data):
    assert labels(data) == data.labels.tolist()


def test_the_seed_decides_the_order(data):
    first = labels(data, shuffle=True, seed=1)
    assert first == labels(data, shuffle=True, seed=1)
    assert first != labels(data, shuffle=True, seed=2)
    assert sorted(first) == sorted(data.labels.tolist())
    assert first != data.labels.tolist()


def test_other_random_numbers_leave_the_order_alone(data):
    first = labels(data, shuffle=True, seed=1)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert labels(data, shuffle=True, seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_has_an_order_of_its_own(data):
    load = loader(data, batch_size=21, shuffle=True)
    (_, first), (_, second) = next(iter(load)), next(iter(load))
    assert not torch.equal(first, second)


def test_the_last_small_batch_can_be_dropped(data):
    assert [len(label) for _, label in batches(data)] == [4, 4, 4, 4, 4, 1]
    assert [len(label) for _, label in batches(data, drop_last=True)] == [4] * 5


def test_a_worker_gives_the_same_batches(data):
    alone = batches(data, shuffle=True, seed=3)
    for worker in (batches(data, shuffle=True, seed=3, num_workers=1) for _ in range(2)):
        for (x, y), (same_x, same_y) in zip(alone, worker, strict=True):
            assert torch.equal(x, same_x)
            assert torch.equal(y, same_y)


class Jittered(Dataset):
    """Draws from numpy's global generator, as some transforms do."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        return torch.from_numpy(np.random.random((2, 1, 3, 3))), index


def test_numpy_in_a_worker_follows_the_seed_of_the_loader():
    def drawn(seed: int) -> torch.Tensor:
        return torch.cat([x for x, _ in loader(Jittered(), 2, seed=seed, num_workers=1)], dim=1)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


class Recordings(Dataset):
    """As a Tonic data set: events, a transform, numpy frames."""

    def __init__(self, transform: Frames) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        events = np.array([(index, 0, 0, 1), (1, 1, 50 + index, 0)], dtype=EVENT)
        return self.transform(events), index


def test_numpy_frames_of_another_data_set_become_float_batches():
    recordings = Recordings(Frames(steps=4, height=2, width=3))
    ((frames, numbers),) = loader(recordings)
    assert (frames.shape, frames.dtype) == ((4, 3, 2, 2, 3), torch.float32)
    assert numbers.tolist() == [0, 1, 2]
    for index in range(3):
        assert frames[:, index].tolist() == recordings[index][0].tolist()


def test_recordings_of_unequal_length_are_refused():
    samples = [(torch.zeros(steps, 1, 2, 2), 0) for steps in (4, 7, 4)]
    with pytest.raises(DataError, match=r"recordings of 4, 7 steps: .* Frame them alike"):
        collate(samples)


def test_frames_of_unequal_size_are_refused():
    samples = [(torch.zeros(4, 1, size, 2), 0) for size in (2, 3)]
    with pytest.raises(DataError, match=r"shapes \(1, 2, 2\), \(1, 3, 2\): .* Frame them alike"):
        collate(samples)


def test_a_seed_that_is_none_is_refused(data):
    with pytest.raises(DataError, match="seed = 'a': must be a whole number"):
        loader(data, seed="a")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((np.zeros(3, dtype=EVENT), 0), "(ndarray, int)"),
        (torch.zeros(4, 1), "Tensor"),
        (([1.0], 0), "(list, int)"),
    ],
)
def test_items_that_are_no_frames_are_refused(item, said):
    with pytest.raises(DataError, match=r"transform=spq\.data\.Frames") as caught:
        collate([item])
    assert f"an item of {said}: must be (frames, label)" in str(caught.value)


@pytest.mark.parametrize("index", [slice(3), [0, 1], None])
def test_several_items_at_once_are_refused(index, data):
    with pytest.raises(DataError, match=r"must be one whole number\. Take data\.frames"):
        data[index]


def test_an_empty_batch_is_refused():
    with pytest.raises(DataError, match="received no samples: a batch needs at least one"):
        collate([])


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 255], torch.uint8), ([0, 256], torch.int16), ([-1, 3], torch.int16), ([], torch.uint8)],
)
def test_frames_are_kept_in_the_smallest_type_that_holds_them(values, kind):
    frames, numbers = as_tensors(np.array(values, dtype=np.int16), np.zeros(3, dtype=np.int32))
    assert (frames.dtype, frames.tolist()) == (kind, values)
    assert numbers.dtype == torch.int64


def test_a_data_set_has_an_end(data):
    with pytest.raises(IndexError):
        data[21]
    assert torch.equal(data[-1][0], data[20][0])


def test_a_spikingjelly_network_takes_a_batch(data):
    net = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(),
        layer.Flatten(), layer.Linear(4 * 8 * 8, 8),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    frames, numbers = next(iter(loader(data, batch_size=6)))
    quantized = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=frames)
    for model in (net, quantized):
        out = model(frames)
        assert out.shape == (5, 6, 8)
        nn.functional.cross_entropy(out.mean(0), numbers).backward()
        assert model[0].weight.grad.abs().sum() > 0
        spq.reset(model)


def test_a_snntorch_loop_takes_a_batch(data):
    leaky = snn.Leaky(beta=0.9)
    net = nn.Linear(64, 8)
    frames, numbers = next(iter(loader(data, batch_size=6)))
    membrane, out = leaky.init_leaky(), []
    for step in frames:
        _, membrane = leaky(net(step.flatten(1)), membrane)
        out.append(membrane)
    assert torch.stack(out).shape == (5, 6, 8)
    nn.functional.cross_entropy(torch.stack(out).mean(0), numbers).backward()
    assert net.weight.grad.abs().sum() > 0


def test_loading_the_part_loads_neither_host_nor_what_reads_data():
    """Textures need nothing but torch and numpy."""
    code = (
        "import sys\n"
        "for name in ('tonic', 'sklearn', 'tqdm'): sys.modules[name] = None\n"
        "import spquant_plugin as spq\n"
        "data = spq.data.Motion(count=4, cache=False)\n"
        "print(len(data), {'spikingjelly', 'snntorch'} & set(sys.modules))\n"
        "try:\n"
        "    spq.data.DigitEvents(cache=False)\n"
        "except spq.errors.MissingHostError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 set()\nspquant_plugin.data.DigitEvents needs scikit-learn")
    assert 'python -m pip install "spquant-plugin[data]"' in done.stdout
