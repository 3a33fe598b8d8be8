"""What the C network takes of a device's memory: counted, and its code measured by a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...table import render

OBJECTS = ("spq_network", "spq_kernels")
FLAGS = ("-std=c99", "-Os", "-fno-pie", "-fno-pic", "-ffunction-sections", "-fdata-sections", "-c")


@dataclass(frozen=True)
class CSize:
    """Bytes of a C network. Flash: weights, tables and code; RAM: states and buffers.

    ``code`` holds the instructions and the records that the kernels read; it is None where no
    compiler measured it. Not counted are the stack and the input and output, which the caller owns:
    ``input`` and ``output`` bytes.
    """

    weights: int
    tables: int
    states: int
    buffers: int
    input: int
    output: int
    code: int | None = None
    compiler: str | None = None

    @property
    def flash(self) -> int:
        """Weights, tables and, where it was measured, code."""
        return self.weights + self.tables + (self.code or 0)

    @property
    def ram(self) -> int:
        """Packed states of all neurons, and buffers of a step."""
        return self.states + self.buffers

    def table(self) -> str:
        """All figures as text."""
        code = "not measured" if self.code is None else _bytes(self.code)
        rows = [
            ("flash", "weights", _bytes(self.weights), "packed"),
            ("", "tables", _bytes(self.tables), "thresholds, outcomes, factors"),
            ("", "code", code, self.compiler or "no compiler was found"),
            ("", "total", _bytes(self.flash), ""),
            ("RAM", "states", _bytes(self.states), "membranes, packed"),
            ("", "buffers", _bytes(self.buffers), "values of one step"),
            ("", "total", _bytes(self.ram), "without the stack"),
            ("caller", "input", _bytes(self.input), "of one step"),
            ("", "output", _bytes(self.output), "of one step"),
        ]
        return render(("memory", "part", "bytes", ""), rows)

    def __str__(self) -> str:
        return self.table()


def _bytes(count: int) -> str:
    return f"{count:,}"


def compiler() -> tuple[str, str] | None:
    """A C compiler, ``$CC`` first, and the ``size`` that goes with it."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path and name:
            # A cross compiler is called arm-none-eabi-gcc, its companion arm-none-eabi-size.
            prefix = name[: -len("gcc")] if name.endswith("-gcc") else ""
            size = shutil.which(f"{prefix}size")
            return (path, size) if size else None
    return None


def measured(files: Mapping[str, str], constants: int) -> tuple[int, str] | None:
    """Bytes of code and records beside the constants, and the compiler; None without one."""
    tools = compiler()
    if tools is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        commands = [[tools[0], *FLAGS, f"{name}.c", "-o", f"{name}.o"] for name in OBJECTS]
        commands.append([tools[1], *(f"{name}.o" for name in OBJECTS)])
        told = ""
        for command in commands:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                return None
            told = done.stdout
    # Columns: text, data, bss, ...; constants that hold addresses count as text or data.
    stored = sum(int(word) for line in told.splitlines()[1:] for word in line.split()[:2])
    return stored - constants, f"{Path(tools[0]).name} {' '.join(FLAGS[1:2])}"
