"""The threshold's gradient against an explicit sum, and the bounds that it can leave."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spquant_plugin.functional import surrogate as fs
from spquant_plugin.functional import threshold as ft

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = ["gpw", "shared", "doubled"]
quick = settings(deadline=None, max_examples=40, derandomize=True)
double = torch.float64


def window(kind: str, d: float) -> float:
    penalty = 1 / (1 + math.exp(-d)) if d >= 0 else 0.0
    return {"gpw": penalty, "shared": 1.0, "doubled": 1.0 + penalty}[kind]


def expected(kind: str, u: list[float], v: float, upstream: list[float], width: float) -> float:
    """-Σ dL/ds · tri(u - V) · window, one term after another."""
    total = 0.0
    for potential, grad in zip(u, upstream, strict=True):
        d = potential - v
        total -= grad * max(0.0, width - abs(d)) / width**2 * window(kind, d)
    return total


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@given(
    pairs=st.lists(st.tuples(st.floats(-2, 4), st.floats(-3, 3)), min_size=1, max_size=10),
    v=st.floats(0.2, 2),
    width=st.floats(0.3, 3),
)
@quick
def test_gradient_of_one_threshold_is_the_explicit_sum(device, kind, pairs, v, width):
    # The last potential lies on the threshold itself, where the window begins.
    u, upstream = [p[0] for p in pairs] + [v], [p[1] for p in pairs] + [1.5]
    potential = torch.tensor(u, dtype=double, device=device, requires_grad=True)
    threshold = torch.tensor(v, dtype=double, device=device, requires_grad=True)
    distance = ft.threshold_distance(potential, threshold, kind)
    assert torch.equal(distance, potential - threshold)
    grad = torch.tensor(upstream, dtype=double, device=device)
    fs.triangle_spike(distance, width).backward(grad)
    assert threshold.grad.shape == threshold.shape
    assert math.isclose(
        threshold.grad.item(), expected(kind, u, v, upstream, width), rel_tol=1e-9, abs_tol=1e-12
    )
    # The potential's own gradient is the plain triangle, whatever the threshold takes.
    tri = (width - (potential.detach() - v).abs()).clamp(min=0) / width**2
    torch.testing.assert_close(potential.grad, grad * tri)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 2, 3, 4, 2), (2, 3, 4, 2), (2, 3)])
def test_gradient_per_channel_sums_over_everything_else(device, kind, shape):
    dim = -3 if len(shape) > 2 else -1
    potential = torch.randn(shape, dtype=double, device=device)
    upstream = torch.randn(shape, dtype=double, device=device)
    view = (3, 1, 1) if dim == -3 else (3,)
    values = torch.tensor([0.5, 1.0, 1.5], dtype=double, device=device)
    threshold = values.view(view).requires_grad_()
    fs.triangle_spike(ft.threshold_distance(potential, threshold, kind)).backward(upstream)
    assert threshold.grad.shape == view
    for channel in range(3):
        u, g = (x.select(dim, channel).flatten().tolist() for x in (potential, upstream))
        want = expected(kind, u, values[channel].item(), g, 1.0)
        assert math.isclose(threshold.grad.flatten()[channel].item(), want, rel_tol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_resets_part_counts_unless_detached(kind):
    u = [0.2, 0.9, 1.0, 1.3, 1.9]
    for detached in (False, True):
        potential = torch.tensor(u, dtype=double)
        threshold = torch.tensor(1.0, dtype=double, requires_grad=True)
        s = fs.triangle_spike(ft.threshold_distance(potential, threshold, kind))
        left = (1 - (s.detach() if detached else s)) * potential
        (2 * s + 3 * left).sum().backward()
        reaching = [2.0 if detached else 2.0 - 3.0 * value for value in u]
        assert math.isclose(threshold.grad.item(), expected(kind, u, 1.0, reaching, 1.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_thresholds(device, dtype, kind):
    u = [0.25, 0.75, 1.0, 1.25, 1.5]
    potential = torch.tensor(u, dtype=dtype, device=device, requires_grad=True)
    threshold = torch.tensor(1.0, dtype=dtype, device=device, requires_grad=True)
    fs.triangle_spike(ft.threshold_distance(potential, threshold, kind)).sum().backward()
    assert threshold.grad.dtype == potential.grad.dtype == dtype
    want = expected(kind, u, 1.0, [1.0] * len(u), 1.0)
    assert math.isclose(threshold.grad.item(), want, rel_tol=4 * torch.finfo(dtype).eps)


def test_a_float_threshold_takes_half_potentials():
    potential = torch.tensor([0.5, 1.5], dtype=torch.float16, requires_grad=True)
    threshold = torch.tensor(1.0, requires_grad=True)
    fs.triangle_spike(ft.threshold_distance(potential, threshold)).sum().backward()
    assert (potential.grad.dtype, threshold.grad.dtype) == (torch.float16, torch.float32)


# --- bounds -------------------------------------------------------------------------------------

LOW, HIGH = 0.5, 2.0
PLACES = {"below": 0.1, "low": 0.5, "inside": 1.2, "high": 2.0, "above": 7.0}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [-3.0, 3.0])
@pytest.mark.parametrize("place", PLACES)
def test_bounds_stop_what_leads_outwards_only(device, dtype, place, grad):
    """A descent step goes against the gradient."""
    value = torch.tensor(PLACES[place], dtype=dtype, device=device, requires_grad=True)
    low, high = (torch.tensor(bound, dtype=dtype, device=device) for bound in (LOW, HIGH))
    bounded = ft.bounded_threshold(value, low, high)
    bounded.backward(torch.tensor(grad, dtype=dtype, device=device))
    assert bounded.dtype == dtype
    assert bounded.item() == min(max(value.item(), LOW), HIGH)
    stopped = (place in ("below", "low") and grad > 0) or (place in ("above", "high") and grad < 0)
    assert value.grad.item() == (0.0 if stopped else grad)


@pytest.mark.parametrize("device", DEVICES)
def test_each_channel_has_its_own_bounds(device):
    value = torch.tensor([0.1, 1.0, 5.0, 0.1, 1.0, 5.0], device=device).view(-1, 1, 1)
    value.requires_grad_()
    low = torch.tensor([0.5, 0.5, 0.5, 0.05, 1.0, 0.5], device=device).view(-1, 1, 1)
    high = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 6.0], device=device).view(-1, 1, 1)
    bounded = ft.bounded_threshold(value, low, high)
    assert bounded.flatten().tolist() == pytest.approx([0.5, 1.0, 2.0, 0.1, 1.0, 5.0])
    bounded.sum().backward()
    assert value.grad.flatten().tolist() == [0, 1, 1, 1, 0, 1]
    value.grad = None
    ft.bounded_threshold(value, low, high).sum().neg().backward()
    assert value.grad.flatten().tolist() == [-1, -1, 0, -1, -1, -1]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("outwards", [1.0, -1.0])
def test_under_a_large_rate_it_stays_inside_and_leaves_again(make, outwards):
    value = torch.tensor(1.0, requires_grad=True)
    optimizer = make([value], lr=1.0)
    bounds = torch.tensor(LOW), torch.tensor(HIGH)

    def step(direction: float) -> float:
        optimizer.zero_grad()
        bounded = ft.bounded_threshold(value, *bounds)
        (-direction * bounded).backward()
        optimizer.step()
        return ft.bounded_threshold(value, *bounds).item()

    reached = [step(outwards) for _ in range(20)]
    assert all(LOW <= v <= HIGH for v in reached)
    assert reached[-1] == (HIGH if outwards > 0 else LOW)
    back = [step(-outwards) for _ in range(20)]
    assert all(LOW <= v <= HIGH for v in back)
    assert back[-1] == (LOW if outwards > 0 else HIGH)
