"""Builds ``membrane.cpp`` for a rule and this processor.

Built once for each rule and precision, in a second or two, and kept on disk. All sizes, the number
of time steps included, are arguments of a call, so that nothing is ever compiled anew for a shape.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from .rule import GRADIENTS, RESETS, SHAPES, SLOPES, Rule
from .sharing import growth, window_fraction

SOURCE = Path(__file__).with_name("membrane.cpp")
BASE_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno")
# Best first: a compiler may lack OpenMP, or not know the machine it runs on.
FLAG_SETS = (
    (*BASE_FLAGS, "-fno-trapping-math", "-march=native", "-fopenmp"),
    (*BASE_FLAGS, "-fno-trapping-math", "-fopenmp"),
    BASE_FLAGS,
)


class NoCompiler(Exception):
    """There is no compiler on this machine, or it cannot build the kernel."""


def cache_folder() -> Path:
    """Where kernels are kept: under ``$SPQUANT_CACHE``, else in the user's cache."""
    chosen = os.environ.get("SPQUANT_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "spquant_plugin" / "kernels"


@cache
def compiler() -> tuple[str, str]:
    """Path of a C++ compiler and what it says of itself and of this processor."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if told.returncode == 0:
                return path, f"{told.stdout}{platform.machine()}{_processor()}"
    raise NoCompiler("no C++ compiler was found: set CXX, or install g++ or clang++")


def _processor() -> str:
    """What tells processors apart, since a kernel is built for the one at hand."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def constants(rule: Rule, quantized: bool, dtype: torch.dtype) -> str:
    """The rule as C++ constants."""
    single = dtype == torch.float32
    factors, near = growth(rule, 4 if single else 8)
    fraction = window_fraction(rule.slope, rule.sharpness, 4 if single else 8)
    up, down = fraction or ((1.0,), (1.0,))
    length = max(len(up), len(down))
    up, down = ((*side, *[0.0] * (length - len(side))) for side in (up, down))
    cuts = rule.cuts
    lines = [
        f"using real = {'float' if single else 'double'};",
        f"#define bits {'int32_t' if single else 'int64_t'}",
        _enumerate("", RESETS),
        _enumerate("SLOPE_", SLOPES),
        _enumerate("GRADIENT_", GRADIENTS),
        _enumerate("", SHAPES),
        f"constexpr int RESET = {rule.reset.upper()}, SLOPE = SLOPE_{rule.slope.upper()};",
        f"constexpr int GRADIENT = GRADIENT_{rule.threshold_gradient.upper()};",
        f"constexpr int SHAPE = {rule.shape.upper()}, NEAR = {near};",
        f"constexpr bool STRICT = {_bool(rule.strict)}, DETACH = {_bool(rule.detach_reset)};",
        f"constexpr bool QUANTIZED = {_bool(quantized)};",
        f"constexpr int LOWEST = {rule.lowest}, HIGHEST = {rule.highest};",
        f"constexpr bool MIDDLE_CUTS = {_bool(not rule.cut_points)};",
        f"constexpr double TEMPERATURE = {rule.temperature!r}, SHARPNESS = {rule.sharpness!r};",
        _array("CUTS", cuts),
        _array("GROWTH", factors),
        f"constexpr int WINDOW_TERMS = {len(up) - 1 if fraction else 0};",
        _array("WINDOW_UP", tuple(up)),
        _array("WINDOW_DOWN", tuple(down)),
    ]
    return "\n".join(lines) + "\n"


def _enumerate(prefix: str, names: tuple[str, ...]) -> str:
    return f"enum {{ {', '.join(prefix + name.upper() for name in names)} }};"


def _array(name: str, values: tuple[float, ...]) -> str:
    return f"constexpr double {name}[] = {{{', '.join(repr(float(value)) for value in values)}}};"


def _bool(value: bool) -> str:
    return "true" if value else "false"


@cache
def library(rule: Rule, quantized: bool, dtype: torch.dtype) -> ctypes.CDLL:
    """The kernel of a rule, from memory, from disk, or built now."""
    path, identity = compiler()
    source = f"#include <stdint.h>\n{constants(rule, quantized, dtype)}{SOURCE.read_text()}"
    key = hashlib.sha256(f"{identity}{FLAG_SETS}{source}".encode()).hexdigest()[:24]
    file = cache_folder() / f"membrane-{key}.so"
    if not file.exists():
        _build(path, source, file)
    try:
        loaded = ctypes.CDLL(str(file))
    except OSError as error:
        raise NoCompiler(f"{file} cannot be loaded ({error})") from error
    loaded.forward.restype = loaded.backward.restype = None
    return loaded


def _build(path: str, source: str, target: Path) -> None:
    """Compile under another name first, so that no other process loads half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            code, built = Path(folder) / "membrane.cpp", Path(folder) / "membrane.so"
            code.write_text(source)
            for flags in FLAG_SETS:
                told = _compile(path, flags, code, built)
                if told.returncode == 0:
                    os.replace(built, target)
                    return
            raise NoCompiler(f"{path} cannot build the kernel: {told.stderr.strip()[-400:]}")
    except OSError as error:
        raise NoCompiler(f"the kernel cannot be stored in {target.parent} ({error})") from error


def _compile(
    path: str, flags: tuple[str, ...], code: Path, built: Path
) -> subprocess.CompletedProcess[str]:
    command = [path, *flags, str(code), "-o", str(built)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
