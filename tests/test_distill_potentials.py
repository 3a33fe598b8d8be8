"""Potentials before firing, as a neuron shows them and as its equations give them step by step."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, neuron, surrogate

import spquant_plugin as spq
from spquant_plugin.distill.networks import joined, shows_potential, watched
from spquant_plugin.functional.membrane import quantize_membrane
from spquant_plugin.modules.host import Host
from spquant_plugin.snntorch import neuron as ours_snn
from spquant_plugin.spikingjelly import neuron as ours_jelly

T, N, C = 6, 3, 5
ATAN = snn_surrogate.atan()


def current(scale=2.5):
    """Input currents of which many make the neuron fire."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(T, N, C, generator=generator) * scale - 0.5
    return x.requires_grad_()


def shown(module, call, *tensors):
    """What the neuron showed in ``call()``, and the gradient of a mixture of it."""
    with watched(module, [""]) as found:
        call()
    potentials = joined("neuron", found)[""]
    return potentials.detach(), gradient(potentials, *tensors)


def gradient(potentials, *tensors):
    mixture = torch.linspace(-1, 1, potentials.numel()).view_as(potentials)
    return torch.autograd.grad((potentials * mixture).sum(), tensors)


def same(found, expected, exact=True):
    assert torch.equal(found[0], expected[0]) if exact else torch.allclose(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert bool((found[1][0] != 0).any())


# SpikingJelly.


def jelly_reference(node, x, membrane=None, unit=1.0):
    """The equations with every potential in sight."""
    rest = node.v_reset or 0.0
    v = torch.full(x.shape[1:], rest)
    seen = []
    for current in x:
        if isinstance(node, neuron.IFNode | ours_jelly.TernaryMembraneIFNode):
            u = v + current
        else:
            rate = node.w.sigmoid() if hasattr(node, "w") else 1 / node.tau
            u = v + (current - (v - rest)) * rate if node.decay_input else v - (v - rest) * rate
            u = u if node.decay_input else u + current
        seen.append(u)
        spikes = node.surrogate_function(u - node.v_threshold)
        spikes = spikes.detach() if node.detach_reset else spikes
        v = u - spikes * node.v_threshold
        if node.v_reset is not None:
            v = spikes * rest + (1 - spikes) * u
        if membrane is not None:
            v = quantize_membrane(
                v, torch.tensor(unit), rest, lowest=membrane.lowest, highest=membrane.highest
            )
    potentials = torch.stack(seen)
    tensors = [x, *node.parameters()]
    return potentials.detach(), gradient(potentials, *tensors)


NODES = {
    "if-hard": lambda **kw: neuron.IFNode(**kw),
    "if-soft": lambda **kw: neuron.IFNode(v_reset=None, **kw),
    "lif-decays-input": lambda **kw: neuron.LIFNode(tau=4.0, **kw),
    "lif-soft": lambda **kw: neuron.LIFNode(decay_input=False, v_reset=None, **kw),
    "lif-rest-detached": lambda **kw: neuron.LIFNode(
        decay_input=False, v_reset=-0.25, detach_reset=True, **kw
    ),
    "plif": lambda **kw: neuron.ParametricLIFNode(decay_input=False, **kw),
    "plif-decays-input": lambda **kw: neuron.ParametricLIFNode(init_tau=1.5, v_reset=0.1, **kw),
}


@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("name", NODES)
def test_spikingjelly_shows_what_it_compares(name, mode):
    node = NODES[name](step_mode=mode, surrogate_function=surrogate.ATan())
    x = current()

    def call():
        return node(x) if mode == "m" else [node(step) for step in x]

    found = shown(node, call, x, *node.parameters())
    same(found, jelly_reference(node, x))
    assert not node._forward_hooks
    assert not node._forward_pre_hooks


def test_spikingjelly_goes_on_from_the_state_it_had():
    node = neuron.LIFNode(step_mode="m")
    x = current()
    whole = shown(node, lambda: node(x), x)[0]
    node.reset()
    node(x[:2])
    with watched(node, [""]) as found:
        node(x[2:])
    assert torch.equal(joined("", found)[""], whole[2:])


def test_spikes_that_are_changed_in_place_do_not_disturb():
    node = neuron.LIFNode(step_mode="m")
    x = current()
    expected = jelly_reference(node, x)
    same(shown(node, lambda: node(x).add_(1.0), x), expected)


@pytest.mark.parametrize("mode", ["m", "s", "own-surrogate"])
@pytest.mark.parametrize("kind", ["TernaryMembraneIFNode", "TernaryMembraneLIFNode"])
def test_quantised_nodes_show_their_potential(kind, mode):
    function = torch.nn.Sequential(surrogate.ATan()) if mode == "own-surrogate" else None
    membrane = spq.UniformMembrane(4)
    node = getattr(ours_jelly, kind)(
        membrane=membrane,
        surrogate_function=function or surrogate.ATan(),
        step_mode="s" if mode == "s" else "m",
    )
    x = current()

    def call():
        return [node(step) for step in x] if mode == "s" else node(x)

    expected = jelly_reference(node, x, membrane, float(node.membrane_unit))
    # The host charges a leaky node by another sequence of the same sums.
    same(shown(node, call, x), expected, exact="LIF" not in kind)
    assert "_decide" not in vars(node)
    assert "run_fused" not in vars(node)


@pytest.mark.parametrize("score", ["current", "prior"])
def test_a_spatial_gate_and_a_learned_threshold_show_the_same_in_both_modes(score):
    found = []
    for mode in ("m", "s"):
        node = ours_jelly.TernaryMembraneParametricLIFNode(
            step_mode=mode,
            learnable_threshold=spq.LearnableThreshold(),
            spatial_gate=spq.SpatialGate(score=score),
        )
        x = current().detach().unsqueeze(2).requires_grad_()

        def call(node=node, x=x, mode=mode):
            return node(x) if mode == "m" else [node(step) for step in x]

        found.append(shown(node, call, x, *node.parameters()))
    same(*found)


# snnTorch.


def snn_reference(lif, x, late=True):
    """The host's equations with every potential in sight; resets are detached."""
    mem, syn, spikes = torch.zeros(N, C), torch.zeros(N, C), torch.zeros(N, C)
    seen = []
    for current in x:
        late_reset = (mem - lif.threshold > 0).float()
        # In the host's order of sums: the last bits depend on it.
        added = [current]
        if hasattr(lif, "recurrent"):
            added.append(lif.recurrent(spikes))
        if hasattr(lif, "alpha"):
            syn = sum(added, lif.alpha.clamp(0, 1) * syn)
            added = [syn]
        held = (1 - late_reset) * mem if type(lif) is snn.Leaky and zero(lif) else mem
        u = sum(added, lif.beta.clamp(0, 1) * held)
        if isinstance(lif, snn.Lapicque):
            u = current * lif.R * (1 / (lif.R * lif.C)) * lif.time_step
            u = u + (1 - lif.time_step / (lif.R * lif.C)) * mem
        if lif.reset_mechanism == "subtract":
            u = u - late_reset * lif.threshold
        elif zero(lif) and type(lif) is not snn.Leaky:
            u = u - late_reset * u
        seen.append(u)
        spikes = lif.spike_grad(u - lif.threshold) * lif.graded_spikes_factor
        mem = u
        if not late:
            mem = u - (spikes - late_reset) * (lif.threshold if not zero(lif) else u)
    potentials = torch.stack(seen)
    return potentials.detach(), gradient(potentials, x, *learned(lif))


def zero(lif):
    return lif.reset_mechanism == "zero"


def learned(lif):
    """Parameters on which potentials depend."""
    if zero(lif) or lif.reset_mechanism == "none":
        return [p for name, p in lif.named_parameters() if name != "threshold"]
    return [*lif.parameters()]


RECURRENT = {"all_to_all": False, "V": 0.3}
LIFS = {
    "leaky-subtract": lambda: snn.Leaky(0.7, learn_beta=True, learn_threshold=True),
    "leaky-zero": lambda: snn.Leaky(0.7, reset_mechanism="zero"),
    "leaky-none": lambda: snn.Leaky(0.7, reset_mechanism="none", learn_beta=True),
    "leaky-at-once": lambda: snn.Leaky(0.7, reset_delay=False),
    "leaky-zero-at-once": lambda: snn.Leaky(0.7, reset_delay=False, reset_mechanism="zero"),
    "lapicque": lambda: snn.Lapicque(beta=0.6),
    "lapicque-zero": lambda: snn.Lapicque(beta=0.6, reset_mechanism="zero"),
    "synaptic": lambda: snn.Synaptic(0.5, 0.7, learn_alpha=True, learn_beta=True),
    "rleaky": lambda: snn.RLeaky(0.7, **RECURRENT),
    "rleaky-zero": lambda: snn.RLeaky(0.7, reset_mechanism="zero", **RECURRENT),
    "rsynaptic": lambda: snn.RSynaptic(0.5, 0.7, **RECURRENT),
}


@pytest.mark.parametrize("name", LIFS)
def test_snntorch_shows_what_it_compares(name):
    lif = LIFS[name]()
    x = current(1.8)

    def call():
        state = ()
        for step in x:
            state = lif(step, *state)
            # Recurrent neurons take their spikes back, the others their states alone.
            state = state if hasattr(lif, "recurrent") else state[1:]

    found = shown(lif, call, x, *learned(lif))
    same(found, snn_reference(lif, x, late="at-once" not in name))
    assert "fire" not in vars(lif)


def test_hidden_states_and_inhibition_show_the_same():
    with pytest.warns(UserWarning, match="Inhibition"):
        lif = snn.Leaky(0.7, init_hidden=True, inhibition=True)
    x = current(1.8)
    same(shown(lif, lambda: [lif(step) for step in x], x), snn_reference(lif, x), exact=False)


@pytest.mark.parametrize("kind", ["TernaryLeaky", "TernarySynaptic", "TernaryRLeaky"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_float_membrane_of_ours_shows_what_the_host_shows(kind, reset):
    options = {"beta": 0.7, "reset_mechanism": reset, "init_hidden": True, "spike_grad": ATAN}
    if kind == "TernarySynaptic":
        options["alpha"] = 0.5
    if kind == "TernaryRLeaky":
        options |= RECURRENT
    x = current(1.8)
    found = []
    for lif in (
        getattr(ours_snn, kind)(membrane=None, **options),
        getattr(snn, kind.removeprefix("Ternary"))(**options),
    ):
        found.append(shown(lif, lambda lif=lif: [lif(step) for step in x], x))
    same(*found, exact=False)


@pytest.mark.parametrize("delay", [True, False])
def test_a_whole_sequence_at_once_shows_what_the_loop_shows(delay):
    x = current(1.8)
    found = []
    for run in (spq.snntorch.run, lambda net, x: [net(step) for step in x]):
        lif = ours_snn.TernaryLeaky(
            0.7, membrane=spq.UniformMembrane(4), init_hidden=True, reset_delay=delay
        )
        net = torch.nn.Sequential(lif)
        found.append(shown(lif, lambda run=run, net=net: run(net, x), x))
    same(*found)


# Who shows nothing, and what is left behind.


def test_other_modules_show_nothing():
    from spquant_plugin.convert.hosts import Hosts

    hosts = Hosts()
    assert Host().watch_potentials(torch.nn.Linear(2, 2), print) is None
    assert not shows_potential(torch.nn.Linear(2, 2), hosts)
    assert not shows_potential(neuron.PSN(T=4), hosts)
    assert not shows_potential(snn.Alpha(0.8, 0.7), hosts)


def test_an_own_method_of_a_neuron_is_put_back():
    lif = snn.Leaky(0.5)
    own = lif.fire
    lif.fire = own
    with pytest.raises(ZeroDivisionError), watched(lif, [""]):
        raise ZeroDivisionError
    assert vars(lif)["fire"] is own


def test_watching_does_not_change_what_a_node_does():
    node = neuron.ParametricLIFNode(step_mode="m", store_v_seq=True)
    x = current()
    expected = node(x), node.v, node.v_seq
    functional.reset_net(node)
    with watched(node, [""]):
        found = node(x), node.v, node.v_seq
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
