"""Packed bytes: round trips, and the layout digit by digit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import packing as fp

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
WIDTHS = [1, 2, 4, 8]
quick = settings(deadline=None, max_examples=40, derandomize=True)
dtypes = st.sampled_from([torch.int8, torch.int16, torch.int64, torch.float16, torch.float32])


def digits(codes: list[int], base: int, per_byte: int) -> list[int]:
    """Bytes whose lowest digit is the first code, with zeros after the last."""
    codes = codes + [0] * (-len(codes) % per_byte)
    groups = [codes[i : i + per_byte] for i in range(0, len(codes), per_byte)]
    return [sum(code * base**i for i, code in enumerate(group)) for group in groups]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", WIDTHS)
@given(data=st.data(), lowest=st.integers(-300, 300), count=st.integers(0, 21), dtype=dtypes)
@quick
def test_bits_round_trip(device, bits, data, lowest, count, dtype):
    if dtype == torch.int8:
        lowest = max(-128, min(lowest, 128 - 2**bits))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    levels = torch.tensor([lowest + code for code in codes], dtype=dtype, device=device)
    packed = fp.pack_bits(levels, bits, lowest)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == digits(codes, 2**bits, 8 // bits)
    back = fp.unpack_bits(packed, bits, count, lowest)
    assert back.tolist() == levels.tolist()


@pytest.mark.parametrize("device", DEVICES)
@given(levels=st.lists(st.integers(-1, 1), max_size=23), dtype=dtypes)
@quick
def test_trits_round_trip(device, levels, dtype):
    packed = fp.pack_trits(torch.tensor(levels, dtype=dtype, device=device))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == digits([level + 1 for level in levels], 3, 5)
    back = fp.unpack_trits(packed, len(levels))
    assert (back.tolist(), back.dtype) == (levels, torch.int8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("lowest", [0, -1, -(2**7)])
def test_every_code_survives_in_a_type_that_holds_it(bits, lowest):
    levels = torch.arange(lowest, lowest + 2**bits)
    back = fp.unpack_bits(fp.pack_bits(levels, bits, lowest), bits, len(levels), lowest)
    assert torch.equal(back.long(), levels)
    assert (back.dtype == torch.int8) == (levels.max() < 128)


def test_all_243_words_of_five_trits_are_different_bytes():
    words = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 5)
    packed = fp.pack_trits(words)
    assert sorted(packed.tolist()) == list(range(243))
    assert torch.equal(fp.unpack_trits(packed, words.numel()).view(243, 5).long(), words)


def test_any_layout_packs_in_row_order():
    levels = torch.tensor([[-1, 0, 1], [1, 1, -1]])
    assert torch.equal(fp.pack_trits(levels.T), fp.pack_trits(levels.T.contiguous().flatten()))
    assert torch.equal(fp.pack_bits(levels.T, 2, -1), fp.pack_bits(levels.T.flatten(), 2, -1))


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: fp.pack_bits(torch.tensor([0]), 3), ["bits = 3", "1, 2, 4 or 8"]),
        (lambda: fp.unpack_bits(torch.zeros(1).byte(), 0, 1), ["bits = 0", "1, 2, 4 or 8"]),
        (lambda: fp.pack_bits(torch.tensor([0, 4]), 2), ["0 to 4", "0 to 3", "Use more bits"]),
        (lambda: fp.pack_bits(torch.tensor([-2]), 2, -1), ["-2 to -2", "-1 to 2", "lowest"]),
        (lambda: fp.pack_trits(torch.tensor([0, 2])), ["0 to 2", "-1 to 1"]),
        (lambda: fp.pack_trits(torch.tensor([0.5])), ["fractions", "whole numbers", "Round"]),
        (lambda: fp.pack_trits(torch.tensor([float("nan")])), ["fractions"]),
        (lambda: fp.pack_bits(torch.tensor([float("inf")]), 8), ["inf", "0 to 255"]),
        (lambda: fp.unpack_trits(torch.tensor([243]).byte(), 5), ["243", "242", "damaged"]),
        (lambda: fp.unpack_trits(torch.tensor([0]).byte(), 6), ["count = 6", "1 to 5"]),
        (lambda: fp.unpack_trits(torch.tensor([0, 0]).byte(), 5), ["count = 5", "6 to 10"]),
        (lambda: fp.unpack_bits(torch.tensor([0]).byte(), 2, -1), ["count = -1", "1 to 4"]),
        (lambda: fp.unpack_bits(torch.tensor([]).byte(), 4, 1), ["count = 1", "0 to 0"]),
    ],
)
def test_what_cannot_be_packed_says_why(call, parts):
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)
