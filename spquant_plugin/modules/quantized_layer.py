r"""What every quantised layer adds to its framework's layer.

A quantised layer computes :math:`y = \alpha_c\,\mathrm{conv}(x, k) + b` on integer levels ``k``:
only then is its output an exact function of an integer. The weight that is trained keeps its key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import UniformInput, _Weights, check_kind
from ..errors import ConversionError
from ..functional.weights import per_channel
from .input_quantizer import InputQuantizer
from .temporal_layer import TemporalLayer, is_float16
from .weight_quantizer import WeightQuantizer, build_weight_quantizer

Operation = Callable[[Tensor, Tensor], Tensor]


class QuantizedLayer(TemporalLayer):
    """Mixin: put before a framework's layer class, and call :meth:`quantize` once."""

    weight: Any  # the framework's own
    bias: Any
    weight_quantizer: WeightQuantizer | None
    input_quantizer: InputQuantizer | None
    plain_class: type[nn.Module] | None = None  # what it was made from, for the way back
    # A quantised norm takes scale and bias over: the layer then returns its sums as they are.
    hands_scale_on: bool = False
    handed_scale: Tensor | float | None = None  # of the last forward
    # The norm that goes into weight and bias before they are quantised. In a tuple: it is a module
    # of the network, not of the layer.
    folded_norm: tuple[Any, ...] = ()

    def __init__(
        self,
        *args: Any,
        weights: _Weights | None = None,
        input: UniformInput | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.quantize(weights, input)

    @classmethod
    def from_float(
        cls, layer: nn.Module, weights: _Weights | None, input: UniformInput | None = None
    ) -> QuantizedLayer:
        """Quantised twin of a layer: it shares the layer's parameters, mode and hooks."""
        twin = cls.__new__(cls)
        twin.__dict__.update({name: shallow(value) for name, value in layer.__dict__.items()})
        twin.plain_class = type(layer)
        twin.quantize(weights, input)
        return twin

    def quantize(self, weights: _Weights | None, input: UniformInput | None = None) -> None:
        """Install the quantisers and fit them to the present weight."""
        check_kind(self, "weights", weights, _Weights)
        check_kind(self, "input", input, UniformInput)
        rows = self.rows(self.weight)
        self.weight_quantizer = build_weight_quantizer(weights, rows.shape[0]) if weights else None
        self.input_quantizer = InputQuantizer(input) if input else None
        for part in (self.weight_quantizer, self.input_quantizer):
            if part is not None:
                part.to(self.weight.device).train(self.training)
        self.prepare_for_time()
        self.refit()

    def refit(self) -> None:
        """Fit the quantiser to the weight anew, as after loading a float checkpoint."""
        if self.weight_quantizer is not None:
            self.weight_quantizer.initialize(self.rows(self.folded_weight()[0]))

    # The layout of a weight: a transposed convolution keeps its output channels elsewhere.

    def rows(self, weight: Tensor) -> Tensor:
        """The weight with its output channels first."""
        return weight

    def unrows(self, rows: Tensor) -> Tensor:
        """Undo :meth:`rows`."""
        return rows

    def quantized_weight(self) -> tuple[Tensor, Tensor | None]:
        """Levels in the weight's own layout, and their scale per output channel."""
        return self._quantized(self.folded_weight()[0])

    def _quantized(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.weight_quantizer is None:
            return weight, None
        if self.is_temporal:
            raise ConversionError(
                f"{self._name()}: its weight changes with the time step, so there is none for no "
                "step. Use step_weights()."
            )
        levels, scale = self.weight_quantizer(self.rows(weight))
        return self.unrows(levels), None if scale is None else scale.flatten()

    def folded_weight(self) -> tuple[Tensor, Tensor | None]:
        """Float weight and bias of eval mode: where a norm is folded in, with its factors."""
        return self.folded_norm[0].folded() if self.folded_norm else (self.weight, self.bias)

    @torch.no_grad()
    def present_bias(self) -> Tensor | None:
        """The bias in eval mode, with that of a folded norm."""
        return self.folded_weight()[1]

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with, in the weight's own layout."""
        return self._scaled(*self.quantized_weight())

    def _scaled(self, levels: Tensor, scale: Tensor | None) -> Tensor:
        """Levels with their scale inside, which is not exact."""
        if scale is None:
            return levels
        rows = self.rows(levels)
        return self.unrows((rows * per_channel(scale, rows)).to(levels.dtype))

    def run(self, operation: Operation, x: Tensor, channel_dim: int) -> Tensor:
        """Apply ``operation(x, levels)``, then the scales, then the bias.

        Scales and bias are left to the norm behind a layer that hands them on.

        ``channel_dim`` counts from the end, so that a missing batch dimension does no harm.
        """
        if self.is_temporal:
            return self.run_in_time(operation, x, channel_dim)
        step = None
        if self.input_quantizer is not None:
            x, step = self.input_quantizer(x)
        if self.folded_norm and self.folded_norm[0].training:
            sums = operation(x if step is None else x * step, self.weight)
            weight, bias = self.folded_norm[0].folded(sums, channel_dim)
        else:
            weight, bias = self.folded_weight()
        levels, scale = self._quantized(weight)
        if is_float16(x):
            # Sums of whole numbers leave float16's range; there the scales go in first.
            levels, x = self._scaled(levels, scale), x if step is None else x * step
            scale = step = None
        y = operation(x, levels)
        if self.hands_scale_on:
            self.handed_scale = _product(scale, step)
            return y
        dtype = y.dtype
        trailing = (1,) * (-channel_dim - 1)
        factor = _product(scale, step)
        if isinstance(factor, Tensor):
            y = y * factor.view(-1, *trailing)
        elif step is not None:
            y = y * step
        if bias is not None:
            y = y + bias.view(-1, *trailing)
        return y.to(dtype)

    @torch.no_grad()
    def present_scale(self) -> Tensor | float:
        """What turns the layer's sums into its output in eval mode, but for the bias."""
        parts = [m for m in (self.weight_quantizer, self.input_quantizer) if m is not None]
        modes = [part.training for part in parts]
        for part in parts:
            part.eval()  # reading must not move alpha
        step = None if self.input_quantizer is None else self.input_quantizer.scale
        scale = _product(self.quantized_weight()[1], step)
        for part, training in zip(parts, modes, strict=True):
            part.train(training)
        return scale

    def __getstate__(self) -> dict[str, Any]:
        # A graph can neither be copied nor stored.
        state = self.__dict__.copy()
        if isinstance(self.handed_scale, Tensor):
            state["handed_scale"] = self.handed_scale.detach()
        return state


def _product(scale: Tensor | None, step: float | None) -> Tensor | float:
    if scale is None:
        return 1.0 if step is None else step
    return scale if step is None else scale * step


def shallow(value: Any) -> Any:
    """Containers are copied, so that the twin's own modules do not appear in the original."""
    return value.copy() if isinstance(value, dict) else value


class ConvMixin(QuantizedLayer):
    """Convolutions, by their one computing method."""

    changes_with_time = True

    def operation(self) -> tuple[Operation, int]:
        parent = super()._conv_forward  # type: ignore[misc]
        return lambda x, levels: parent(x, levels, None), 1 - self.weight.ndim

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        operation, channel_dim = self.operation()
        return self.run(operation, input, channel_dim)


class LinearMixin(QuantizedLayer):
    """Linear layers."""

    changes_with_time = True

    def operation(self) -> tuple[Operation, int]:
        return F.linear, -1

    def forward(self, input: Tensor) -> Tensor:
        return self.run(F.linear, input, -1)


class ConvTransposeMixin(QuantizedLayer):
    """Transposed convolutions, whose weight is ``[in, out / groups, ...]``."""

    groups: int

    def rows(self, weight: Tensor) -> Tensor:
        grouped = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return grouped.flatten(0, 1)

    def unrows(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def convolve_transposed(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """One transposed convolution of a batch."""
        own: Any = self
        dimensions = self.weight.ndim - 2
        padding = own._output_padding(
            input,
            output_size,
            own.stride,
            own.padding,
            own.kernel_size,
            dimensions,
            own.dilation,
        )
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]

        def operation(x: Tensor, levels: Tensor) -> Tensor:
            return convolve(
                x, levels, None, own.stride, own.padding, padding, own.groups, own.dilation
            )

        return self.run(operation, input, -1 - dimensions)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self.convolve_transposed(input, output_size)
