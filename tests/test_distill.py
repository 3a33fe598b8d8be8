"""The distillation loss against its equations, what it leaves behind, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math

import pytest
import snntorch as snn
import torch
from networks import Loop, snn_torch, spiking_jelly
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import spquant_plugin as spq
from spquant_plugin.distill import DistillationLoss, plot_membranes
from spquant_plugin.distill.teacher import frozen
from spquant_plugin.distill.terms import distribution_difference
from spquant_plugin.errors import DistillationError, MissingHostError

T, N = 4, 6
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def stack(mode="m", widths=(5, 8, 8, 6, 2), scale=1.5):
    """Linear layers and LIF nodes: 3 neurons, of 8, 8 and 6 features."""
    net = nn.Sequential()
    for ins, outs in itertools.pairwise(widths):
        net.append(layer.Linear(ins, outs))
        net.append(neuron.LIFNode(decay_input=False))
        nn.init.uniform_(net[-2].weight, -0.3, scale * 2 / ins)
    functional.set_step_mode(net[:-1], mode)
    return net[:-1]


def hidden():
    """snnTorch's hidden-state idiom, two neurons and a read-out."""
    net = nn.Sequential(
        nn.Linear(5, 8),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.Linear(8, 6),
        snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="zero"),
        nn.Linear(6, 2),
    )
    for module in net[::2]:
        nn.init.uniform_(module.weight, -0.3, 0.8)
    return net


def loop(model, x):
    """A model that takes single steps, over all of them."""
    return torch.stack([model(step) for step in x])


def batch(timesteps=T):
    return torch.rand(timesteps, N, 5, generator=torch.Generator().manual_seed(1))


def potentials(net, x):
    """Logits and potentials ``[T, N, ...]`` of every neuron, written out step by step."""
    mems = {path: torch.zeros(()) for path, m in net.named_modules() if m_is_neuron(m)}
    outputs, seen = [], {path: [] for path in mems}
    for value in x:
        for path, module in net.named_children():
            if not m_is_neuron(module):
                value = F.linear(value, module.weight, module.bias)
                continue
            v = mems[path]
            if isinstance(module, snn.Leaky):
                reset = (v - module.threshold > 0).float()
                kept = (1 - reset) * v if module.reset_mechanism == "zero" else v
                u = module.beta * kept + value
                if module.reset_mechanism == "subtract":
                    u = u - reset * module.threshold
                value = module.spike_grad(u - module.threshold)
                mems[path] = u
            else:
                u = v - v / module.tau + value
                value = module.surrogate_function(u - module.v_threshold)
                mems[path] = (1 - value) * u
            seen[path].append(u)
        outputs.append(value)
    return torch.stack(outputs).mean(0), {path: torch.stack(us) for path, us in seen.items()}


def m_is_neuron(module):
    return isinstance(module, neuron.LIFNode | snn.Leaky)


def slow_loss(teacher, student, x, teacher_x, paths, mode, weights=(1.0, 1.0), tau=4.0):
    """The equations, in plain sums."""
    with torch.no_grad():
        wanted, theirs = potentials(teacher, teacher_x)
    logits, ours = potentials(student, x)
    p, q = (wanted / tau).softmax(1), (logits / tau).softmax(1)
    kl = tau**2 * sum(p[:, k] * (p[:, k] / q[:, k]).log() for k in range(2)).mean()
    total = -logits.log_softmax(1)[range(N), LABELS].mean() + weights[0] * kl
    for i, path in enumerate(paths):
        a, b = ours[path], theirs[path]
        if mode == "mse":
            if len(a) != len(b):
                a, b = a.mean(0), b.mean(0)
            part = ((a - b) ** 2).sum() / a.numel()
        else:
            means = [u.mean((0, 1)) for u in (a, b)]
            stds = [u.std((0, 1), unbiased=False) for u in (a, b)]
            part = ((means[0] - means[1]) ** 2 + (stds[0] - stds[1]) ** 2).mean()
        total = total + weights[1] * 2.0 ** -(len(paths) - 1 - i) * part
    return total


