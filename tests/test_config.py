"""Configurations: what is refused, in which words, and the round trip through plain values."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spquant_plugin as spq
from spquant_plugin.errors import ConfigError, SpQuantError

quick = settings(deadline=None, max_examples=150, derandomize=True)

# --- random configurations ------------------------------------------------------------------------

positive = st.floats(1e-3, 1e3)
membrane_options = {
    "unit": st.one_of(st.just("threshold"), positive, st.integers(1, 9)),
    "shape": st.sampled_from(["sigmoid", "arctan", "triangle", "piecewise"]),
    "temperature": positive,
}
membranes = st.one_of(
    st.builds(
        spq.TernaryMembrane, boundaries=st.sampled_from(["nearest", "eq7"]), **membrane_options
    ),
    st.builds(spq.BinaryMembrane, **membrane_options),
    st.builds(spq.UniformMembrane, bits=st.integers(2, 8), **membrane_options),
    st.builds(
        spq.UniformMembrane,
        levels=st.tuples(st.integers(-128, 0), st.integers(1, 127)),
        **membrane_options,
    ),
)
weights = st.one_of(
    st.builds(spq.PowerOfTwoWeights, st.integers(2, 4), per_channel=st.booleans()),
    st.builds(spq.AdditivePowerOfTwoWeights, st.integers(5, 8), per_channel=st.booleans()),
    st.builds(spq.UniformWeights, st.integers(2, 8)),
    st.just(spq.UniformWeights(4, scale="sawb")),
    st.just(spq.TernaryWeights()),
)
thresholds = st.builds(
    spq.LearnableThreshold,
    gradient=st.sampled_from(["gpw", "shared", "doubled"]),
    per_channel=st.booleans(),
    bounds=st.tuples(st.floats(0.01, 1), st.floats(1, 100)),
)
inputs = st.builds(spq.UniformInput, st.integers(1, 8), st.floats(-100, 0), st.floats(0.01, 100))
parts = {
    "membrane": st.none() | membranes,
    "surrogate": st.none() | st.builds(spq.Triangle, positive),
    "threshold": st.none() | thresholds,
    "weights": st.none() | weights,
    "edge_weights": st.none() | weights,
    "input": st.none() | inputs,
}
flat = st.builds(spq.SpQuantConfig, **parts)
# Attribute names of a user's modules are free, those of our own dictionaries among them.
selectors = st.one_of(st.text(min_size=1), st.sampled_from(["kind", "bits", "overrides", "re:.*"]))
configs = st.builds(
    spq.SpQuantConfig,
    **parts,
    overrides=st.dictionaries(selectors, st.none() | flat, max_size=3),
)
records = st.one_of(configs, membranes, weights, thresholds, inputs)


@given(record=records)
@quick
def test_plain_values_bring_every_record_back(record):
    plain = record.to_dict()
    assert plain["kind"] == type(record).__name__
    assert type(record).from_dict(plain) == record
    text = json.dumps(plain, allow_nan=False)
    assert type(record).from_dict(json.loads(text)) == record


@given(record=records)
@quick
def test_records_copy_pickle_and_compare(record):
    assert copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(record)) == record
    assert dataclasses.replace(record) == record


def test_the_plain_form_is_readable():
    config = spq.SpQuantConfig(
        membrane=spq.UniformMembrane(levels=(-3, 1)), overrides={"head": None}
    )
    plain = config.to_dict()
    assert plain["membrane"] == {
        "kind": "UniformMembrane",
        "unit": "threshold",
        "shape": "sigmoid",
        "temperature": 2.0,
        "bits": None,
        "levels": [-3, 1],
    }
    assert plain["overrides"] == {"head": None}
    assert plain["surrogate"] is None


@pytest.mark.parametrize("selector", ["kind", "bits", "re:.*", "a.0.kind"])
@pytest.mark.parametrize("override", [None, spq.SpQuantConfig(membrane=spq.BinaryMembrane())])
def test_a_selector_may_have_any_name(selector, override):
    config = spq.SpQuantConfig(overrides={selector: override})
    assert spq.SpQuantConfig.from_dict(config.to_dict()) == config


def test_numbers_of_other_libraries_become_plain_ones():
    record = spq.SpQuantConfig(
        membrane=spq.UniformMembrane(np.int64(4), unit=np.float32(0.5)),
        weights=spq.UniformWeights(np.int32(4)),
        input=spq.UniformInput(np.int8(6), np.float64(-1), 2),
    )
    assert spq.SpQuantConfig.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_record_cannot_be_changed():
    config = spq.SpQuantConfig(overrides={"a": None})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.membrane = spq.TernaryMembrane()
    with pytest.raises(dataclasses.FrozenInstanceError):
        spq.TernaryMembrane().unit = 2.0
    given = {"a": None}
    config = spq.SpQuantConfig(overrides=given)
    given["b"] = None
    assert set(config.overrides) == {"a"}


# --- what the records say -------------------------------------------------------------------------


def test_every_field_is_left_alone_but_the_edges():
    config = spq.SpQuantConfig()
    rest = ("membrane", "surrogate", "threshold", "weights", "input")
    assert all(getattr(config, name) is None for name in rest)
    assert config.edge_weights == spq.UniformWeights(8)
    assert config.overrides == {}
    assert not config.changes_neurons
    assert not config.changes_layers


@pytest.mark.parametrize(
    ("fields", "neurons", "layers"),
    [
        ({"membrane": spq.TernaryMembrane()}, True, False),
        ({"surrogate": spq.Triangle()}, True, False),
        ({"threshold": spq.LearnableThreshold()}, True, False),
        ({"weights": spq.TernaryWeights()}, False, True),
        ({"input": spq.UniformInput()}, False, True),
        ({"edge_weights": spq.UniformWeights(4)}, False, False),
    ],
)
def test_what_a_configuration_changes(fields, neurons, layers):
    config = spq.SpQuantConfig(**fields)
    assert (config.changes_neurons, config.changes_layers) == (neurons, layers)


@pytest.mark.parametrize(
    ("membrane", "span", "cuts", "bits", "factor"),
    [
        (spq.TernaryMembrane(), (-1, 1), None, 2, 1.0),
        (spq.TernaryMembrane("eq7"), (-1, 1), (0.0, 0.5), 2, 1.0),
        (spq.BinaryMembrane(), (0, 1), None, 1, 1.0),
        (spq.UniformMembrane(2), (-2, 1), None, 2, 1.0),
        (spq.UniformMembrane(4), (-8, 7), None, 4, 0.25),
        (spq.UniformMembrane(8), (-128, 127), None, 8, 1 / 64),
        (spq.UniformMembrane(levels=(-3, 1)), (-3, 1), None, 3, 1.0),
        (spq.UniformMembrane(levels=[0, 255]), (0, 255), None, 8, 1.0),
    ],
)
def test_levels_bits_and_units_of_a_membrane(membrane, span, cuts, bits, factor):
    assert (membrane.lowest, membrane.highest) == span
    assert membrane.cut_points == cuts
    assert membrane.stored_bits == bits
    assert math.isclose(membrane.information_bits, math.log2(span[1] - span[0] + 1))
    assert membrane.default_unit_factor == factor


@pytest.mark.parametrize(
    ("record", "bits"),
    [
        (spq.PowerOfTwoWeights(), 2),
        (spq.PowerOfTwoWeights(4), 4),
        (spq.AdditivePowerOfTwoWeights(5), 5),
        (spq.UniformWeights(), 8),
        (spq.TernaryWeights(), 2),
    ],
)
def test_stored_bits_of_weights(record, bits):
    assert record.stored_bits == record.bits == bits


# --- errors ---------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
SHAPE_RULE = "one of 'sigmoid', 'arctan', 'triangle', 'piecewise'"
LEVEL_RULE = "two whole numbers (low, high) with low <= 0 < high"
BOUND_RULE = "two numbers (low, high) with 0 < low <= 1 <= high"
INPUT_RULE = "low <= 0 <= high"

BAD = [
    *[
        (kind, {"unit": value}, "unit", "above 0")
        for kind in (spq.TernaryMembrane, spq.BinaryMembrane)
        for value in ("half", 0, -1.0, NAN, INF, None, True, [1.0])
    ],
    (spq.UniformMembrane, {"bits": 4, "unit": "V"}, "unit", "'threshold' or a number above 0"),
    *[(spq.TernaryMembrane, {"shape": v}, "shape", SHAPE_RULE) for v in ("tanh", None, 3, [])],
    *[
        (spq.BinaryMembrane, {"temperature": value}, "temperature", "a finite number above 0")
        for value in (0, -2.0, NAN, INF, "2", None, False, 10**400)
    ],
    *[
        (spq.TernaryMembrane, {"boundaries": value}, "boundaries", "one of 'nearest', 'eq7'")
        for value in ("Eq7", None, 0.5)
    ],
    *[
        (spq.UniformMembrane, {"bits": value}, "bits", "a whole number from 2 to 8")
        for value in (1, 9, 2.0, "4", True, NAN)
    ],
    *[
        (spq.UniformMembrane, {"levels": value}, "levels", LEVEL_RULE)
        for value in ((1, 2), (-2, 0), (0, 256), (-1.0, 1), (-1, 0, 1), "ab", 3, (False, True))
    ],
    *[
        (spq.Triangle, {"width": value}, "width", "a finite number above 0")
        for value in (0, -1, NAN, INF, "1", None, 10**400)
    ],
    *[
        (spq.LearnableThreshold, {"gradient": value}, "gradient", "'gpw', 'shared', 'doubled'")
        for value in ("GPW", None)
    ],
    *[
        (spq.LearnableThreshold, {"per_channel": value}, "per_channel", "True or False")
        for value in (1, None, "yes")
    ],
    *[
        (spq.LearnableThreshold, {"bounds": value}, "bounds", BOUND_RULE)
        for value in (
            (0, 2),
            (-1, 2),
            (1.1, 2),
            (0.5, 0.9),
            (NAN, 2),
            (0.5, INF),
            (0.5,),
            0.5,
            "ab",
            ("a", 2),
            (True, 2),
        )
    ],
    *[(spq.PowerOfTwoWeights, {"bits": v}, "bits", "from 2 to 4") for v in (1, 5, 2.5, None, True)],
    *[(spq.AdditivePowerOfTwoWeights, {"bits": v}, "bits", "from 5 to 8") for v in (4, 9, "8")],
    *[(spq.UniformWeights, {"bits": v}, "bits", "from 2 to 8") for v in (0, 1, 9, -4, NAN)],
    (spq.PowerOfTwoWeights, {"per_channel": 0}, "per_channel", "True or False"),
    (spq.AdditivePowerOfTwoWeights, {"per_channel": None}, "per_channel", "True or False"),
    *[(spq.UniformWeights, {"scale": v}, "scale", "'auto', 'sawb'") for v in ("max", None)],
    (spq.UniformWeights, {"bits": 8, "scale": "sawb"}, "scale", "bits=4 only"),
    *[(spq.UniformInput, {"bits": v}, "bits", "from 1 to 8") for v in (0, 9, 8.0)],
    *[(spq.UniformInput, {"low": v}, "low", "a finite number") for v in (NAN, -INF, "0", None)],
    *[(spq.UniformInput, {"high": v}, "high", "a finite number") for v in (INF, True)],
    (spq.UniformInput, {"low": 0.5}, "low", INPUT_RULE),
    (spq.UniformInput, {"low": -2.0, "high": -1.0}, "high", INPUT_RULE),
    (spq.UniformInput, {"low": 0.0, "high": 0.0}, "high", "low < high"),
    *[
        (spq.SpQuantConfig, {"membrane": value}, "membrane", "None or one of BinaryMembrane")
        for value in ("ternary", spq.TernaryMembrane, spq.PowerOfTwoWeights())
    ],
    (spq.SpQuantConfig, {"surrogate": spq.LearnableThreshold()}, "surrogate", "Triangle"),
    (spq.SpQuantConfig, {"threshold": 1.0}, "threshold", "LearnableThreshold"),
    (spq.SpQuantConfig, {"weights": 2}, "weights", "AdditivePowerOfTwoWeights, MintWeights"),
    (spq.SpQuantConfig, {"edge_weights": spq.UniformInput()}, "edge_weights", "UniformWeights"),
    (spq.SpQuantConfig, {"input": spq.UniformWeights()}, "input", "UniformInput"),
    (spq.SpQuantConfig, {"overrides": ["head"]}, "overrides", "map selectors to configurations"),
    (spq.SpQuantConfig, {"overrides": {3: None}}, "overrides", "non-empty strings as keys"),
    (spq.SpQuantConfig, {"overrides": {"": None}}, "overrides", "non-empty strings as keys"),
    (
        spq.SpQuantConfig,
        {"overrides": {"head": spq.TernaryMembrane()}},
        "overrides['head']",
        "a SpQuantConfig, or None",
    ),
    (
        spq.SpQuantConfig,
        {"overrides": {"head": spq.SpQuantConfig(overrides={"a": None})}},
        "overrides['head']",
        "must not hold overrides of its own",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "name", "rule"), BAD)
def test_an_error_names_class_field_value_and_rule(kind, fields, name, rule):
    with pytest.raises(ConfigError) as caught:
        kind(**fields)
    message = str(caught.value)
    value = fields.get(name.split("[")[0])
    if isinstance(value, dict):
        (selector, held), *_ = value.items()
        value = held if isinstance(selector, str) and selector else selector
    assert kind.__name__ in message
    assert name in message
    assert repr(value) in message
    assert rule in message
    assert isinstance(caught.value, SpQuantError | ValueError)


@pytest.mark.parametrize("fields", [{}, {"bits": 4, "levels": (-1, 1)}])
def test_a_uniform_membrane_takes_bits_or_levels(fields):
    with pytest.raises(ConfigError) as caught:
        spq.UniformMembrane(**fields)
    message = str(caught.value)
    for part in ("UniformMembrane", f"bits={fields.get('bits')}", "levels=", "exactly one"):
        assert part in message


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"kind": "Tenary"}, ["'Tenary'", "must be one of", "TernaryMembrane"]),
        ({"kind": None}, ["None", "must be one of"]),
        ({"kind": ["x"]}, ["['x']", "must be one of"]),
        ({}, ["from_dict", "SpQuantConfig"]),
        (7, ["'int'", "SpQuantConfig"]),
        ({"kind": "TernaryWeights"}, ["'TernaryWeights'", "SpQuantConfig"]),
        (
            {"kind": "SpQuantConfig", "membran": None},
            ["'membran'", "SpQuantConfig", "membrane", "Remove the field"],
        ),
        (
            {"kind": "SpQuantConfig", "weights": {"kind": "UniformWeights", "bits": 99}},
            ["UniformWeights.bits = 99", "from 2 to 8"],
        ),
        (
            {"kind": "SpQuantConfig", "overrides": {"head": {"kind": "Nothing"}}},
            ["'Nothing'", "must be one of"],
        ),
    ],
)
def test_a_damaged_dictionary_says_what_is_wrong(plain, said):
    with pytest.raises(ConfigError) as caught:
        spq.SpQuantConfig.from_dict(plain)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_missing_fields_take_their_defaults():
    plain = {"kind": "SpQuantConfig", "weights": {"kind": "UniformWeights", "bits": 4}}
    want = spq.SpQuantConfig(weights=spq.UniformWeights(4))
    assert spq.SpQuantConfig.from_dict(plain) == want


def test_a_base_kind_reads_each_of_its_own():
    for record in (spq.TernaryMembrane("eq7"), spq.UniformMembrane(3), spq.BinaryMembrane()):
        assert spq.config._Membrane.from_dict(record.to_dict()) == record
