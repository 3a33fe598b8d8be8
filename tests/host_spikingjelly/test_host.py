"""What goes wrong without a word in SpikingJelly: one test per trap, on converted networks."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from spikingjelly.activation_based import base, encoding, functional, layer
from spikingjelly.activation_based import neuron as host
from spikingjelly.activation_based import surrogate as host_surrogate
from spikingjelly.activation_based.layer.attention import SpikingSelfAttention
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import spquant_plugin as spq
from spquant_plugin.errors import SelfFiringWarning, UnsupportedModuleError
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer
from spquant_plugin.spikingjelly import layer as ours
from spquant_plugin.spikingjelly import neuron

QUANT = spq.presets.quant_snn(weight_bits=2)
ADAPTIVE = spq.presets.quant_snn(weight_bits=4, adaptive=True)
PER_CHANNEL = spq.presets.quant_snn(threshold=spq.LearnableThreshold(per_channel=True))
MEMBRANE = spq.SpQuantConfig(membrane=spq.TernaryMembrane())
NODES = {
    host.IFNode: neuron.TernaryMembraneIFNode,
    host.LIFNode: neuron.TernaryMembraneLIFNode,
    host.ParametricLIFNode: neuron.TernaryMembraneParametricLIFNode,
}


def events(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def network(step_mode: str = "m", **options: object) -> nn.Sequential:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        host.LIFNode(**options),
        layer.MaxPool2d(2),
        layer.Conv2d(4, 6, 3, padding=1),
        layer.BatchNorm2d(6),
        host.ParametricLIFNode(**options),
        layer.Flatten(),
        layer.Linear(6 * 4 * 4, 3),
    )
    functional.set_step_mode(net, step_mode)
    return fire(net)


def fire(net: nn.Module, bias: float = 1.0) -> nn.Module:
    """Raise what the norms give out, so that every layer fires and its threshold learns."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.weight, 2.0)
            nn.init.constant_(module.bias, bias)
    return net


def sample(step_mode: str = "m") -> Tensor:
    x = events(4, 3, 2, 8, 8)
    return x if step_mode == "m" else x[0]


def nodes_of(net: nn.Module) -> list[QuantizedNeuron]:
    return [m for m in net.modules() if isinstance(m, QuantizedNeuron)]


# --- 1: constructor arguments have moved --------------------------------------------------------


@pytest.mark.parametrize("reset", [0.25, None])
@pytest.mark.parametrize("kind", NODES)
def test_trap_1_every_constructor_argument_arrives_where_it_belongs(kind, reset):
    """Each value differs from its default, so that a shifted argument shows."""
    given = {
        "tau": 3.0,
        "init_tau": 3.0,
        "decay_input": False,
        "v_threshold": 1.5,
        "v_reset": reset,
        "surrogate_function": host_surrogate.ATan(alpha=3.0),
        "detach_reset": True,
        "step_mode": "m",
        "store_v_seq": True,
    }
    known = inspect.signature(kind).parameters
    old = kind(**{name: value for name, value in given.items() if name in known})
    new = spq.convert(nn.Sequential(old), MEMBRANE)[0]
    assert type(new) is NODES[kind]
    for name in set(known) & set(given) - {"surrogate_function", "init_tau"}:
        assert getattr(new, name) == given[name], name
    assert repr(new.surrogate_function) == repr(old.surrogate_function)
    if kind is host.ParametricLIFNode:
        assert torch.equal(new.w, old.w)


# --- 2: a threshold without gradient ------------------------------------------------------------


@pytest.mark.parametrize("built_in", [True, False])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_trap_2_the_threshold_has_a_gradient(step_mode, built_in):
    config = spq.presets.quant_snn(adaptive=True, **({"surrogate": None} if built_in else {}))
    net = spq.convert(network(step_mode), config, sample(step_mode))
    net(sample(step_mode)).square().sum().backward()
    for node in nodes_of(net):
        assert isinstance(node.v_threshold, nn.Parameter)
        assert node.v_threshold.grad.isfinite()
        assert node.v_threshold.grad != 0


# --- 3: stock dynamics in multi-step mode, and exporters that take it for a stock node ----------


