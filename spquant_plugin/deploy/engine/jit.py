"""How kernels are compiled: by numba, once for each kind of argument, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...kernels.build import NoCompiler, cache_folder
from ...modules.installed import require

require("numba", extra="deploy", at_least=0)


def inner(function: Callable[..., Any]) -> Any:
    """A part of a kernel: compiled into whatever calls it."""
    import numba

    return numba.njit(nogil=True, error_model="numpy")(function)


def kernel(function: Callable[..., Any]) -> Any:
    """A kernel whose ``prange`` loops run on several threads."""
    import numba

    usual = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = str(_folder()) or usual
        return numba.njit(nogil=True, error_model="numpy", parallel=True, cache=True)(function)
    except (NoCompiler, RuntimeError):  # nowhere to keep it: compile in each process
        return numba.njit(nogil=True, error_model="numpy", parallel=True)(function)
    finally:
        numba.config.CACHE_DIR = usual


def _folder() -> Path:
    """A folder for each state of all files, of which numba compares only the outermost."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return cache_folder() / f"engine-{digest.hexdigest()[:24]}"


def use_threads(count: int) -> int:
    """Let kernels use so many threads, as far as numba has them; returns how many.

    Both share one OpenMP, and numba's first call there raises torch's number: it is put back.
    """
    import numba
    import torch

    before = torch.get_num_threads()
    threads = max(1, min(count, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(threads)
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return int(threads)
