"""The record of normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Record, choice, whole


@dataclass(frozen=True)
class QuantizedNorm(Record):
    """Batch norms whose factors are dyadic numbers, in training and in eval.

    Factor and offset of each channel are whole numbers over one power of two of the layer, so an
    integer network follows the norm exactly. The factor has ``bits`` (2 to 8) bits with its sign,
    the offset as many as it needs.

    >>> QuantizedNorm()
    QuantizedNorm(mode='dyadic', bits=8)
    """

    mode: str = "dyadic"
    bits: int = 8

    def __post_init__(self) -> None:
        choice(self, "mode", ("dyadic",))
        whole(self, "bits", 2, 8)
