"""The record of normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Record, choice, fail, whole

DEFAULT_BITS = 8


@dataclass(frozen=True)
class QuantizedNorm(Record):
    """Batch norms that leave nothing but whole numbers, in training and in eval.

    ``mode="dyadic"``: factor and offset of each channel are whole numbers over one power of two of
    the layer, so an integer network follows the norm exactly. The factor has ``bits`` (2 to 8) bits
    with its sign, the offset as many as it needs. ``mode="shift"``: the same, but each factor is
    0 or plus or minus a power of two. ``mode="fold"``: the factor goes into the weights before they
    are quantised, and the offset into the bias; it takes no ``bits``, the weights have theirs.

    >>> QuantizedNorm()
    QuantizedNorm(mode='dyadic', bits=8)
    >>> QuantizedNorm("fold")
    QuantizedNorm(mode='fold', bits=None)
    """

    mode: str = "dyadic"
    bits: int | None = None

    def __post_init__(self) -> None:
        choice(self, "mode", ("dyadic", "shift", "fold"))
        if self.mode == "fold":
            if self.bits is not None:
                rule = "must be None in mode 'fold', which keeps no factors. Leave bits out."
                raise fail(self, "bits", self.bits, rule)
            return
        if self.bits is None:
            object.__setattr__(self, "bits", DEFAULT_BITS)
        whole(self, "bits", 2, 8)
