"""Builds the C++ files beside this one for the processor at hand.

Built once for each set of constants (a rule, a precision), in about a second, and kept on disk. All
sizes, the number of time steps included, are arguments of a call, so that nothing is ever compiled
anew for a shape. A file's name ends in the checksum of its content: one that was cut short, by
power that failed or a full disk, is built again, since loading it may end the process.
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

BASE_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno")
# Best first: a compiler may lack OpenMP, or not know the machine it runs on.
FLAG_SETS = (
    (*BASE_FLAGS, "-fno-trapping-math", "-march=native", "-fopenmp"),
    (*BASE_FLAGS, "-fno-trapping-math", "-fopenmp"),
    BASE_FLAGS,
)


class NoCompiler(Exception):
    """There is no compiler on this machine, or it cannot build the kernel."""

    def __init__(self, reason: str, *, gpu: bool = False) -> None:
        super().__init__(reason)
        self.gpu = gpu


def cache_folder() -> Path:
    """Where kernels are kept: under ``$SPQUANT_CACHE``, else in the user's cache."""
    chosen = os.environ.get("SPQUANT_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without an entry, as in some containers
        raise NoCompiler(
            f"there is no folder to keep kernels in ({error}): set SPQUANT_CACHE to one"
        ) from error
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


@cache
def library(name: str, header: str) -> ctypes.CDLL:
    """The code of ``name.cpp`` behind these constants: from memory, from disk, or built now."""
    path, identity = compiler()
    text = Path(__file__).with_name(f"{name}.cpp").read_text()
    source = f"#include <stdint.h>\n{header}{text}"
    key = hashlib.sha256(f"{identity}{FLAG_SETS}{source}".encode()).hexdigest()[:24]
    folder, stem = cache_folder(), f"{name}-{key}"
    file = _find(folder, stem) or _build(path, source, folder, stem)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NoCompiler(f"{file} cannot be loaded ({error})") from error


def _find(folder: Path, stem: str) -> Path | None:
    """The stored file, if it is whole."""
    try:
        for file in sorted(folder.glob(f"{stem}-*.so")):
            if file.name == _name(stem, file.read_bytes()):
                return file
    except OSError:
        pass  # what cannot be read is built again
    return None


def _name(stem: str, content: bytes) -> str:
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:24]}.so"


def _build(path: str, source: str, folder: Path, stem: str) -> Path:
    """Compile under another name first, so that no other process loads half a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            code, built = Path(own) / "kernel.cpp", Path(own) / "kernel.so"
            code.write_text(source)
            for flags in FLAG_SETS:
                told = _compile(path, flags, code, built)
                if told.returncode == 0:
                    return _keep(built, folder, stem)
            raise NoCompiler(f"{path} cannot build the kernel: {told.stderr.strip()[-400:]}")
    except OSError as error:
        raise NoCompiler(f"the kernel cannot be stored in {folder} ({error})") from error


def _keep(built: Path, folder: Path, stem: str) -> Path:
    """Move a file to its name, once its content is on the disk."""
    with built.open("rb+") as file:
        target = folder / _name(stem, file.read())
        os.fsync(file.fileno())
    os.replace(built, target)
    return target


def _compile(
    path: str, flags: tuple[str, ...], code: Path, built: Path
) -> subprocess.CompletedProcess[str]:
    command = [path, *flags, str(code), "-o", str(built)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
