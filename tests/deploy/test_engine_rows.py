"""Rows of bits: places side by side, planes of weights counted together, decisions of channels."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.engine.compiled import CompiledEngine
from spquant_plugin.deploy.engine.decision import Decision
from spquant_plugin.deploy.engine.rows import WeightRows, aligned, width_of
from tests.deploy.graphs import Builder, random_input
from tests.deploy.test_engine import compare


@pytest.mark.parametrize("channels", [5, 70, 200, 300, 520])
@pytest.mark.parametrize("top", [1, 3, 7, 15, 31])
def test_planes_of_weights_that_share_a_row_or_not(channels, top):
    """2 to 6 bits; seven places do not fill groups of 8, 4 or 2."""
    b = Builder(top, (40, 7), high=2)
    b.neuron(b.convolution(b.nodes[0], channels, top=top), levels=(-2, 1))
    compare(b.graph(), random_input(b.graph(), 2, 2, rate=0.6), path="events", layers=False)


def test_places_side_by_side_of_which_one_alone_has_many_events():
    """One window beyond a block makes its neighbours count in more planes too."""
    b = Builder(3, (64, 6, 6))
    b.neuron(b.convolution(b.nodes[0], 64))
    graph = b.graph()
    x = random_input(graph, 3, 1, rate=0.05)
    x[..., :3, :3] = 1
    compare(graph, x, path="events", layers=False)


@pytest.mark.parametrize("channels", [5, 70, 520])
@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("side", [2, 5, 17])
def test_decisions_by_membranes_and_by_spikes(channels, remembers, side):
    """Few places, some beyond whole groups, and more than one block of them."""
    b = Builder(channels, (3, side, side))
    first = b.neuron(b.convolution(b.nodes[0], channels), levels=(-2, 1), remembers=remembers)
    for reads in ("membrane", "value"):
        gate = b.decision(first, 70, reads=reads)
        b.neuron(b.convolution(first, 70), gate=gate)
    graph = b.graph()
    engine = compare(graph, random_input(graph, 3, 2, rate=0.5), layers=False)
    decided = [node for node in graph.nodes if isinstance(node, g.ChannelDecision)]
    state = engine.rest(2)
    found = engine.run(random_input(graph, 3, 2), state, {node.name for node in decided}).values
    assert all(0 < found[node.name].float().mean() < 1 for node in decided)


def test_decisions_that_could_leave_32_bits_are_not_the_kernels():
    b = Builder(0, (3, 4, 4))
    neuron = b.neuron(b.convolution(b.nodes[0], 64), levels=(-8, 7))
    node = b.decision(neuron, 8)
    assert Decision.knows(node, neuron)
    assert not Decision.knows(node, replace(neuron, shape=(64, 2**9, 2**9)))
    many = replace(node, reads="value")
    assert not Decision.knows(many, replace(neuron, high=2))


def test_thresholds_beyond_32_bits_open_always_or_never():
    b = Builder(1, (3, 4, 4))
    neuron = b.neuron(b.convolution(b.nodes[0], 64))
    node = b.decision(neuron, 3)
    ends = torch.tensor([-(2**40), 2**40, 0])
    decision = Decision(replace(node, threshold=ends, weight=torch.ones_like(node.weight)))
    levels = np.zeros((1, 16, 2, 1), np.uint64)
    assert decision.open(levels, 0, 0).tolist() == [[0b101]]


@pytest.mark.parametrize(("words", "width"), [(1, 2), (2, 2), (3, 4), (5, 8), (8, 8)])
def test_width_that_holds_so_many_words(words, width):
    assert len(width_of(words)) == width


@pytest.mark.parametrize("top", [1, 7, 31])
def test_rows_begin_at_lines_of_the_cache_and_unpack(top):
    numbers = torch.randint(-top, top + 1, (19, 130)).numpy().astype(np.int16)
    rows = WeightRows.of(numbers)
    assert rows.words.ctypes.data % 64 == 0
    assert np.array_equal(rows.unpacked(), numbers)
    assert aligned((0, 3)).size == 0


def test_weights_are_held_once():
    b = Builder(2, (6, 5, 5))
    b.neuron(b.convolution(b.nodes[0], 70, top=3))
    engine = CompiledEngine(b.graph())
    (layer,) = engine.graph.layers
    assert layer.weight.is_meta
    assert torch.equal(engine.whole_graph().layers[0].weight, b.graph().layers[0].weight)


def test_loops_of_several_threads_have_plain_bounds():
    """numba runs others on one thread, and does not say so."""
    loops = []
    for path in (Path(__file__).parents[2] / "spquant_plugin/deploy/engine").glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        loops += [call for call in calls if getattr(call.func, "id", "") == "prange"]
    assert len(loops) > 5
    assert not [loop.lineno for loop in loops if isinstance(loop.args[0], ast.IfExp)]


THREADS = """
import sys, torch
from spquant_plugin.deploy.engine.compiled import CompiledEngine
from tests.deploy.graphs import chain, random_input
torch.set_num_threads(int(sys.argv[1]))
graph = chain(0)
engine = CompiledEngine(graph)
for _ in range(2):
    engine.run(random_input(graph, 2, 1), engine.rest(1), {graph.outputs[0].value})
    print(torch.get_num_threads())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_torch_keeps_its_number_of_threads(threads):
    """In a new process, since numba changes it at its first call there."""
    command = [sys.executable, "-c", THREADS, threads]
    root = Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [threads, threads]
