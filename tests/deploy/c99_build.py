"""Builds exported networks, runs them, and says what they should have done."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spquant_plugin.deploy import graph as g
from spquant_plugin.deploy.c99.export import write_c
from spquant_plugin.deploy.engine.choice import make_engine

HARNESS = Path(__file__).with_name("c99_harness.c")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
CHECKED = [*STRICT, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FAST = [*STRICT, "-O2"]
ARM = "arm-linux-gnueabihf-gcc"
TYPES = {"uint8_t": "u1", "int8_t": "i1", "uint16_t": "<u2", "int16_t": "<i2", "int32_t": "<i4"}


def need(*tools: str) -> None:
    """Skip a test where one of these programs is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")


def call(command: list[str], **options: object) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=300, check=False, **options)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return done.stdout


class Builder:
    """Compiles kernels and harness once for each set of flags."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.parts = functools.cache(self._parts)

    def _parts(self, compiler: str, flags: tuple[str, ...], kernels: Path) -> Path:
        """Kernels do not depend on the network."""
        built = self.folder / f"kernels{self.parts.cache_info().currsize}.o"
        call([compiler, *flags, "-c", str(kernels), "-o", str(built)])
        return built

    def build(self, exported: Path, flags: list[str], compiler: str = "gcc") -> Path:
        kernels = Path(g.__file__).parent / "c99/templates/spq_kernels.c"
        built = self.folder / f"net{self.count}"
        self.count += 1
        files = [self.parts(compiler, tuple(flags), kernels), exported / "spq_network.c", HARNESS]
        traced = ["-DSPQ_TRACE", f"-I{exported}", "-o", str(built)]
        call([compiler, *flags, *traced, *map(str, files)])
        return built


def export(graph: g.Graph, folder: Path, steps: int = 1) -> Path:
    """Write a graph with a sample of zeros."""
    sample = torch.zeros(steps, 1, *graph.input.shape, dtype=torch.int32)
    write_c(graph, sample.clamp(graph.input.low, graph.input.high), folder, measure=False)
    return folder


def told(program: list[str], exported: Path, x: Tensor) -> bytes:
    """What the program writes for whole numbers ``[T, N, *shape]``."""
    header = (exported / "spq_network.h").read_text()
    kind = header.split(" spq_input_t;")[0].rsplit(" ", 1)[1]
    given = x.transpose(0, 1).contiguous().numpy().astype(TYPES[kind]).tobytes()
    return call([*program, str(len(x))], input=given, env={**os.environ, "ASAN_OPTIONS": ""})


def bits(numbers: Tensor, width: int) -> np.ndarray:
    """Numbers ``[N, ...]`` as ``width`` bits each, packed from the low end, a row per sample."""
    rows = numbers.flatten(1).numpy().astype(np.uint8)
    split = rows[:, :, None] >> np.arange(width, dtype=np.uint8) & 1
    return np.packbits(split.reshape(len(rows), -1), axis=1, bitorder="little")


def expected(graph: g.Graph, x: Tensor) -> bytes:
    """The same from the reference engine."""
    engine = make_engine(graph, "torch")
    state = engine.rest(x.shape[1])
    keys = [o.value if o.reads == "value" else (o.value, o.reads) for o in graph.outputs]
    wanted = {*keys, *[neuron.name for neuron in graph.neurons]}
    wanted |= {output.gate for output in graph.outputs if output.gate}
    steps = []
    for step in x:
        values = engine.run(step[None], state, wanted).values
        parts = []
        for neuron in graph.neurons:
            parts.append(bits(values[neuron.name][0], 1))
            parts.append(bits(state[neuron.name], neuron.state_bits))
        for key, output in zip(keys, graph.outputs, strict=True):
            read = [values[key], *([values[output.gate]] if output.gate else [])]
            parts += [part[0].flatten(1).numpy().astype("<i4").view(np.uint8) for part in read]
        steps.append(np.concatenate(parts, axis=1))
    return np.stack(steps, axis=1).tobytes()
