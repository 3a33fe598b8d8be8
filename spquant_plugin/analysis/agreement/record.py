"""What another tool says of a network, beside what we say."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ...table import render
from ..units import table_markdown

HEADER = ("quantity", "ours", "theirs", "equal", "convention")


@dataclass(frozen=True)
class AgreementRow:
    """One quantity by one definition. ``why`` says why it cannot be compared; empty if it can.

    ``tolerance`` is 0 for whole numbers, which must be the same to the last unit.
    """

    quantity: str
    ours: float | None = None
    theirs: float | None = None
    convention: str = ""
    why: str = ""
    tolerance: float = 0.0

    @property
    def equal(self) -> bool | None:
        """Whether both numbers are the same; None where they cannot be compared."""
        if self.why or self.ours is None or self.theirs is None:
            return None
        return abs(self.ours - self.theirs) <= self.tolerance

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        answer = {True: "yes", False: "NO", None: "not comparable"}[self.equal]
        text = f"not comparable: {self.why}" if self.why else self.convention
        return (self.quantity, _number(self.ours), _number(self.theirs), answer, text)


@dataclass(frozen=True)
class Agreement:
    """What another tool says of a network, beside what we say.

    ``agreement[quantity]`` is a row; ``notes`` say what was left out of which number.
    """

    tool: str
    version: str
    model: str
    rows: tuple[AgreementRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether something could be compared, and all of that is equal."""
        answers = [row.equal for row in self.rows if row.equal is not None]
        return bool(answers) and all(answers)

    @property
    def verdict(self) -> str:
        """One line: the tool, its version, and yes or no."""
        compared = [row for row in self.rows if row.equal is not None]
        differing = [row.quantity for row in compared if not row.equal]
        if not compared:
            answer = "no, nothing could be compared"
        elif differing:
            answer = f"no, not on {', '.join(differing)}"
        elif len(compared) < len(self.rows):
            answer = f"yes, on {len(compared)} of {len(self.rows)} quantities"
        else:
            answer = "yes"
        return f"{self.tool} {self.version} agrees: {answer}"

    def __getitem__(self, quantity: str) -> AgreementRow:
        for row in self.rows:
            if row.quantity == quantity:
                return row
        listed = ", ".join(repr(row.quantity) for row in self.rows)
        raise KeyError(f"{quantity!r} is no quantity of {self.tool} here. There are: {listed}.")

    def table(self) -> str:
        """The verdict, all rows, and the notes, as text."""
        body = render(HEADER, [row.cells() for row in self.rows])
        return "\n".join([self.verdict, "", body, *(["", *self.notes] if self.notes else [])])

    __str__ = table

    def __repr__(self) -> str:
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the verdict, the notes, and ``rows``, a record for each quantity."""
        return {
            "tool": self.tool,
            "version": self.version,
            "model": self.model,
            "agrees": self.agrees,
            "verdict": self.verdict,
            "rows": [{**asdict(row), "equal": row.equal} for row in self.rows],
            "notes": list(self.notes),
        }

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_markdown(self) -> str:
        """The same as a Markdown table."""
        body = table_markdown(HEADER, [row.cells() for row in self.rows], (0, 3, 4))
        return "\n\n".join([f"**{self.verdict}**", body, *self.notes])


def _number(value: float | None) -> str:
    """Whole numbers to the last unit, shares to twelve digits."""
    if value is None:
        return ""
    return f"{int(value):,}" if value == int(value) else f"{value:,.12g}"
