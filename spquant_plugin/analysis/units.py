"""Numbers as people read them, and tables as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def bytes_text(count: float) -> str:
    """Bytes in the unit that keeps them readable; units are powers of 1000.

    >>> bytes_text(0), bytes_text(96), bytes_text(3_686_400)
    ('0 B', '96 B', '3.686 MB')
    """
    size, unit = scaled(count)
    return f"{count / size:.4g} {unit}"


def scaled(largest: float) -> tuple[float, str]:
    """Size and name of the unit for numbers up to ``largest``."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # From where four digits would be rounded up to the next unit.
        if largest >= 0.99995 * size:
            return size, unit
    return 1.0, "B"


def joules_text(picojoules: float) -> str:
    """An energy in the unit that keeps it readable.

    >>> joules_text(0), joules_text(12.5), joules_text(3_686_400)
    ('0 pJ', '12.5 pJ', '3.686 µJ')
    """
    size, unit = scaled_joules(picojoules)
    return f"{picojoules / size:.4g} {unit}"


def scaled_joules(largest: float) -> tuple[float, str]:
    """Size in pJ and name of the unit for energies up to ``largest`` pJ."""
    for size, unit in ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ")):
        if largest >= 0.99995 * size:
            return size, unit
    return 1.0, "pJ"


def bits_text(stored: int, information: float | None = None) -> str:
    """Stored bits, with the bits of information where those are fewer; nothing for none.

    >>> bits_text(2, 1.584962500721156), bits_text(8, 8.0), bits_text(0)
    ('2 (1.58)', '8', '')
    """
    if not stored:
        return ""
    if information is None or information == stored:
        return str(stored)
    return f"{stored} ({information:.3g})"


def ratio_text(ratio: float | None) -> str:
    """How many times smaller, or nothing where that has no meaning.

    >>> ratio_text(12.9512), ratio_text(None)
    ('12.95x', '')
    """
    return "" if ratio is None else f"{ratio:.4g}x"


def table_markdown(
    header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: Collection[int]
) -> str:
    """A Markdown table; columns of numbers are set to the right.

    >>> print(table_markdown(("path", "bits"), [("a|b", "2")], text_columns=(0,)))
    | path | bits |
    | --- | ---: |
    | a\\|b | 2 |
    """
    rule = ["---" if column in text_columns else "---:" for column in range(len(header))]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (header, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], rule, *escaped[1:]))


def count_text(count: float) -> str:
    """A count in the power of 1000 that keeps it readable.

    >>> count_text(0), count_text(1024), count_text(2_359_296), count_text(0.5)
    ('0', '1.024 k', '2.359 M', '0.5')
    """
    size, unit = scaled(count)
    return f"{count / size:.4g} {unit[:-1]}".strip()


def share_text(share: float | None) -> str:
    """A share of 1, or nothing where there is none.

    >>> share_text(0.08), share_text(0.0), share_text(None)
    ('0.0800', '0.0000', '')
    """
    return "" if share is None else f"{share:.4f}"
