"""Presets, their overrides and their errors."""

from __future__ import annotations

import pytest

import spquant_plugin as spq
from spquant_plugin.errors import ConfigError


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_quant_snn_is_the_papers_setting(bits, adaptive):
    config = spq.presets.quant_snn(weight_bits=bits, adaptive=adaptive)
    sums = spq.AdditivePowerOfTwoWeights
    assert config == spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(),
        surrogate=spq.Triangle(width=1.0),
        weights=spq.PowerOfTwoWeights(bits) if bits <= 4 else sums(bits),
        threshold=spq.LearnableThreshold() if adaptive else None,
        edge_weights=spq.UniformWeights(8),
    )


def test_its_defaults():
    assert spq.presets.quant_snn() == spq.presets.quant_snn(2, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("membrane", spq.BinaryMembrane()),
        ("surrogate", None),
        ("threshold", spq.LearnableThreshold("shared")),
        ("weights", None),
        ("edge_weights", None),
        ("input", spq.UniformInput()),
        ("overrides", {"head": None}),
    ],
)
def test_any_field_can_be_replaced_and_the_rest_stays(name, value):
    config, plain = spq.presets.quant_snn(3, **{name: value}), spq.presets.quant_snn(3)
    fields = plain.to_dict()
    assert getattr(config, name) == value
    changed = {key for key, held in config.to_dict().items() if held != fields[key]}
    assert changed == {name}


@pytest.mark.parametrize("bits", [1, 9, 0, -2, 2.0, "4", None, True])
def test_bits_out_of_range(bits):
    with pytest.raises(ConfigError) as caught:
        spq.presets.quant_snn(bits)
    for part in ("quant_snn(weight_bits=", repr(bits), "whole number from 2 to 8", "weights="):
        assert part in str(caught.value)


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        spq.presets.quant_snn(membranes=spq.BinaryMembrane())
    message = str(caught.value)
    assert "'membranes'" in message
    assert all(name in message for name in spq.SpQuantConfig.__dataclass_fields__)


def test_a_bad_field_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match=r"SpQuantConfig\.membrane = 2"):
        spq.presets.quant_snn(membrane=2)