@pytest.mark.parametrize("kind", NODES)
def test_trap_3_multi_step_mode_quantises(kind):
    node = spq.convert(nn.Sequential(kind(step_mode="m", store_v_seq=True)), MEMBRANE)[0]
    stock = kind(step_mode="m", store_v_seq=True)
    x = torch.randn(6, 50) + 0.5
    assert not torch.equal(node(x), stock(x))
    levels = (node.v_seq / node.membrane_unit).unique()
    assert set(levels.tolist()) <= {-1.0, 0.0, 1.0}
    assert len(stock.v_seq.unique()) > 50


@pytest.mark.parametrize("kind", NODES.values())
def test_trap_3_exporters_do_not_take_it_for_a_stock_node(kind):
    """The Lava exporter and the energy counter ask ``isinstance(..., LIFNode)``."""
    assert issubclass(kind, host.BaseNode)
    assert not issubclass(kind, tuple(NODES))


# --- 4: the cache of modules to reset -----------------------------------------------------------


def test_trap_4_the_reset_cache_does_not_outlive_a_conversion_in_place():
    net = network()
    net(sample())
    functional.reset_net(net)
    net(sample())
    functional.reset_net(net)  # from the cache
    old = list(net)  # kept alive: one dead reference would empty the cache
    spq.convert_(net, QUANT, sample())
    assert net[2] is not old[2]
    net(sample())
    assert all(isinstance(node.v, Tensor) for node in nodes_of(net))
    functional.reset_net(net)
    assert [node.v for node in nodes_of(net)] == [0.0, 0.0]


def test_trap_4_the_reset_cache_of_an_inner_part_is_renewed_too():
    net = nn.Sequential(network())
    functional.reset_net(net[0])
    old = list(net[0])
    spq.convert_(net, QUANT, sample())
    assert net[0][2] is not old[2]
    net(sample())
    functional.reset_net(net[0])
    assert [node.v for node in nodes_of(net)] == [0.0, 0.0]


# --- 5: one surrogate object for all neurons ----------------------------------------------------


def test_trap_5_the_default_surrogate_of_the_host_stays_unchanged():
    shared = inspect.signature(host.LIFNode).parameters["surrogate_function"].default
    before = repr(shared), dict(vars(shared)), shared.training
    net = network()
    assert net[2].surrogate_function is shared
    for config in (MEMBRANE, ADAPTIVE):
        new = spq.convert(net, config, sample())
        new(sample()).sum().backward()
        new.double().half().eval()
        assert new[2].surrogate_function is not shared
    assert repr(net[2].surrogate_function) == before[0]
    assert net[2].surrogate_function is shared
    assert vars(shared).keys() == before[1].keys()
    assert (repr(shared), shared.training, shared.spiking) == (before[0], before[2], True)


def test_trap_5_our_own_default_is_not_shared():
    nodes = [kind() for kind in NODES.values() for _ in range(2)]
    surrogates = {id(node.surrogate_function) for node in nodes}
    assert len(surrogates) == len(nodes)
    shared = inspect.signature(host.LIFNode).parameters["surrogate_function"].default
    assert repr(nodes[0].surrogate_function) == repr(shared)
    assert id(shared) not in surrogates


# --- 6: a running state with a graph cannot be copied -------------------------------------------


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_trap_6_conversion_after_a_forward_with_gradient(step_mode):
    net = network(step_mode, store_v_seq=True)
    net(sample(step_mode))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    held = [(m, m.v, m.v_seq) for m in net if isinstance(m, host.BaseNode)]
    values = [(v.clone(), v_seq.clone()) for _, v, v_seq in held]
    new = spq.convert(net, ADAPTIVE, sample(step_mode))
    for (module, v, v_seq), (value, seq) in zip(held, values, strict=True):
        assert module.v is v
        assert module.v_seq is v_seq
        assert v.grad_fn is not None
        assert torch.equal(v, value)
        assert torch.equal(v_seq, seq)
    assert [(node.v, node.v_seq) for node in nodes_of(new)] == [(0.0, None)] * 2
    copy.deepcopy(new)


def test_trap_6_conversion_in_place_starts_from_rest():
    net = network(v_reset=-0.25)
    net(sample())
    spq.convert_(net, MEMBRANE, sample())
    assert [node.v for node in nodes_of(net)] == [-0.25, -0.25]


