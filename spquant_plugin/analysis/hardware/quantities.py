"""Physical quantities as people read them."""

from __future__ import annotations

PICOJOULES = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
NANOSECONDS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
MICROMETRES = ((1e6, "mm²"), (1.0, "µm²"))
EDAPS = (
    *((1.0, "J·s·mm²"), (1e-3, "mJ·s·mm²"), (1e-6, "µJ·s·mm²")),
    *((1e-9, "nJ·s·mm²"), (1e-12, "pJ·s·mm²")),
)

Units = tuple[tuple[float, str], ...]


def unit_of(largest: float, units: Units) -> tuple[float, str]:
    """Size and name of the unit for numbers up to ``largest``; the smallest for 0."""
    # From where four digits would be rounded up to the next unit.
    return next((unit for unit in units if largest >= 0.99995 * unit[0]), units[-1])


def text(value: float, units: Units) -> str:
    """A number in the unit that keeps it readable.

    >>> text(15_906_934.0, PICOJOULES), text(0.0, NANOSECONDS), text(948_400.4, MICROMETRES)
    ('15.91 µJ', '0 ns', '948,400 µm²')
    """
    size, name = unit_of(value, units)
    return f"{number(value / size)} {name}"


def number(value: float | None) -> str:
    """Four digits, or nothing where there is no value.

    >>> number(123456.0), number(0.0123456), number(None)
    ('123,456', '0.01235', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