HOSTS = {"m": ("m", None), "s": ("s", loop), "snntorch": (None, loop)}
CASES = {
    "stages": {},
    "all": {"layers": "all"},
    "paths": {"layers": ["3", "1"], "logits_weight": 0.5, "membrane_weight": 3.0},
    "distribution": {"layers": "all", "mode": "distribution"},
    "other-steps": {"layers": "all"},
    "cold": {"temperature": 1.5},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("host", HOSTS)
def test_the_loss_and_its_gradient_are_those_of_the_equations(host, case):
    mode, forward = HOSTS[host]
    teacher, student = (stack(mode) if mode else hidden() for _ in range(2))
    options = CASES[case]
    x = batch()
    teacher_x = batch(7) if case == "other-steps" else x
    paths = ["1", "3"] if mode is None or case == "paths" else ["1", "3", "5"]
    if mode and options.get("layers", "stages") == "stages":
        paths = ["3", "5"]  # 1 and 3 have 8 features both
    distill = DistillationLoss(teacher, student, forward=forward, **options)
    loss = distill(x, LABELS, teacher_x=teacher_x)
    weights = (options.get("logits_weight", 1.0), options.get("membrane_weight", 1.0))
    expected = slow_loss(
        teacher,
        student,
        x,
        teacher_x,
        paths,
        options.get("mode", "mse"),
        weights,
        options.get("temperature", 4.0),
    )
    assert torch.allclose(loss, expected, rtol=1e-5, atol=1e-6)
    assert list(distill.paths) == paths
    ours = torch.autograd.grad(loss, [*student.parameters()])
    theirs = torch.autograd.grad(expected, [*student.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert any(bool((grad != 0).any()) for grad in ours)
    last = distill.last
    assert torch.equal(last.total, loss.detach())
    n = len(paths)
    assert last.weights == {path: 2.0 ** -(n - 1 - i) for i, path in enumerate(paths)}
    assert all(float(part) > 0 for part in last.membrane.values())
    parts = sum(last.weights[path] * last.membrane[path] for path in paths)
    assert torch.allclose(last.ce + weights[0] * last.kl + weights[1] * parts, last.total)


def test_stages_of_a_network_with_space():
    teacher = nn.Sequential(
        *(layer.Conv2d(1, 2, 3, padding=1), neuron.IFNode()),
        *(layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode()),
        *(layer.AvgPool2d(2), layer.Conv2d(4, 4, 3, padding=1), neuron.IFNode()),
        *(layer.Flatten(), layer.Linear(64, 4), neuron.IFNode()),
    )
    functional.set_step_mode(teacher, "m")
    distill = DistillationLoss(teacher, copy.deepcopy(teacher))
    distill(torch.rand(2, 3, 1, 8, 8), torch.tensor([0, 1, 2]))
    # Space 8 x 8 twice, whatever the channels; 4 x 4; and 4 features, which are no space.
    assert distill.paths == ("3", "6", "9")


def test_an_unquantised_copy_has_nothing_to_learn_from_its_teacher():
    for make, forward in ((stack, None), (hidden, loop), (Loop, None)):
        teacher = make().eval()
        student = copy.deepcopy(teacher)
        readout = (lambda total: total) if make is Loop else None
        for mode in ("mse", "distribution"):
            distill = DistillationLoss(
                teacher, student, "all", mode, forward=forward, readout=readout
            )
            loss = distill(batch(), LABELS)
            assert [float(part) for part in distill.last.membrane.values()] == [0.0] * len(
                distill.paths
            )
            assert float(distill.last.kl) == 0
            assert torch.equal(loss.detach(), distill.last.ce)
            loss.backward()
            assert all(bool(p.grad.isfinite().all()) for p in student.parameters())


def test_a_channel_that_never_changes_has_a_gradient():
    u = torch.ones(2, 3, 2, requires_grad=True)
    distribution_difference(u, torch.rand(2, 3, 2)).backward()
    assert bool((u.grad.isfinite() & (u.grad != 0)).all())


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_a_few_steps_of_training_lower_the_loss(host):
    if host == "spikingjelly":
        teacher, x = spiking_jelly(), (torch.rand(3, 6, 2, 8, 8) < 0.5).float()
        config, forward = spq.presets.md_snn(4, input=None), None
    else:
        teacher, x, forward = snn_torch()[:-1], batch(), loop
        config = spq.presets.md_snn(4, norm=None, input=None)
    student = spq.convert(teacher, config, sample=x if forward is None else x[0])
    distill = DistillationLoss(teacher, student, "all", forward=forward)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = distill(x, LABELS)
        loss.backward()
        optimizer.step()
        losses.append((float(distill.last.total), sum(map(float, distill.last.membrane.values()))))
    assert losses[-1][0] < 0.9 * losses[0][0]
    assert losses[-1][1] < losses[0][1]
    assert distill.last.student_logits.shape == distill.last.teacher_logits.shape
    assert str(distill.last).startswith("total ")


# What is left behind.


def everything(net):
    """All that a network's modules hold, as values that can be compared."""
    found = {}
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            value = dict(value) if isinstance(value, dict) else value
            found[path, name] = value
    return found


def unchanged(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        now = after[key]
        if isinstance(value, dict):
            assert list(value) == list(now), key
            assert all(value[name] is now[name] for name in value), key
        else:
            assert value is now, key


class Draws(nn.Module):
    """Random in eval mode too, as an encoder that draws spikes."""

    def forward(self, x):
        return x + 0.1 * torch.rand_like(x)


class Fails(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


@pytest.mark.parametrize("fails", ["", "teacher", "student"])
@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_nothing_is_left_behind(host, fails):
    make, forward = (stack, None) if host == "spikingjelly" else (hidden, loop)
    teacher, student = make().append(Draws()), make().append(Draws())
    first = batch()
    outputs = teacher(first) if forward is None else forward(teacher, first)
    assert outputs.requires_grad  # and so do the teacher's running states
    (forward or (lambda net, x: net(x)))(student, first)  # the host adds attributes in a forward
    spq.reset(student)
    student.eval()
    student[-1].train()
    for role, net in (("teacher", teacher), ("student", student)):
        if fails == role:
            net.append(Fails())
    distill = DistillationLoss(teacher, student, forward=forward)
    before, own = everything(teacher), everything(student)
    values = [tensor.clone() for tensor in teacher.state_dict().values()]
    torch.manual_seed(5)
    if fails:
        with pytest.raises(ZeroDivisionError):
            distill(first, LABELS)
    else:
        distill(first, LABELS).backward()
    drawn = torch.rand(())
    unchanged(before, everything(teacher))
    for old, new in zip(values, teacher.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    # The student is at rest and otherwise as it was: no hook, no method, no mode.
    now = everything(student)
    assert now.keys() == own.keys()
    for (path, name), value in own.items():
        if name in ("training", "_parameters") or "hooks" in name:
            assert value == now[path, name]
    copy.deepcopy(student)  # no state holds a graph
    # The student draws what it draws without a teacher.
    torch.manual_seed(5)
    if fails != "teacher":
        spq.reset(student)
        with contextlib.suppress(ZeroDivisionError):
            (forward or (lambda net, x: net(x)))(student, first)
    assert torch.equal(drawn, torch.rand(()))


@pytest.mark.parametrize("host", ["spikingjelly", "snntorch"])
def test_both_networks_start_from_rest(host):
    make, forward = (stack, None) if host == "spikingjelly" else (hidden, loop)
    teacher, student = make(), make()
    distill = DistillationLoss(teacher, student, forward=forward)
    expected = distill(batch(), LABELS)
    for net in (teacher, student):
        (forward or (lambda net, x: net(x)))(net, batch())
    assert torch.equal(distill(batch(), LABELS), expected)


def test_the_teacher_is_no_part_of_the_loss_and_stays_as_trained():
    distill = DistillationLoss(stack(), stack())
    assert not isinstance(distill, nn.Module)
    assert not hasattr(distill, "parameters")
    held = nn.Module()
    held.loss = distill
    assert not [*held.parameters()]
    assert not held.state_dict()


def test_frozen_puts_back_what_modules_hold():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net.notes = notes = [1]

    def change():
        net.notes.append(2)
        net.other = 3
        net.training = False
        del net.notes
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), frozen(net):
        change()
    assert net.training
    assert net.notes is notes
    assert notes == [1]
    assert not hasattr(net, "other")


def test_gates_tell_what_they_closed_after_the_loss():
    teacher, x = spiking_jelly(), torch.rand(3, 6, 2, 8, 8).round()
    student = spq.convert(teacher, spq.presets.spquant_snn(2, input=None), sample=x)
    distill = DistillationLoss(teacher, student)
    loss = distill(x, LABELS) + spq.gate_loss(student, 0.5)
    loss.backward()
    assert set(spq.gate_stats(student)) == {"4.channel_gate"}


# Wrapped, compiled, in other precision.


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.module(x)


def test_wrapped_networks_are_called_as_they_are_and_keep_their_paths():
    teacher, student = stack(), stack()
    plain = DistillationLoss(teacher, student)(batch(), LABELS)
    outer, inner = Wrapper(teacher), Wrapper(student)
    distill = DistillationLoss(outer, inner, ["3", "5"])
    assert torch.equal(distill(batch(), LABELS), plain)
    assert (outer.calls, inner.calls) == (0, 1)  # the teacher was put back, its counter too


def test_distributed_data_parallel_sees_the_whole_loss(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    teacher, student = stack(), stack()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(student)
        loss = DistillationLoss(DistributedDataParallel(teacher), parallel)(batch(), LABELS)
        loss.backward()
    finally:
        dist.destroy_process_group()
    found = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    DistillationLoss(teacher, student)(batch(), LABELS).backward()
    for ours, theirs in zip(found, student.parameters(), strict=True):
        assert torch.allclose(ours, theirs.grad)


def test_a_compiled_student_runs_without_its_compiled_code():
    def refuse(graph, inputs):
        raise ZeroDivisionError

    teacher, student = stack(), stack()
    expected = DistillationLoss(teacher, student)(batch(), LABELS)
    compiled = torch.compile(student, backend=refuse)
    found = DistillationLoss(torch.compile(teacher, backend=refuse), compiled)(batch(), LABELS)
    assert torch.equal(found, expected)
    with pytest.raises(DistillationError, match=r"module \(OptimizedModule\) is compiled inside"):
        DistillationLoss(teacher, Wrapper(compiled))
    student.compile(backend=refuse)
    with pytest.raises(DistillationError, match=r"\(model\) \(Sequential\) is compiled inside"):
        DistillationLoss(teacher, student)


def test_under_autocast_the_loss_is_in_single_precision():
    teacher, student = stack(), stack()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DistillationLoss(teacher, student)(batch(), LABELS)
    assert loss.dtype == torch.float32
    loss.backward()


def test_checkpointing_must_keep_the_gradient():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=True)

    teacher = stack()
    student = Checkpointed(*stack())
    x = batch().requires_grad_()
    with pytest.raises(DistillationError, match=r"5: the student's potential carries no gradient"):
        DistillationLoss(teacher, student)(x, LABELS)
    with torch.no_grad():
        DistillationLoss(teacher, student)(x, LABELS)


# Options.


def test_without_weight_a_part_is_not_computed():
    class Unknown(neuron.LIFNode):
        pass

    teacher, student = stack(), stack()
    student[1] = Unknown(decay_input=False, step_mode="m")  # it would be refused
    distill = DistillationLoss(teacher, student, membrane_weight=0.0)
    distill(batch(), LABELS)
    assert distill.last.membrane == {}
    assert float(distill.last.kl) > 0
    distill = DistillationLoss(teacher, stack(), logits_weight=0)
    distill(batch(), LABELS)
    assert float(distill.last.kl) == 0


def test_readout_criterion_and_arguments_by_name():
    teacher, student = stack(), stack()
    distill = DistillationLoss(
        teacher,
        student,
        readout=lambda outputs: outputs[-1],
        criterion=lambda logits, target: (logits - 1).square().mean(),
        forward=lambda net, x: net(x["x"]),
    )
    loss = distill({"x": batch()}, None)
    logits = student(batch())[-1]
    assert torch.equal(distill.last.student_logits, logits)
    assert torch.equal(distill.last.ce, (logits - 1).square().mean())
    assert loss.ndim == 0
    spq.reset(student)
    again = DistillationLoss(teacher, student)
    by_name = again({"input": batch()}, LABELS)
    assert torch.equal(by_name, again(batch(), LABELS))


def test_a_criterion_with_one_entry_and_a_tuple_of_outputs():
    class Tuple(nn.Sequential):
        def forward(self, x):
            return super().forward(x), None

    distill = DistillationLoss(
        Tuple(*stack()), Tuple(*stack()), criterion=lambda logits, target: logits.mean()[None]
    )
    assert distill(batch(), LABELS).ndim == 0


# What is refused.


def refused(match, *args, **kwargs):
    with pytest.raises(DistillationError, match=match):
        DistillationLoss(*args, **kwargs)


def test_bad_arguments_are_refused():
    teacher, student = stack(), stack()
    refused(
        r"logits_weight=-1\): must be a finite number, 0 or more",
        teacher,
        student,
        logits_weight=-1,
    )
    refused(r"membrane_weight=nan\)", teacher, student, membrane_weight=math.nan)
    refused(r"temperature=0\): must be a finite number, above 0", teacher, student, temperature=0)
    refused(r"temperature='hot'\)", teacher, student, temperature="hot")
    refused(r"mode='kl'\): must be 'mse' or 'distribution'", teacher, student, mode="kl")
    refused(r"layers='last'\): must be 'stages', 'all' or a list", teacher, student, "last")
    refused(r"layers=\[\]\): must be", teacher, student, [])
    refused(r"layers=3\): must be", teacher, student, 3)
    refused(r"readout=4\): must be a function", teacher, student, readout=4)
    refused(r"criterion='ce'\): must be a function", teacher, student, criterion="ce")
    refused("are one network", teacher, Wrapper(teacher))
    refused(r"teacher=str\): must be a torch.nn.Module", "net", student)
    refused(r"student=the class Linear\)", teacher, nn.Linear)
    refused("its copies of the network keep", nn.DataParallel(teacher), student)
    refused("hold no spiking neuron", nn.Linear(2, 2), nn.Linear(2, 2))
    refused(
        r"layers: '4' is no spiking neuron of the teacher: .* Closest are", teacher, student, ["4"]
    )


def test_networks_with_other_neurons_are_refused():
    teacher, student = stack(), stack(widths=(5, 8, 6, 2))
    refused(r"only the teacher has 5: with layers='stages' both must", teacher, student)
    refused(r"only the student has 5: with layers='all'", student, teacher, "all")
    refused(r"'5' is no spiking neuron of the student", teacher, student, ["5"])
    student[1] = neuron.PSN(T=4)
    refused(r"student: 1 \(PSN\) has dynamics of its own", teacher, student)
    distill = DistillationLoss(stack(), stack(widths=(5, 9, 8, 7, 2)), "all")
    with pytest.raises(
        DistillationError,
        match=r"1 \(4, 6, 8\) and \(4, 6, 9\); 5 \(4, 6, 6\) and \(4, 6, 7\): only time may differ",
    ):
        distill(batch(), LABELS)
    distill = DistillationLoss(stack(), stack(widths=(5, 9, 8, 6, 2)), "all", "distribution")
    with pytest.raises(DistillationError, match=r"1 \(4, 6, 8\) and \(4, 6, 9\): channels must"):
        distill(batch(), LABELS)


def test_neurons_that_are_not_called_and_shapes_that_change_are_refused():
    teacher, student = stack(), stack()
    skips = {"teacher": teacher[:2], "student": student[:2]}

    def forward(model, x, skip=()):
        parts = skips["teacher" if model is teacher else "student"]
        return (
            parts(x)[..., :2]
            if ("teacher" if model is teacher else "student") in skip
            else model(x)
        )

    for role in ("teacher", "student"):
        distill = DistillationLoss(
            teacher, student, ["3"], forward=lambda m, x, role=role: forward(m, x, (role,))
        )
        with pytest.raises(DistillationError, match=f"'?3'? was not called in the {role}'s"):
            distill(batch(), LABELS)

    def twice(model, x):
        model(x[:, :2])
        return model(x)

    distill = DistillationLoss(teacher, student, forward=twice)
    with pytest.raises(DistillationError, match=r"1 was called with steps of shapes \(2, 8\)"):
        distill(batch(), LABELS)


def test_outputs_that_do_not_fit_are_refused():
    teacher, student = stack(), stack(widths=(5, 8, 8, 6, 3))
    with pytest.raises(
        DistillationError, match=r"logits have shape \(6, 3\), the teacher's \(6, 2\)"
    ):
        DistillationLoss(teacher, student)(batch(), LABELS)
    distill = DistillationLoss(teacher, stack(), readout=lambda outputs: outputs)
    with pytest.raises(DistillationError, match=r"the student's readout gave \(4, 6, 2\)"):
        distill(batch(), LABELS)
    distill = DistillationLoss(teacher, stack(), criterion=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(DistillationError, match=r"criterion gave \(6,\): must be one number"):
        distill(batch(), LABELS)
    with pytest.raises(DistillationError, match="nothing ran yet"):
        distill.last
    distill = DistillationLoss(stack(), stack())
    with pytest.raises(DistillationError, match=r"potentials .* 3 \(4, 5, 8\) and \(4, 6, 8\)"):
        DistillationLoss(
            teacher,
            stack(),
            readout=lambda outputs: outputs.mean(0)[:5],
            criterion=lambda z, t: z.sum(),
        )(batch(), None, teacher_x=batch()[:, :5])


@pytest.mark.parametrize("bad", ["ce", "kl", "membrane of 3"])
def test_what_is_not_finite_is_named(bad):
    teacher, student = stack(), stack()
    options = {}
    if bad == "ce":
        options["criterion"] = lambda logits, target: logits.sum() * math.nan
    if bad == "kl":
        nn.init.constant_(teacher[6].weight, math.nan)
    if bad == "membrane of 3":
        nn.init.constant_(student[2].bias, math.inf)
    distill = DistillationLoss(teacher, student, **options)
    with pytest.raises(DistillationError, match=f"the loss is not finite: {bad} is (nan|inf)"):
        distill(batch(), LABELS)
    large = DistillationLoss(stack(), stack(), membrane_weight=3e38)
    x = 1e4 * batch()
    with pytest.raises(DistillationError, match="not finite: the weighted sum is inf"):
        large(x, LABELS)


# The figure.


def test_the_figure_shows_both_networks():
    teacher, student = stack(), stack()
    before = everything(teacher), everything(student)
    figure = plot_membranes(teacher, student, batch(), "all")
    unchanged(before[0], everything(teacher))
    unchanged(before[1], everything(student))
    assert [axes.get_title("left") for axes in figure.axes] == ["1", "3", "5"]
    for axes in figure.axes:
        assert [patch.get_label() for patch in axes.patches] == ["teacher", "student"]
        for patch in axes.patches:
            assert patch.get_data().values.sum() == pytest.approx(100)
    distill = DistillationLoss(hidden(), hidden(), forward=loop)
    assert len(plot_membranes(distill, x=batch()).axes) == 2


def test_a_figure_that_cannot_be_drawn_is_refused(monkeypatch):
    teacher, student = stack(), stack()
    with pytest.raises(DistillationError, match=r"x=None\): must be what the networks take"):
        plot_membranes(teacher, student)
    with pytest.raises(DistillationError, match="membrane_weight=0 compares no layers"):
        plot_membranes(DistillationLoss(teacher, student, membrane_weight=0), x=batch())
    nn.init.constant_(student[2].bias, math.inf)
    with pytest.raises(DistillationError, match="potentials of 3 are not finite"):
        plot_membranes(teacher, student, batch())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingHostError, match="needs matplotlib"):
        plot_membranes(teacher, stack(), batch())