# --- 7: states in half precision ----------------------------------------------------------------


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("autocast", [True, False])
def test_trap_7_the_state_stays_in_float32(step_mode, autocast):
    net, x = spq.convert(network(step_mode), ADAPTIVE, sample(step_mode)), sample(step_mode)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
    else:
        net.bfloat16()
        out = net(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [node.v.dtype for node in nodes_of(net)] == [torch.float32] * 2
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# --- 8: weights see no time ---------------------------------------------------------------------

LAYERS = {
    "Conv1d": ((2, 4, 3), (2, 9)),
    "Conv2d": ((2, 4, 3), (2, 7, 8)),
    "Conv3d": ((2, 4, 3), (2, 5, 6, 7)),
    "ConvTranspose1d": ((2, 4, 3), (2, 9)),
    "ConvTranspose2d": ((2, 4, 3), (2, 7, 8)),
    "ConvTranspose3d": ((2, 4, 3), (2, 4, 5, 6)),
    "Linear": ((2, 4), (2,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_trap_8_one_weight_serves_all_steps(name):
    arguments, shape = LAYERS[name]
    old = getattr(layer, name)(*arguments, step_mode="m")
    net = spq.convert(
        nn.Sequential(old),
        spq.SpQuantConfig(weights=spq.PowerOfTwoWeights(3), edge_weights=spq.PowerOfTwoWeights(3)),
    )
    new = net[0]
    assert type(new) is getattr(ours, f"Quantized{name}")
    assert isinstance(new, getattr(layer, name))
    assert torch.equal(net.state_dict()["0.weight"], old.weight)
    calls = []
    new.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    x = events(5, 3, *shape)
    together = new(x)
    assert len(calls) == 1
    functional.set_step_mode(net, "s")
    assert torch.equal(torch.stack([new(step) for step in x]), together)
    plain = getattr(layer, name)(*arguments)
    plain.load_state_dict({"weight": new.effective_weight().detach(), "bias": old.bias.detach()})
    torch.testing.assert_close(torch.stack([plain(step) for step in x]), together)


def test_trap_8_inside_a_container_as_well():
    net = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    new = spq.convert(net, spq.SpQuantConfig(weights=spq.TernaryWeights())).eval()
    assert isinstance(new[0], QuantizedLayer)
    x = events(5, 3, 2, 6, 6)
    y = new(x)
    assert y.shape == (5, 3, 4, 4, 4)
    assert torch.equal(y, torch.stack([new(step[None])[0] for step in x]))


# --- 9: layers of the host are subclasses of torch's --------------------------------------------


class Plain(layer.Conv2d):
    """A user's class that computes as its base does."""


class Own(layer.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_trap_9_layers_are_matched_along_the_hierarchy():
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3), Plain(3, 3, 3), nn.Conv2d(3, 3, 3), layer.Conv2d(3, 4, 1)
    )
    new = spq.convert(net, spq.SpQuantConfig(weights=spq.PowerOfTwoWeights(2)))
    assert all(isinstance(m, QuantizedLayer) for m in new)
    assert [isinstance(m, base.StepModule) for m in new] == [True, True, False, True]
    by_name = spq.SpQuantConfig(
        overrides={"Conv2d": spq.SpQuantConfig(weights=spq.TernaryWeights())}
    )
    assert len(spq.status(spq.convert(net, by_name))) == 4


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda: layer.WSConv2d(2, 3, 3), "WSConv2d overrides Conv2d.forward"),
        (lambda: layer.WSLinear(2, 3), "WSLinear overrides Linear.forward"),
        (lambda: Own(2, 3, 3), "Own overrides Conv2d.forward"),
        (lambda: parametrizations.weight_norm(layer.Conv2d(2, 3, 3)), "its weight is parametrized"),
    ],
)
def test_trap_9_a_layer_that_would_lose_its_way_is_refused(odd, words):
    net = nn.Sequential(layer.Conv2d(2, 2, 3), nn.ModuleDict({"odd": odd()}), layer.Conv2d(2, 2, 3))
    with pytest.raises(UnsupportedModuleError) as caught:
        spq.convert(net, spq.SpQuantConfig(weights=spq.PowerOfTwoWeights(2)))
    message = str(caught.value)
    assert "1.odd (" in message
    assert words in message
    assert "exclude=[...]" in message
    left = spq.convert(net, spq.SpQuantConfig(weights=spq.TernaryWeights()), exclude="1.odd")
    assert type(left[1]["odd"]) is type(net[1]["odd"])


