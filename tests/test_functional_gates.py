"""Which pixels and channels are open, against plain Python loops over whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spquant_plugin.functional import gates as fg

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
SPACES = [(1,), (7,), (3, 3), (2, 5), (1, 1), (3, 2, 3)]
SPARSITIES = [0, 0.1, 0.35, 0.5, 0.99]
quick = settings(deadline=None, max_examples=60, derandomize=True)


# --- pixels ---------------------------------------------------------------------------------------


def slow_mask(columns: list[list[int]], sparsity: float) -> list[bool]:
    """Which pixels of one sample stay; a column holds the levels of one pixel's channels."""
    importance = [sum(level * level for level in column) for column in columns]
    count, kept = math.floor(sparsity * len(columns)), [True] * len(columns)
    for _ in range(count):
        lowest = None
        for pixel, value in enumerate(importance):
            if kept[pixel] and (lowest is None or value < importance[lowest]):
                lowest = pixel  # strictly lower: of equals the first stays chosen
        kept[lowest] = False
    return kept


def slow_masks(levels: Tensor, sparsity: float) -> Tensor:
    found = [slow_mask(sample.flatten(1).T.tolist(), sparsity) for sample in levels]
    return torch.tensor(found).view(levels.shape[0], 1, *levels.shape[2:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_kept_pixels_are_those_of_a_loop(space, sparsity, batch, device):
    levels = torch.randint(-2, 3, (batch, 3, *space)).float()
    kept = fg.kept_pixels(levels.to(device), sparsity)
    assert kept.dtype == torch.bool
    assert kept.shape == (batch, 1, *space)
    assert torch.equal(kept.cpu(), slow_masks(levels, sparsity))


@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    rows=st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=9),
)
@quick
def test_any_share_of_ternary_levels(sparsity, rows):
    """Ternary levels tie almost everywhere."""
    levels = torch.tensor(rows).float().T[None]
    assert torch.equal(fg.kept_pixels(levels, sparsity), slow_masks(levels, sparsity))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("channels", [1, 4])
def test_equal_pixels_are_masked_in_order_of_their_index(value, channels):
    """A large map: an unstable sort would show here."""
    kept = fg.kept_pixels(torch.full((2, channels, 33, 31), value), 0.35).flatten(1)
    count = math.floor(0.35 * 33 * 31)
    assert not kept[:, :count].any()
    assert kept[:, count:].all()


def test_the_norm_counts_every_channel_and_no_sign():
    """One level of 2 outweighs three of 1; a minus weighs as a plus; a sum of levels would be 0."""
    levels = torch.tensor([[[2.0, 1, 1, 0], [0, -1, -1, 0], [0, 1, 0, 0]]])
    assert fg.kept_pixels(levels, 0.25).flatten().tolist() == [True, True, True, False]
    assert fg.kept_pixels(levels, 0.5).flatten().tolist() == [True, True, False, False]
    assert fg.kept_pixels(levels, 0.75).flatten().tolist() == [True, False, False, False]


def test_each_sample_is_ranked_alone():
    levels = torch.randint(-1, 2, (5, 2, 4, 4)).float()
    together = fg.kept_pixels(levels, 0.4)
    alone = torch.cat([fg.kept_pixels(sample[None], 0.4) for sample in levels])
    assert torch.equal(together, alone)
    assert together.flatten(1).sum(1).tolist() == [10] * 5


@pytest.mark.parametrize(
    ("sparsity", "pixels", "count"),
    [(0, 9, 0), (0.35, 9, 3), (0.35, 2, 0), (0.5, 9, 4), (0.999, 9, 8), (0.35, 1024, 358)],
)
def test_the_share_is_rounded_down(sparsity, pixels, count):
    assert fg.masked_count(sparsity, pixels) == count


def test_no_gradient_passes_the_mask():
    levels = torch.randn(1, 2, 3, 3, requires_grad=True)
    assert not fg.kept_pixels(levels, 0.5).requires_grad


# --- scores of channels ---------------------------------------------------------------------------


def slow_logit(sums, area, row, scale, bias) -> float:
    """One channel's score in exact arithmetic, rounded once at the end."""
    total = sum(int(s) * int(w) for s, w in zip(sums, row, strict=True))
    return float(Fraction(total, area) * Fraction(scale) + Fraction(bias))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [(2,), (3, 2)], ids=str)
