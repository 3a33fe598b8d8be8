"""Weight quantisers compiled for this processor and in plain torch: the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import spquant_plugin as spq
from spquant_plugin.functional import weights as fw
from spquant_plugin.kernels.weights import Grid, quantize_rows, scale_errors
from spquant_plugin.modules.weight_quantizer import build_weight_quantizer

GRIDS = {
    "2 bits": Grid.dyadic(fw.tabulate(fw.power_of_two_levels(2))),
    "4 bits": Grid.dyadic(fw.tabulate(fw.power_of_two_levels(4))),
    "sums, 5 bits": Grid.dyadic(fw.tabulate(fw.additive_power_of_two_levels(5))),
    "sums, 8 bits": Grid.dyadic(fw.tabulate(fw.additive_power_of_two_levels(8))),
    "whole, 3 bits": Grid.whole(3),
    "whole, 8 bits": Grid.whole(8),
}
RULES = {
    "2 bits": spq.PowerOfTwoWeights(2),
    "4 bits, layer": spq.PowerOfTwoWeights(4, per_channel=False),
    "sums, 6 bits": spq.AdditivePowerOfTwoWeights(6),
    "uniform, 4 bits": spq.UniformWeights(4),
    "uniform, 8 bits": spq.UniformWeights(8),
}
SHAPES = [(3, 5), (4, 3, 3, 3), (1, 20000), (17, 1), (2, 8192)]
DTYPES = [torch.float32, torch.float64]


def awkward(shape, dtype):
    """Weights among which some lie on boundaries, on levels, at zero and far out."""
    weight = torch.randn(shape, dtype=dtype) * 0.2
    flat = weight.view(-1)
    special = torch.tensor([0.0, -0.0, 0.25, -0.125, 0.75, 0.375, 50.0, -50.0, 1e-30], dtype=dtype)
    flat[: len(special)] = special[: flat.numel()]
    return weight


def scales_for(grid, shape, dtype):
    count = torch.arange(shape[0]) % 3
    scale = 2.0 ** -(count.to(dtype) + 1)
    return scale if grid.table is not None else scale * 0.13


def slow_levels(rows, scales, grid):
    """One weight after the other, by searching among all levels."""
    if grid.table is not None:
        values = sorted({value / grid.resolution for value in grid.table.tolist()})
    out = torch.empty_like(rows)
    for row, (weights, scale) in enumerate(zip(rows.flatten(1), scales.tolist(), strict=True)):
        for column, weight in enumerate(weights.tolist()):
            if grid.table is None:
                level = max(-grid.top, min(grid.top, round(weight / scale)))
            else:
                size = abs(weight) / scale
                best = min(values, key=lambda value: (abs(value - size), value))
                level = best * scale * (1 if weight > 0 else -1)
            out.view(rows.shape[0], -1)[row, column] = level
    return out


@pytest.mark.parametrize("provider", ["eager", "compiled"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_levels_and_errors_are_those_of_a_slow_search(grid, provider):
    rows = awkward((3, 4, 5), torch.float64)
    scales = scales_for(grid, rows.shape, rows.dtype)
    with spq.kernels.use(provider):
        levels = quantize_rows(rows, scales, grid)
        errors = scale_errors(rows, torch.stack([scales, scales * 2], 1), grid)
    want = slow_levels(rows, scales, grid)
    assert torch.equal(levels, want)
    assert want.unique().numel() > 2
    twice = slow_levels(rows, scales * 2, grid)
    for column, (found, scale) in enumerate(((want, scales), (twice, scales * 2))):
        wide = scale.view(-1, 1, 1)
        off = (found - rows) / wide if grid.table is not None else found * wide - rows
        torch.testing.assert_close(
            errors[:, column], off.square().flatten(1).sum(1), rtol=1e-12, atol=1e-14
        )
    energy = rows.square().flatten(1).sum(1)
    torch.testing.assert_close(errors[:, -1], energy, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_compiled_and_plain_agree(grid, shape, dtype):
    rows = awkward(shape, dtype)
    scales, grad = scales_for(grid, shape, dtype), torch.randn(shape, dtype=dtype)
    found = {}
    for provider in ("eager", "compiled"):
        with spq.kernels.use(provider):
            weight = rows.clone().requires_grad_()
            levels = quantize_rows(weight, scales, grid)
            (passed,) = torch.autograd.grad(levels, weight, grad)
            errors = scale_errors(rows, scales.unsqueeze(1), grid)
        found[provider] = levels.detach(), passed, errors
    for name in range(2):
        assert torch.equal(found["eager"][name], found["compiled"][name])
    torch.testing.assert_close(found["eager"][2], found["compiled"][2], rtol=1e-12, atol=0)
    inside = rows.abs() <= fw.per_channel(scales, rows) * grid.reach
    expected = grad if grid.table is not None else grad / fw.per_channel(scales, rows)
    torch.testing.assert_close(found["eager"][1], expected * inside)
    if rows.numel() > 20:
        assert 0 < inside.double().mean() < 1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_training_takes_the_same_course_with_either(rule):
    weight = torch.randn(6, 4, 3, 3) * 0.1
    course = {}
    for provider in ("eager", "compiled"):
        quantizer = build_weight_quantizer(rule, 6).train()
        quantizer.initialize(weight)
        rows, seen = nn.Parameter(weight.clone()), []
        optimizer = torch.optim.SGD([rows], 0.5)
        with spq.kernels.use(provider):
            for _ in range(12):
                levels, scale = quantizer(rows)
                value = levels if scale is None else levels * scale
                optimizer.zero_grad()
                (value - 0.7).square().mean().mul(20).backward()
                optimizer.step()
                seen.append(levels.detach().clone())
        course[provider] = torch.stack(seen), copy.deepcopy(quantizer.state_dict())
    assert torch.equal(course["eager"][0], course["compiled"][0])
    for name, value in course["eager"][1].items():
        torch.testing.assert_close(value, course["compiled"][1][name], rtol=1e-6, atol=0)
    assert not torch.equal(course["eager"][0][0], course["eager"][0][-1])


@pytest.mark.parametrize("provider", ["eager", "compiled"])
def test_an_odd_layout_and_one_scale_for_all(provider):
    rows = awkward((6, 4, 3), torch.float32)
    odd = rows.transpose(0, 2).contiguous().transpose(0, 2)
    assert not odd.is_contiguous()
    with spq.kernels.use(provider):
        got = quantize_rows(odd, torch.tensor([0.25]), GRIDS["2 bits"])
        want = quantize_rows(rows, torch.full((6,), 0.25), GRIDS["2 bits"])
    assert torch.equal(got, want)
    assert got.is_contiguous()


@pytest.mark.parametrize("provider", ["eager", "compiled"])
def test_weights_that_became_nan_do_no_harm(provider):
    rows = torch.tensor([[float("nan"), 0.5, float("inf"), -float("inf")]])
    with spq.kernels.use(provider):
        dyadic = quantize_rows(rows, torch.tensor([0.5]), GRIDS["sums, 5 bits"])
        whole = quantize_rows(rows, torch.tensor([0.5]), GRIDS["whole, 3 bits"])
    assert dyadic.tolist() == [[0.0, 0.5, 0.75, -0.75]]
    assert whole[0, 0].isnan()
    assert whole[0, 1:].tolist() == [1.0, 3.0, -3.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
@pytest.mark.parametrize("provider", ["eager", "compiled"])
def test_the_operators_keep_torchs_contract(provider):
    rows = awkward((3, 4), torch.float32).requires_grad_()
    scales, grid = torch.tensor([0.5, 0.25, 1.0]), GRIDS["sums, 5 bits"]
    operators = torch.ops.spquant_plugin
    with spq.kernels.use(provider):
        torch.library.opcheck(operators.quantize_rows.default, (rows, scales, *grid))
        torch.library.opcheck(
            operators.scale_errors.default, (rows.detach(), scales.unsqueeze(1), *grid)
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_gpu_gives_the_same(grid):
    rows = awkward((4, 3, 3, 3), torch.float32)
    scales = scales_for(grid, rows.shape, rows.dtype)
    there = quantize_rows(
        rows.cuda(),
        scales.cuda(),
        grid._replace(table=None if grid.table is None else grid.table.cuda()),
    )
    assert torch.equal(there.cpu(), quantize_rows(rows, scales, grid))


def test_the_quantiser_runs_once_for_all_steps():
    net = spq.models.create("vgg5", in_channels=2, size=16, num_classes=4, width=0.25)
    x = torch.randint(0, 2, (6, 2, 2, 16, 16)).float()
    quantized = spq.convert(net, spq.presets.quant_snn(weight_bits=2), sample=x)
    calls = []
    for module in quantized.modules():
        own = getattr(module, "weight_quantizer", None)
        if own is not None:
            own.register_forward_hook(lambda module, *_: calls.append(module))
    quantized(x)
    assert len(calls) == len(set(calls)) > 3