# --- 10: step modes inside containers -----------------------------------------------------------


def containers() -> dict[str, nn.Module]:
    """A neuron in each kind of container, in the mode that the container wants."""
    inside = layer.SeqToANNContainer(nn.Linear(4, 4))
    inside.append(host.LIFNode(step_mode="s"))
    step_mode = layer.StepModeContainer(True, "m", layer.Linear(4, 4), host.IFNode())
    return {
        "SeqToANNContainer": inside,
        "MultiStepContainer": layer.MultiStepContainer(layer.Linear(4, 4), host.LIFNode()),
        "StepModeContainer": step_mode,
        "ElementWise": layer.ElementWiseRecurrentContainer(
            nn.Sequential(layer.Linear(4, 4), host.LIFNode()), torch.add, step_mode="m"
        ),
        "LinearRecurrent": layer.LinearRecurrentContainer(
            nn.Sequential(layer.Linear(4, 4), host.IFNode(store_v_seq=True)), 4, 4, step_mode="m"
        ),
    }


@pytest.mark.parametrize("name", containers())
def test_trap_10_a_neuron_in_a_container_keeps_its_step_mode(name):
    net, x = containers()[name], events(5, 3, 4)
    new = spq.convert(net, QUANT, x)
    modes, got = (
        {path: m.step_mode for path, m in each.named_modules() if hasattr(m, "step_mode")}
        for each in (net, new)
    )
    assert modes
    assert got == modes
    (node,) = nodes_of(new)
    out = new(x)
    assert out.shape == (5, 3, 4)
    if name == "SeqToANNContainer":  # here the neuron sees one batch of T * N
        assert node.v.shape == (15, 4)
        return
    assert node.v.shape == (3, 4)
    # A copy fed one step per call, in the container's place.
    alone = copy.deepcopy(spq.convert(net, QUANT, x))
    functional.set_step_mode(alone, "s")
    calls = nn.Sequential(*alone) if isinstance(alone, nn.Sequential) else alone
    assert torch.equal(torch.stack([calls(step) for step in x]), out)


# --- neurons that are left alone or refused -----------------------------------------------------


class Derived(host.LIFNode):
    """A user's own dynamics may hide here."""


@pytest.mark.parametrize(
    "make",
    [
        Derived,
        host.TernaryLIFNode,
        host.EIFNode,
        host.IzhikevichNode,
        lambda: host.PSN(T=4),
        lambda: host.SimpleLIFNode(2.0, True),
    ],
)
def test_neurons_with_other_dynamics_are_refused_by_name(make):
    odd = make()
    name = type(odd).__name__
    net = nn.ModuleDict({"lif": host.LIFNode(), "odd": odd})
    with pytest.raises(UnsupportedModuleError) as caught:
        spq.convert(net, MEMBRANE)
    assert f"odd ({name}): {name} " in str(caught.value)
    assert ("has dynamics" if name != "Derived" else "code") + " of its own" in str(caught.value)
    assert "convertible are IFNode, LIFNode, ParametricLIFNode" in str(caught.value)
    assert "exclude=[...]" in str(caught.value)
    new = spq.convert(net, MEMBRANE, exclude="odd")
    assert type(new["odd"]) is type(odd)
    assert type(new["lif"]) is neuron.TernaryMembraneLIFNode


def test_a_read_out_that_does_not_spike_is_kept_and_said():
    net = nn.Sequential(host.LIFNode(), host.NonSpikingLIFNode(), layer.SynapseFilter())
    table = spq.plan(net, MEMBRANE)
    assert [row.action for row in table][-3:] == ["convert", "keep", "keep"]
    assert "does not spike" in table["1"].reason
    assert "stateful" in table["2"].reason


def test_a_random_encoder_draws_nothing_from_the_callers_generator():
    net = nn.Sequential(encoding.PoissonEncoder(), layer.Linear(6, 5), host.LIFNode())
    x = torch.rand(4, 6)
    torch.manual_seed(3)
    want = torch.rand(5)
    torch.manual_seed(3)
    spq.convert(net, QUANT, x)
    assert torch.equal(torch.rand(5), want)


