"""Every rule of a graph, so that no engine, file or export meets one that breaks one.

First what needs no number of a weight or table (:mod:`check_structure`), then the numbers
(:mod:`check_values`).
"""

from __future__ import annotations

from ..graph import Graph
from .structure import check_structure
from .values import check_values


def check_graph(graph: Graph) -> None:
    """Raise :class:`~spquant_plugin.errors.DeployError` at the first rule that a graph breaks.

    Names are unique, inputs come before what reads them, shapes follow from the operations, bounds
    from the weights, and every table is complete and leads to states that there are.
    """
    check_structure(graph)
    check_values(graph)
