"""Writing an integer network as portable C99: no fractions, no heap, nothing but two headers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import ExportError
from ..graph import Graph, size
from .data import TYPES
from .files import MARK, header, input_storage, network, numbers_of
from .sample import sample_files
from .size import CSize, measured
from .source import write_source
from .stages import check

if TYPE_CHECKING:
    from ..network import IntegerNetwork

TEMPLATES = Path(__file__).with_name("templates")
MARKED = "spq_network.h"
SIZE = "SIZE.txt"


def export_c(net: IntegerNetwork, folder: str | os.PathLike[str]) -> CSize:
    """Write an integer network as C99 into a new or empty folder, or over an earlier export.

    ``spq_network.h`` declares ``spq_reset`` and ``spq_step``; firmware needs that and
    ``spq_network.c``, ``spq_kernels.h`` and ``spq_kernels.c``. ``make test`` in the folder replays
    the network's stored sample and compares every spike, membrane and output.

    :returns: the bytes of flash and RAM, which ``SIZE.txt`` says too. The code is measured where a
        compiler is installed, ``$CC`` or ``cc``.
    :raises ExportError: if this is not an integer network, C code cannot hold it, or the folder
        holds other files.
    """
    graph, sample = getattr(net, "graph", None), getattr(net, "sample", None)
    if not isinstance(graph, Graph) or not isinstance(sample, Tensor):
        raise ExportError(
            f"received {type(net).__name__}: export_c writes an IntegerNetwork. Make one with "
            "spq.to_integer(model, sample)."
        )
    return write_c(net.whole_graph(), sample, folder)


def write_c(
    graph: Graph, sample: Tensor, folder: str | os.PathLike[str], measure: bool = True
) -> CSize:
    """:func:`export_c` of a graph and whole numbers ``sample [T, N, *shape]``."""
    check(graph)
    if sample.shape[2:] != graph.input.shape or 0 in sample.shape[:2]:
        wanted = ", ".join(map(str, graph.input.shape))
        raise ExportError(
            f"the stored sample is {tuple(sample.shape)}: must be [T, N, {wanted}], so that the C "
            "code can be compared on it. Make the network with spq.to_integer(model, sample)."
        )
    target = _usable(Path(folder))
    source = write_source(graph)
    files = {path.name: path.read_text() for path in sorted(TEMPLATES.iterdir())}
    files |= {"spq_network.h": header(graph), "spq_network.c": network(source)}
    files |= sample_files(graph, sample)
    weights, tables = source.constants.bytes["weights"], source.constants.bytes["tables"]
    code = measured(files, weights + tables) if measure else None
    report = CSize(
        weights=weights,
        tables=tables,
        states=source.memory.state_bytes,
        buffers=source.memory.bytes + 4 * (source.remembers_begin + bool(graph.later)),
        input=TYPES[input_storage(graph)][1] * size(graph.input.shape),
        output=4 * sum(_words(graph)),
        code=code[0] if code else None,
        compiler=code[1] if code else None,
    )
    files[SIZE] = f"{report.table()}\n"
    _write(target, files)
    return report


def _words(graph: Graph) -> list[int]:
    gates = [graph[output.gate].shape[0] for output in graph.outputs if output.gate is not None]
    return [numbers_of(graph, output) for output in graph.outputs] + gates


def _usable(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file: export_c writes a folder. Name another one.")
    if folder.is_dir() and any(folder.iterdir()):
        marked = folder / MARKED
        if not marked.is_file() or not marked.read_text(errors="replace").startswith(MARK):
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
            raise ExportError(
                f"{folder} holds other files ({found}): export_c writes into a new or empty "
                "folder, or over an earlier export. Name another one."
            )
    return folder


def _write(folder: Path, files: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({error}). Name a folder that you may write to."
        ) from error