# --- tools of the host on a converted network ---------------------------------------------------


def test_step_modes_switch_and_agree():
    net, x = spq.convert(network(), QUANT, sample()).eval(), sample()
    together = net(x)
    assert all((node.v != 0).any() for node in nodes_of(net))
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    assert torch.equal(torch.stack([net(step) for step in x]), together)


def test_detaching_cuts_the_graph_and_keeps_the_state():
    net = spq.convert(network(), ADAPTIVE, sample())
    net(sample())
    before = [node.v.clone() for node in nodes_of(net)]
    functional.detach_net(net)
    for node, v in zip(nodes_of(net), before, strict=True):
        assert node.v.grad_fn is None
        assert torch.equal(node.v, v)
    copy.deepcopy(net)
    net(sample()).sum().backward()


def test_memories_stay_out_of_the_state_dict():
    net = spq.convert(network(), ADAPTIVE, sample())
    keys = set(net.state_dict())
    net(sample())
    assert set(net.state_dict()) == keys
    assert keys - set(network().state_dict()) == {
        f"{path}.{key}"
        for path in (2, 6)
        for key in ("membrane_unit", "v_threshold", "threshold_bounds")
    } | {"4.weight_quantizer.alpha", "4.weight_quantizer.seen"}


def test_self_firing_is_warned_about_with_the_largest_safe_unit():
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.0))
    with pytest.warns(
        SelfFiringWarning, match=r"^2: fires without input.*Use a unit below 1"
    ) as all_:
        net = spq.convert(nn.Sequential(host.LIFNode(), nn.ReLU(), host.IFNode()), config)
    assert len(all_) == 1
    # The warning is true: stored once, the level fires for ever after.
    net[2](torch.tensor([0.9]))
    assert [net[2](torch.zeros(1)).item() for _ in range(2)] == [1, 0]


# --- thresholds per channel ---------------------------------------------------------------------


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_thresholds_per_channel_count_the_channels_of_the_sample(step_mode):
    net = spq.convert(network(step_mode), PER_CHANNEL, sample(step_mode))
    assert [node.v_threshold.shape for node in nodes_of(net)] == [(4,), (6,)]
    net(sample(step_mode)).square().sum().backward()
    assert all((node.v_threshold.grad != 0).any() for node in nodes_of(net))


def test_thresholds_per_channel_of_attention():
    """Its neurons see [T, N, 3C, L], [T, N, heads, C / heads, L] and [T, N, C, L]."""
    attention, x = fire(SpikingSelfAttention(dim=8, num_heads=2), bias=2.0), events(3, 2, 8, 5)
    new = spq.convert(attention, PER_CHANNEL, x)
    sizes = {
        name: m.v_threshold.numel()
        for name, m in new.named_modules()
        if isinstance(m, QuantizedNeuron)
    }
    assert sizes == {"qkv_lif": 24, "attn_lif": 2, "proj_lif": 8}
    assert new.attn_lif.v_threshold.unique().item() == 0.5
    assert new(x).shape == x.shape
    functional.reset_net(new)
    # The second head's neurons alone follow the second threshold.
    seen = {}
    new.attn_lif.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    with torch.no_grad():
        new.attn_lif.v_threshold[1] = 1.0
        new.eval()(x)
        for head, value in enumerate((0.5, 1.0)):
            alone = neuron.TernaryMembraneLIFNode(
                v_threshold=value,
                membrane=spq.TernaryMembrane(unit=0.5),
                step_mode="m",
            )
            assert torch.equal(alone(seen["x"][:, :, head]), seen["out"][:, :, head])
        assert 0 < seen["out"].mean() < 1


def test_an_outer_network_resets_a_part_that_was_converted_in_place():
    net = nn.Sequential(nn.Sequential(layer.Linear(2, 2), host.LIFNode()))
    functional.reset_net(net)  # the host now remembers which modules to reset
    kept = list(net.modules())
    spq.convert_(net[0], spq.presets.quant_snn())
    net(torch.ones(1, 2))
    functional.reset_net(net)
    assert net[0][1].v == 0.0
    assert len(kept) == 5