def test_scores_are_those_of_whole_numbers(lead, dtype, device):
    sums = torch.randint(-64, 65, (*lead, 5))
    levels = torch.randint(-127, 128, (4, 5))
    scale, bias = torch.rand(4, dtype=dtype) / 64, torch.randn(4, dtype=dtype)
    given = [v.to(device) for v in (levels.to(dtype), scale, bias)]
    found = fg.channel_logits(sums.to(device, dtype), 12, *given).cpu()
    assert found.shape == (*lead, 4)
    expected = [
        [
            slow_logit(one, 12, row, s, b)
            for row, s, b in zip(levels.tolist(), scale.tolist(), bias.tolist(), strict=True)
        ]
        for one in sums.flatten(0, -2).tolist()
    ]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    want = torch.tensor(expected, dtype=torch.float64).view(*lead, 4)
    assert ((found.double() - want).abs() <= tolerance * (1 + want.abs())).all()


def test_the_order_of_summation_does_not_matter():
    """Beyond 2**24 float32 would round: sums of 4,096 pixels in 2,048 channels, times 127."""
    sums = torch.randint(-512, 4097, (3, 2048)).float()
    levels = torch.randint(-63, 128, (6, 2048)).float()
    scale, bias = torch.rand(6), torch.randn(6)
    found = fg.channel_logits(sums, 4096, levels, scale, bias)
    exact = sums.long() @ levels.long().T
    assert exact.abs().max() > 2**24
    assert torch.equal(found, (exact.double().float() / 4096) * scale + bias)
    order = torch.randperm(2048)
    assert torch.equal(
        fg.channel_logits(sums[:, order], 4096, levels[:, order], scale, bias), found
    )
    for one, want in zip(sums, found, strict=True):
        assert torch.equal(fg.channel_logits(one, 4096, levels, scale, bias), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_within(dtype):
    """1,000 levels times 127 exceed what float16 holds, their mean does not."""
    levels, scale = torch.tensor([[127.0]], dtype=dtype), torch.tensor([2.0**-10], dtype=dtype)
    found = fg.channel_logits(
        torch.tensor([[1000.0]]), 1024, levels, scale, torch.tensor([-1.0], dtype=dtype)
    )
    assert found.item() == pytest.approx(1000 * 127 / 1024 / 1024 - 1, rel=1e-2)


# --- open channels --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.1, 0.25, 0.47, 0.5, 0.9])
def test_a_channel_is_open_where_its_sigmoid_reaches_the_threshold(threshold, device):
    logits = torch.randn(4, 3, 6) * 3
    mask = fg.open_channels(logits.to(device), threshold).cpu()
    assert mask.dtype == logits.dtype
    expected = [1.0 if 1 / (1 + math.exp(-g)) >= threshold else 0.0 for g in logits.flatten()]
    assert mask.flatten().tolist() == expected
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize("device", DEVICES)
def test_on_the_threshold_a_channel_is_open(device):
    logits = torch.tensor([0.0, -1e-6, 1e-6], device=device)
    assert fg.open_channels(logits, 0.5).tolist() == [1, 0, 1]
    pair = torch.tensor([0.0, 0.0], device=device)
    assert fg.open_channels(pair, 0.5, "softmax").tolist() == [1, 1]


def test_softmax_is_taken_over_the_channels():
    """At most two can reach 0.47, however large all scores are."""
    logits = torch.tensor([[9.0, 9.0, 1.0], [9.0, 9.0, 9.0], [0.0, 9.0, 0.0]])
    mask = fg.open_channels(logits, 0.47, "softmax")
    assert mask.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert torch.equal(fg.open_channels(logits[None], 0.47, "softmax"), mask[None])


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_slope_of_the_score_comes_back(score):
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(3, 5, dtype=torch.float64)
    (fg.open_channels(logits, 0.3, score) * weigh).sum().backward()
    rows = []
    for g, w in zip(logits.tolist(), weigh.tolist(), strict=True):
        raised = [math.exp(v) for v in g]
        p = [v / sum(raised) for v in raised]
        mean = sum(a * b for a, b in zip(p, w, strict=True))
        soft = [a * (b - mean) for a, b in zip(p, w, strict=True)]
        one = [1 / (1 + math.exp(-v)) for v in g]
        rows.append(
            soft if score == "softmax" else [s * (1 - s) * b for s, b in zip(one, w, strict=True)]
        )
    torch.testing.assert_close(logits.grad, torch.tensor(rows, dtype=torch.float64))


def test_the_gradient_reaches_closed_channels_too():
    logits = torch.tensor([-2.0, 2.0], requires_grad=True)
    mask = fg.open_channels(logits)
    assert mask.tolist() == [0, 1]
    mask.sum().backward()
    assert torch.allclose(logits.grad, torch.full((2,), 0.104994), atol=1e-6)
