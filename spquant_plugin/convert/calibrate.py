"""Batch-norm statistics for a converted model, without training it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ConversionError, MissingHostError
from ..modules.quantized_norm import QuantizedBatchNorm
from .hosts import require_model, reset


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    progress: bool = False,
) -> nn.Module:
    """Measure batch-norm means and variances anew, as plain averages over ``batches``.

    Quantised currents are distributed unlike float ones; this lets the norms follow before any
    training. Each batch is a tensor, or a pair of which the first part is the input. ``forward``
    replaces the call ``model(input)`` where one batch needs a loop over time. Modes are restored
    and states are left at rest; weights do not change. Where a norm is folded into a layer, what
    the layer quantises changes with the statistics, so its quantiser is fitted anew, but for
    parameters of its own. ``progress`` shows a bar (with tqdm).

    >>> import torch, spquant_plugin as spq
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> _ = spq.calibrate(net, [torch.randn(64, 1) for _ in range(4)])
    >>> int(net[1].num_batches_tracked)
    4
    """
    norms = [m for m in require_model(model).modules() if isinstance(m, _NormBase)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        raise ConversionError(
            f"{type(model).__name__}: holds no batch norm with running statistics, so there is "
            "nothing to calibrate. Leave the call out."
        )
    if isinstance(batches, Tensor):
        raise ConversionError(
            f"batches = a tensor of shape {tuple(batches.shape)}: must be a sequence of batches. "
            "Pass [x], or a data loader."
        )
    call = forward or (lambda network, batch: network(_input_of(batch)))
    with _measuring(model, norms):
        seen = 0
        for seen, batch in enumerate(_with_bar(batches, progress), 1):
            if seen == 1:
                for norm in norms:
                    norm.reset_running_stats()
            reset(model)
            call(model, batch)
        if not seen:
            raise ConversionError("batches = empty: calibrate needs at least one batch. Pass one.")
        _check_finite(model, norms)
    _fit_folded(norms)
    return model


def _fit_folded(norms: list[_NormBase]) -> None:
    """Fit quantisers to weights whose folded norm has changed, but for what was learned."""
    for norm in norms:
        if not isinstance(norm, QuantizedBatchNorm) or norm.rule.mode != "fold":
            continue
        quantizer: Any = norm.layer.weight_quantizer
        if next(quantizer.parameters(), None) is None:
            norm.layer.refit()


def _check_finite(model: nn.Module, norms: list[_NormBase]) -> None:
    for path, module in model.named_modules():
        if module in norms and not all(bool(b.isfinite().all()) for b in module.buffers()):
            raise ConversionError(
                f"{path} ({type(module).__name__}): the batches gave NaN or infinite statistics: "
                "they must be finite. Look for such values in the data or the weights."
            )


@contextmanager
def _measuring(model: nn.Module, norms: list[_NormBase]) -> Iterator[None]:
    """Norms in training mode with plain averages, everything else in eval.

    Modes, momenta and rest are restored at the end, and after an error the statistics as well.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # torch's word for the plain average
    try:
        yield
    except BaseException:
        for norm, kept in zip(norms, before, strict=True):
            for name, buffer in kept.items():
                norm.get_buffer(name).copy_(buffer)
        raise
    finally:
        reset(model)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training


def _input_of(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(x, Tensor):
        return x
    raise ConversionError(
        f"batches gave {type(batch).__name__}: each batch must be a tensor, or a pair that starts "
        "with one. Pass forward=lambda model, batch: ... for anything else."
    )


def _with_bar(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return batches
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise MissingHostError(
            "calibrate(progress=True) needs tqdm, which is not installed. "
            "Run: python -m pip install tqdm"
        ) from None

    return tqdm(batches, desc="calibrate", unit="batch")
