"""The memory tables of SpQuant-SNN: every printed row beside what is counted in the network.

    python examples/paper_tables.py                                     # print the tables
    python examples/paper_tables.py --write docs/paper-tables.rst       # write the page

Each network is made, converted where the row is a quantised one, and measured by ``spq.analyze`` on
one frame; nothing is trained or downloaded. It takes less than a minute on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from paper_tables_networks import Counted, count_all
from paper_tables_published import accuracy_cells, checks, energies, ratios
from paper_tables_rows import rows_that_differ, rows_that_follow

from spquant_plugin.analysis.energy_tables import TYPES
from spquant_plugin.table import render

COMMAND = "python examples/paper_tables.py --write docs/paper-tables.rst"
ROWS = ("Row", "Printed (MB)", "Counted (MB)", "Deviation", "Verdict")
INTRODUCTION = f"""The tables of a paper
=====================

`SpQuant-SNN <https://doi.org/10.3389/fnins.2024.1440000>`_ (Hasssan, Meng, Anupreetham and Seo,
2024) prints the memory of its networks. This page sets every such figure beside what
:func:`spquant_plugin.analyze` counts in the network itself: in full precision, or converted with
the bits of the row. No counted figure is typed in, and none was tuned to the printed one.

The page is written by a script, which takes less than a minute:

.. code-block:: bash

   {COMMAND}

How the figures are obtained
----------------------------

- The networks are those of :doc:`reference/models`. Each is measured on one frame: what weights,
  membranes and spikes take depends neither on the data nor on the number of steps.
- MB are 10\\ :sup:`6` bytes, and figures are per sample. The mode is ``memory="paper_tables"``: a
  total is weights + membranes + a third term for the spikes, which take 32 bits in full precision
  and 8 bits in a quantised network.
- A ternary membrane is stored in 2 bits; its information is 1.58 bits. "By Eq. 28" means 1.58 bits
  for a membrane and 1 bit for a spike, as the paper writes it.
- In a quantised row all layers have the bits of the row, the first and the last one too (by default
  :func:`spquant_plugin.convert` keeps those at 8 bits). MINT's rows have weights and membranes of
  equally many bits: :class:`spquant_plugin.UniformWeights` and
  :class:`spquant_plugin.UniformMembrane`.
- Where the paper counts a part of a network only, the last column says which rows of the report
  were summed.
- Printed values are cut or rounded, so a row counts as reproduced up to 0.01 MB, a total up to
  0.02 MB.
"""
NETWORKS = """Networks
--------

The counts that the rows below come from. Neurons behind a plus are not in the paper's counts: those
behind the hidden linear layer and, in ResNet-34, those of the stem. Spikformer-4-384 is here only
to explain a row of Spikformer-4-256; it is the same network at ``width=1.5``.
"""
CHECKS = """Some of them are known by hand, from the widths of the layers:
"""
FOLLOW = """Rows that follow from the networks
----------------------------------
"""
DIFFER = """Rows that do not follow from anything printed
---------------------------------------------

Ours stand beside them as they are, with what can be said about the printed figure.
"""
RATIOS = """Ratios
------

How many times less memory the quantised networks take: as the text prints it, from the printed
totals, and from ours, with the same layers in both totals.
"""
TABLE_10 = """Energy
------

The totals of Table 10 are **not reproducible**. Beside each stands Eq. 31 as the paper prints it,
in µJ, with the energies at 7 nm that it refers to, one column for each type of operands. As in the
paper 35 % of the pixels are masked, and as many channels are closed as Eq. 30 needs for the printed
reduction of FLOPs. No type gives the four figures, and none at 45 nm does.

Eq. 31 counts neither input channels nor memory traffic. What a network takes on your data is in
``spq.analyze(model, data).energy``.
"""
ACCURACY = """Published accuracy
------------------

What the paper reports, in percent; none of it was measured here. In brackets is the difference from
the full precision of the same line. What conversion costs on tasks that this package can run is in
:doc:`results/index`.
"""


def list_table(header: Sequence[str], lines: Sequence[Sequence[str]], widths: str = "auto") -> str:
    """A table in reStructuredText."""
    text = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for first, *others in (header, *lines):
        text += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(text) + "\n"


def network_cells(nets: Mapping[str, Counted]) -> list[tuple[str, ...]]:
    """Every network in full precision, since those quantised hold as many weights and neurons."""
    cells = []
    for name, net in nets.items():
        if net.case.config is None:
            more = f" + {net.other_neurons:,}" if net.other_neurons else ""
            counts = (net.conv_weights, net.all_weights, net.parameters)
            numbers = (f"{count:,}" for count in counts)
            cells.append((name, net.case.input_text, *numbers, f"{net.neurons:,}{more}"))
    return cells


Section = tuple[str, tuple[str, ...], list[tuple[str, ...]], str]


def sections(nets: Mapping[str, Counted]) -> list[Section]:
    """What is said before a table, its header, its lines, and the widths of its columns."""
    counts = ("Network", "Input", "Convolution weights", "Weights", "Parameters", "Neurons")
    return [
        (NETWORKS, counts, network_cells(nets), "auto"),
        (
            CHECKS,
            ("Network", "Figure", "By hand", "Counted", "Deviation", "Verdict"),
            [check.cells() for check in checks(nets)],
            "auto",
        ),
        (
            FOLLOW,
            (*ROWS, "What was summed"),
            [row.cells() for row in rows_that_follow(nets)],
            "28 9 9 10 14 30",
        ),
        (
            DIFFER,
            (*ROWS, "What can be said"),
            [row.cells() for row in rows_that_differ(nets)],
            "24 9 9 10 13 35",
        ),
        (
            RATIOS,
            ("Network", "Printed", "Printed totals", "Recomputed", "Verdict", "Ours"),
            [ratio.cells() for ratio in ratios(nets)],
            "auto",
        ),
        (
            TABLE_10,
            ("Row", "Printed (µJ)", "Fewer FLOPs", "Channels closed", *TYPES),
            [energy.cells() for energy in energies(nets)],
            "auto",
        ),
        (
            ACCURACY,
            ("Data and network", "Full precision", "Quant", "SpQuant", "Fewer FLOPs"),
            accuracy_cells(),
            "auto",
        ),
    ]


def page(nets: Mapping[str, Counted]) -> str:
    """The page of the documentation."""
    parts = [INTRODUCTION]
    for text, header, lines, widths in sections(nets):
        parts += [text, list_table(header, lines, widths)]
    return "\n".join(parts)


def tables(nets: Mapping[str, Counted]) -> str:
    """The same as plain text."""
    parts = []
    for text, header, lines, _ in sections(nets):
        parts += [text.splitlines()[0], render(header, lines)]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page, print nothing")
    options = parser.parse_args(arguments)
    nets = count_all()
    if options.write is None:
        print(tables(nets))
    else:
        options.write.write_text(page(nets), encoding="utf-8")


if __name__ == "__main__":
    main()
