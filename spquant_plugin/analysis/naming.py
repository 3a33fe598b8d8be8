"""What reports are called where they stand side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..errors import AnalysisError


class Named(Protocol):
    """A report knows the class of the model that it is about."""

    @property
    def model(self) -> str: ...


def names_of(
    reports: Sequence[Named], names: Iterable[str] | None, kind: type, maker: str
) -> tuple[str, ...]:
    """The names given, or the models' classes, numbered where several models share one.

    ``kind`` is what each report must be, ``maker`` says how to make one.
    """
    if not reports:
        raise AnalysisError("compare() received no report: it needs at least one. Pass reports.")
    for position, report in enumerate(reports, 1):
        if not isinstance(report, kind):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise AnalysisError(
                f"compare: argument {position} is {type(report).__name__}: each must be {article} "
                f"{kind.__name__}. Pass what {maker} returns."
            )
    if names is None:
        return _class_names(reports)
    if isinstance(names, Iterable) and not isinstance(names, str):
        names = list(names)
    if not isinstance(names, list) or len(names) != len(reports):
        count = f"{len(names)} names" if isinstance(names, list) else type(names).__name__
        raise AnalysisError(
            f"names = {names!r}: {count} for {len(reports)} reports: there must be a list with "
            "one name for each. Leave names out for the models' class names."
        )
    return tuple(map(str, names))


def _class_names(reports: Sequence[Named]) -> tuple[str, ...]:
    total, seen, names = Counter(report.model for report in reports), Counter[str](), []
    for report in reports:
        seen[report.model] += 1
        number = f" {seen[report.model]}" if total[report.model] > 1 else ""
        names.append(report.model + number)
    return tuple(names)
