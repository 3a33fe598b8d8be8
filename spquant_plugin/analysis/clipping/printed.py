"""What the tables of accuracies share: text, Markdown, records."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any, ClassVar

from ...table import render
from ..units import table_markdown


class Printed:
    """Base of dataclasses that are a title above lines of cells."""

    header: ClassVar[tuple[str, ...]]
    text_columns: ClassVar[Collection[int]] = (0,)

    @property
    def title(self) -> str:
        """What stands above the table."""
        raise NotImplementedError

    def lines(self) -> list[tuple[str, ...]]:
        """All rows as text."""
        raise NotImplementedError

    def table(self) -> str:
        """The rows as text."""
        return "\n".join([self.title, "", render(self.header, self.lines())])

    def __str__(self) -> str:
        return self.table()

    def to_markdown(self) -> str:
        """The same as a Markdown table."""
        body = table_markdown(self.header, self.lines(), self.text_columns)
        return f"**{self.title}**\n\n{body}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        whole: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return whole | {"rows": list(whole["rows"])}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)
