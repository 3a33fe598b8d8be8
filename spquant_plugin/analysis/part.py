"""What every part of a report is: rows by path, and the same as text and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ..table import no_such_row, render
from .units import table_markdown


class Row(Protocol):
    """One line of a part, named by the path of its module."""

    @property
    def path(self) -> str: ...


R = TypeVar("R", bound=Row)


class ReportPart(Generic[R]):
    """A part holds ``layers``, and says what stands above, in and below its table."""

    layers: tuple[R, ...]
    header: tuple[str, ...]  # the first two columns and the last are text

    @property
    def title(self) -> str:
        """What stands above the table."""
        raise NotImplementedError

    @property
    def footnotes(self) -> tuple[str, ...]:
        """What stands below the table."""
        raise NotImplementedError

    def lines(self) -> list[tuple[str, ...]]:
        """All rows and their sums or means, as text."""
        raise NotImplementedError

    def __getitem__(self, path: str) -> R:
        for row in self.layers:
            if row.path == path:
                return row
        raise KeyError(no_such_row(path, [row.path for row in self.layers]))

    def __iter__(self) -> Iterator[R]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def table(self) -> str:
        """The part as text; paths are never shortened."""
        return "\n".join([self.title, "", render(self.header, self.lines()), "", *self.footnotes])

    def __str__(self) -> str:
        return self.table()

    def to_markdown(self) -> str:
        """The same as a Markdown table."""
        text_columns = (0, 1, len(self.header) - 1)
        body = table_markdown(self.header, self.lines(), text_columns)
        return "\n\n".join([f"**{self.title}**", body, *self.footnotes])
