"""Conversion: what changes, what stays, and what is refused with which words."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import snntorch as snn
import torch
from networks import Loop, snn_torch, spiking_jelly
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.functional.conv_bn_fusion import fuse_conv_bn_eval_modules
from torch import nn

import spquant_plugin as spq
from spquant_plugin.modules.neuron import QuantizedNeuron
from spquant_plugin.modules.quantized_layer import QuantizedLayer
from spquant_plugin.spikingjelly.neuron import TernaryMembraneLIFNode

QUANT = spq.presets.quant_snn(weight_bits=2)
ADAPTIVE = spq.presets.quant_snn(weight_bits=4, adaptive=True)


def events(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape).float()


CASES = {
    "spikingjelly": (spiking_jelly, lambda: events(3, 2, 2, 8, 8)),
    "snntorch hidden": (snn_torch, lambda: events(4, 5)),
    "snntorch loop": (Loop, lambda: events(3, 4, 5)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, sample = CASES[request.param]
    return make(), sample()


def first(output):
    return output[0] if isinstance(output, tuple) else output


# --- what conversion leaves alone ---------------------------------------------------------------


def test_an_empty_configuration_changes_nothing(case):
    model, sample = case
    same = spq.convert(model, spq.SpQuantConfig(), sample)
    assert [type(m) for m in same.modules()] == [type(m) for m in model.modules()]
    for (name, a), (other, b) in zip(
        model.state_dict().items(), same.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    spq.reset(model)
    assert torch.equal(first(same.eval()(sample)), first(model.eval()(sample)))


def test_the_original_is_neither_run_nor_reset_nor_changed(case):
    model, sample = case
    model(sample)  # a running state, with a graph
    calls = []
    hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    types = [type(m) for m in model.modules()]
    states = [
        (m, name, value)
        for m in model.modules()
        for name, value in [*getattr(m, "_memories", {}).items(), *m._buffers.items()]
    ]
    modes = [m.training for m in model.modules()]
    generator = torch.get_rng_state()
    spq.convert(model, ADAPTIVE, sample)
    spq.plan(model, ADAPTIVE, sample)
    for hook in hooks:
        hook.remove()  # a surrogate of the host is shared by all networks
    assert not calls
    assert torch.equal(generator, torch.get_rng_state())
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(getattr(m, name) is value for m, name, value in states)
    assert [m.training for m in model.modules()] == modes


def test_conversion_in_place_keeps_the_very_parameters(case):
    model, sample = case
    parameters = {id(p) for p in model.parameters()}
    assert spq.convert_(model, QUANT, sample) is model
    assert {id(p) for p in model.parameters()} == parameters
    assert spq.status(model)


def test_keys_of_the_float_model_stay(case):
    model, sample = case
    converted = spq.convert(model, ADAPTIVE, sample)
    old, new = set(model.state_dict()), set(converted.state_dict())
    assert old <= new
    ends = ("membrane_unit", "threshold_bounds", "v_threshold", "quantizer.alpha", "quantizer.seen")
    assert all(key.endswith(ends) for key in new - old)


def test_a_tied_parameter_stays_tied():
    model = nn.Sequential(nn.Linear(3, 3), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    converted = spq.convert(model, QUANT)
    assert converted[2].weight is converted[0].weight
    assert converted[0].weight is not model[0].weight


def test_a_shared_module_is_converted_once_and_stays_shared():
    shared = nn.Linear(3, 3)
    lif = neuron.LIFNode()
    model = nn.Sequential(shared, lif, shared, lif, nn.Linear(3, 2))
    plan = spq.plan(model, QUANT, events(1, 3))
    assert plan["2"].action == "shared"
    assert "same module as 0" in plan["2"].reason
    converted = spq.convert(model, QUANT, events(1, 3))
    assert converted[0] is converted[2]
    assert converted[1] is converted[3]
    assert isinstance(converted[0], QuantizedLayer)


# --- what conversion does -----------------------------------------------------------------------


def test_every_module_has_a_row(case):
    model, sample = case
    for given in (None, sample):
        plan = spq.plan(model, QUANT, given)
        paths = [row.path for row in plan]
        assert len(paths) == len(set(paths))
        for path, _ in model.named_modules():
            inside = any(path.startswith(row.path + ".") for row in plan if row.action == "convert")
            if path and not inside:
                assert path in paths
        text = str(plan)
        assert all(row.path in text and row.reason in text for row in plan)


def test_first_and_last_layer_follow_the_order_of_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body, self.stem = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)
            self.unused = nn.Linear(4, 4)
            self.lif = neuron.LIFNode()

        def forward(self, x):
            return self.head(self.lif(self.body(self.lif(self.stem(x)))))

    model = Backwards()
    traced = spq.plan(model, QUANT, events(2, 3))
    assert {row.path: row.bits for row in traced if row.action == "quantize"} == {
        "stem": "8",
        "body": "2",
        "head": "8",
        "unused": "2",
    }
    assert "not called" in traced["unused"].reason
    registered = spq.plan(model, QUANT)
    assert {row.path: row.bits for row in registered if row.action == "quantize"} == {
        "head": "8",
        "body": "2",
        "stem": "2",
        "unused": "8",
    }


def test_edge_weights_none_keeps_the_edges_in_float_and_says_so(case):
    model, sample = case
    config = spq.SpQuantConfig(
        membrane=spq.TernaryMembrane(), weights=spq.TernaryWeights(), edge_weights=None
    )
    if sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 2:
        with pytest.raises(spq.errors.SelectionError, match="asks for weight layers"):
            spq.plan(model, config, sample)
        return
    plan = spq.plan(model, config, sample)
    kept = [row for row in plan if "edge_weights=None" in row.reason]
    assert len(kept) == 2
    assert all(row.action == "keep" for row in kept)


def test_overrides_and_selectors():
    model = spiking_jelly()
    config = spq.presets.quant_snn(
        overrides={
            "4": spq.SpQuantConfig(weights=spq.UniformWeights(4)),
            "0": spq.SpQuantConfig(weights=spq.UniformWeights(6)),
            "re:[26]": None,
            "IFNode": QUANT,
        }
    )
    plan = spq.plan(model, config, events(2, 1, 2, 8, 8))
    assert plan["4"].bits == "4"
    assert plan["0"].bits == "6"  # an exact path goes before the rule for edges
    assert plan["8"].bits == "8"
    assert plan["2"].action == plan["6"].action == "keep"  # an expression before a class
    assert "left alone by override 're:[26]'" in plan["2"].reason


def test_include_and_exclude_cover_what_a_container_holds():
    model = nn.Module()
    model.a = spiking_jelly()
    model.b = spiking_jelly()
    converted = spq.convert(model, QUANT, include="a", exclude=["a.6", "re:a\\.4"])
    changed = {row.path for row in spq.status(converted)}
    assert changed == {"a.0", "a.2", "a.8"}
    by_class = spq.convert(model, QUANT, include=["BaseNode"])
    assert {row.path for row in spq.status(by_class)} == {"a.2", "a.6", "b.2", "b.6"}


def test_a_converted_neuron_keeps_its_options():
    old = neuron.LIFNode(
        tau=4.0,
        decay_input=False,
        v_threshold=0.7,
        v_reset=None,
        detach_reset=True,
        step_mode="m",
        store_v_seq=True,
    )
    old.eval()
    new = spq.convert(old, spq.SpQuantConfig(membrane=spq.TernaryMembrane()))
    assert isinstance(new, TernaryMembraneLIFNode)
    for name in ("tau", "decay_input", "v_threshold", "v_reset", "detach_reset", "step_mode"):
        assert getattr(new, name) == getattr(old, name)
    assert new.store_v_seq
    assert not new.training
    assert type(new.surrogate_function) is type(old.surrogate_function)


def test_hooks_travel_with_a_module():
    model = nn.Sequential(nn.Linear(2, 2), neuron.LIFNode(), nn.Linear(2, 2))
    seen = []
    for module in model:
        module.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    spq.convert(model, QUANT)(events(1, 2))
    assert seen == ["QuantizedLinear", "TernaryMembraneLIFNode", "QuantizedLinear"]


def test_a_threshold_alone_gives_the_same_spikes_as_before(case):
    model, sample = case
    adaptive = spq.convert(model, spq.SpQuantConfig(threshold=spq.LearnableThreshold()), sample)
    assert not any(isinstance(m, QuantizedLayer) for m in adaptive.modules())
    spq.reset(model)
    assert torch.equal(first(adaptive.eval()(sample)), first(model.eval()(sample)))


@pytest.mark.parametrize("config", [QUANT, ADAPTIVE], ids=["quant", "adaptive"])
def test_life_of_a_converted_model(case, config):
    model, sample = case
    net = spq.convert(model, config, sample)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    first(net(sample)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    optimizer.step()
    spq.reset(net)
    net.eval()
    expected = first(net(sample)).detach()

    spq.reset(net)
    twin = copy.deepcopy(net)
    assert torch.equal(first(twin(sample)), expected)

    spq.reset(twin)
    loaded = pickle.loads(pickle.dumps(twin))
    assert torch.equal(first(loaded(sample)), expected)

    again = spq.convert(model, config, sample)
    again.load_state_dict(net.state_dict())
    assert torch.equal(first(again.eval()(sample)), expected)

    spq.reset(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(first(compiled(sample)), expected)
    torch._dynamo.reset()

    spq.reset(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert first(net(sample)).isfinite().all()


def test_steps_and_sequence_agree_in_eval_mode():
    sample = events(5, 2, 2, 8, 8)
    net = spq.convert(spiking_jelly(), ADAPTIVE, sample).eval()
    whole = net(sample)
    spq.reset(net)
    functional.set_step_mode(net, "s")
    assert torch.equal(torch.stack([net(step) for step in sample]), whole)


def test_reset_reaches_every_depth(case):
    model, sample = case
    holder = nn.ModuleDict({"deep": nn.ModuleList([spq.convert(model, QUANT, sample)])}).eval()
    net = holder["deep"][0]
    before = first(net(sample))
    spq.reset(holder)
    assert torch.equal(first(net(sample)), before)


def test_convert_after_a_forward_with_gradient(case):
    model, sample = case
    first(model(sample)).sum().backward()
    model.cached = [first(model(sample))]  # an activation that deepcopy would refuse
    converted = spq.convert(model, QUANT, sample).eval()
    spq.reset(model)
    fresh = spq.convert(model, QUANT, sample).eval()
    assert torch.equal(first(converted(sample)), first(fresh(sample)))


# --- input --------------------------------------------------------------------------------------


def test_an_analogue_input_is_quantised_where_it_is_read():
    class TwoReaders(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = layer.AvgPool2d(2)
            self.main = layer.Conv2d(1, 3, 3, padding=1)
            self.lif = neuron.LIFNode()
            self.deep = layer.Conv2d(3, 3, 3, padding=1)
            self.short = layer.Conv2d(1, 3, 1)

        def forward(self, x):
            x = self.pool(x) * 1.0
            return self.lif(self.deep(self.lif(self.main(x))) + self.short(x))

    sample = torch.rand(2, 1, 12, 12)
    plan = spq.plan(TwoReaders(), spq.presets.quant_snn(input=spq.UniformInput(bits=8)), sample)
    assert {row.path for row in plan if "input 8 bit" in row.reason} == {"main", "short"}
    assert plan["(input)"].action == "quantize"
    net = spq.convert(
        TwoReaders(), spq.presets.quant_snn(input=spq.UniformInput(bits=8)), sample
    ).eval()
    sample = torch.rand(2, 1, 6, 6)
    rounded = (sample * 255).round() / 255
    assert torch.equal(net.main(sample), net.main(rounded))
    steps = (sample * 255).round()
    weight = net.main.effective_weight()
    slow = torch.nn.functional.conv2d(steps, weight, padding=1) / 255
    slow = slow + net.main.bias.view(-1, 1, 1)
    assert torch.allclose(net.main(sample), slow, atol=1e-6)


def test_a_sample_that_is_not_integer_is_a_row_and_no_error():
    model = spiking_jelly()
    assert "not integer" in spq.plan(model, QUANT, torch.rand(1, 1, 2, 8, 8))["(input)"].reason
    assert "not integer" not in spq.plan(model, QUANT, events(1, 1, 2, 8, 8))["(input)"].reason


# --- checkpoints --------------------------------------------------------------------------------


def test_a_float_checkpoint_loads_and_everything_is_fitted_anew(case):
    model, sample = case
    trained = copy.deepcopy(copy_of(model))
    for parameter in trained.parameters():
        parameter.data *= 3 * torch.rand_like(parameter) + 0.1
    for module in trained.modules():
        if isinstance(module, snn.Leaky):
            module.threshold.fill_(1.5)
    expected = spq.convert(trained, ADAPTIVE, sample).eval()
    net = spq.convert(model, ADAPTIVE, sample).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("threshold"):
            parameter.data *= 1.3  # what was learned since gives way to the checkpoint
    report = spq.load_float_state_dict(net, trained.state_dict())
    assert report
    assert set(report.loaded) == set(trained.state_dict())
    for key, value in expected.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    assert torch.equal(first(net(sample)), first(expected(sample)))


def copy_of(model):
    spq.reset(model)
    return model


def test_a_checkpoint_that_does_not_fit_loads_nothing():
    model = spiking_jelly()
    net = spq.convert(model, ADAPTIVE)
    state = {key: value + 1 for key, value in model.state_dict().items()}
    state["extra.weight"] = state.pop("0.weight")
    state["8.bias"] = torch.zeros(7)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.warns(spq.errors.CheckpointWarning, match="nothing was loaded") as caught:
        report = spq.load_float_state_dict(net, state)
    assert not report
    assert report.missing == ("0.weight",)
    assert report.unexpected == ("extra.weight",)
    assert report.mismatched == ("8.bias (7,) for (3,)",)
    for word in ("0.weight", "extra.weight", "8.bias", "Remove or rename"):
        assert word in str(caught[0].message)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_checkpoint_with_nan_loads_nothing():
    model = spiking_jelly()
    net = spq.convert(model, QUANT)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["4.weight"][0, 0, 0, 0] = float("nan")
    state["0.weight"] += 1
    with pytest.raises(spq.errors.CheckpointError, match=r"4\.weight holds 1 NaN or infinite"):
        spq.load_float_state_dict(net, state)
    assert torch.equal(net.state_dict()["0.weight"], model.state_dict()["0.weight"])


# --- fold and calibrate -------------------------------------------------------------------------


def test_fold_gives_plain_layers_with_the_quantised_weights(case):
    model, sample = case
    net = spq.convert(model, QUANT, sample)
    net.eval()
    plain = spq.fold(net)
    assert not any(isinstance(m, QuantizedLayer) for m in plain.modules())
    assert set(plain.state_dict()) == {k for k in net.state_dict() if "quantizer" not in k}
    assert torch.allclose(first(plain(sample)), first(net(sample)), atol=1e-5)
    layers = [m for m in net.modules() if isinstance(m, QuantizedLayer)]
    twins = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for ours, theirs in zip(layers, twins, strict=True):
        assert torch.equal(ours.effective_weight(), theirs.weight)
        assert type(theirs) in type(ours).__mro__


def test_fold_lets_the_hosts_own_tools_go_on():
    sample = events(2, 2, 2, 8, 8)
    net = spq.convert(spiking_jelly(), QUANT, sample)
    spq.calibrate(net, [sample])
    net.eval()
    expected = net(sample)
    fused = fuse_conv_bn_eval_modules(spq.fold(net))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert torch.allclose(fused(sample), expected, atol=1e-5)


def test_fold_refuses_a_layer_that_quantises_its_input():
    net = spq.convert(spiking_jelly(), spq.presets.quant_snn(input=spq.UniformInput()))
    with pytest.raises(spq.errors.ConversionError, match=r"0 \(QuantizedConv2d\) quantises its"):
        spq.fold(net)


def test_calibrate_measures_plain_averages_and_restores_the_rest():
    net = spq.convert(spiking_jelly(), QUANT)
    net[5].eval()
    batches = [events(3, 2, 2, 8, 8) for _ in range(3)]
    weights = [p.detach().clone() for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    spq.calibrate(net, [(batch, "label") for batch in batches], progress=True)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert net[1].momentum == 0.1
    assert net[2].v == 0.0
    net.eval()
    currents = [net[0](batch).flatten(0, 1) for batch in batches]
    means = torch.stack([c.mean((0, 2, 3)) for c in currents]).mean(0)
    variances = torch.stack([c.transpose(0, 1).flatten(1).var(1) for c in currents]).mean(0)
    assert torch.allclose(net[1].running_mean, means, atol=1e-5)
    assert torch.allclose(net[1].running_var, variances, atol=1e-5)


def test_calibrate_says_what_is_wrong():
    with pytest.raises(spq.errors.ConversionError, match="no batch norm"):
        spq.calibrate(nn.Linear(1, 1), [torch.ones(1, 1)])
    with pytest.raises(spq.errors.ConversionError, match="at least one batch"):
        spq.calibrate(spiking_jelly(), [])
    with pytest.raises(spq.errors.ConversionError, match="each batch must be a tensor"):
        spq.calibrate(spiking_jelly(), ["text"])


# --- bad input ----------------------------------------------------------------------------------


def refused(model, config=QUANT, sample=None, **options):
    with pytest.raises(spq.SpQuantError) as caught:
        spq.convert(model, config, sample, **options)
    return str(caught.value)


def test_nothing_matched():
    message = refused(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert "asks for neurons, and none was matched" in message
    message = refused(nn.Sequential(neuron.LIFNode()))
    assert "asks for weight layers" in message
    with pytest.warns(spq.SpQuantWarning, match="none was matched"):
        spq.convert(nn.Sequential(nn.ReLU()), QUANT, on_unmatched="warn")
    spq.convert(nn.Sequential(nn.ReLU()), QUANT, on_unmatched="ignore")


def test_a_selector_without_match_names_the_closest_paths():
    model = nn.ModuleDict({"features": spiking_jelly(), "classifier": nn.Linear(2, 2)})
    message = refused(model, exclude="clasifier")
    assert "exclude: selector 'clasifier' matches no module" in message
    assert "'classifier'" in message
    assert "LIFNode" in refused(model, include="LIFNodes")
    config = spq.presets.quant_snn(overrides={"feature.0": None})
    assert "overrides: selector 'feature.0'" in refused(model, config)
    assert "not a regular expression" in refused(model, include="re:(")
    assert "non-empty string" in refused(model, include=[3])


def test_an_unsupported_neuron_names_path_and_type():
    model = nn.Sequential(nn.Linear(2, 2), neuron.EIFNode(), nn.Linear(2, 2))
    message = refused(model)
    assert "1 (EIFNode)" in message
    assert "LIFNode" in message
    assert "exclude" in message
    assert spq.plan(model, QUANT)["1"].action == "refuse"

    class Mine(neuron.LIFNode):
        pass

    assert "0 (Mine): Mine is a subclass of LIFNode with code of its own" in refused(
        nn.Sequential(Mine(), neuron.LIFNode(), nn.Linear(2, 2))
    )


@pytest.mark.parametrize(
    "odd",
    [nn.Bilinear(2, 2, 2), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1), nn.Embedding(3, 2)],
    ids=lambda module: type(module).__name__,
)
def test_an_unsupported_layer_names_path_and_type(odd):
    model = nn.Sequential(nn.Linear(2, 2), neuron.LIFNode(), odd)
    message = refused(model)
    assert f"2 ({type(odd).__name__})" in message
    assert "Conv2d" in message
    for selector in ("2", type(odd).__name__):
        converted = spq.convert(model, QUANT, exclude=selector)
        assert not any(isinstance(m, QuantizedLayer) for m in converted[2].modules())


def test_layers_whose_way_of_computing_would_be_lost():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    message = refused(nn.Sequential(Scaled(2, 2), neuron.LIFNode()))
    assert "0 (Scaled): Scaled overrides Linear.forward" in message
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert "parametrized" in refused(nn.Sequential(normed, neuron.LIFNode()))
    assert "run the model once first" in refused(nn.Sequential(nn.LazyLinear(2), neuron.LIFNode()))
    assert "overrides" in refused(nn.Sequential(layer.WSConv2d(2, 2, 3), neuron.LIFNode()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value):
    model = nn.Sequential(nn.Linear(2, 2), neuron.LIFNode())
    model[0].weight.data[0, 0] = value
    message = refused(model)
    assert "0 (Linear)" in message
    assert "1 NaN or infinite values of 4" in message


def test_a_sample_of_the_wrong_shape():
    message = refused(spiking_jelly(), QUANT, events(1, 1, 3, 8, 8))
    assert "sample of shape (1, 1, 3, 8, 8)" in message
    assert "tuple of arguments" in message
    assert "must be a tensor" in refused(spiking_jelly(), QUANT, "sample")


def test_converting_twice():
    once = spq.convert(spiking_jelly(), QUANT)
    message = refused(once)
    assert "already converted" in message
    assert "0 (QuantizedConv2d)" in message
    more = spq.convert(
        spq.convert(spiking_jelly(), spq.SpQuantConfig(membrane=spq.TernaryMembrane())),
        spq.SpQuantConfig(weights=spq.TernaryWeights()),
    )
    assert len(spq.status(more)) == 5  # what the first stage left alone may follow in a second


def test_one_module_cannot_get_two_configurations():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "lif": neuron.LIFNode()})
    message = refused(model, exclude="b")
    assert "a and b are one shared module" in message


def test_arguments_of_the_wrong_kind():
    assert "must be a torch.nn.Module" in refused({"weight": 1})
    assert "must be a SpQuantConfig" in refused(spiking_jelly(), {"membrane": "ternary"})
    assert "'error', 'warn' or 'ignore'" in refused(spiking_jelly(), on_unmatched="skip")
    with pytest.raises(spq.errors.ConversionError, match="convert_ cannot replace"):
        spq.convert_(nn.Linear(2, 2), spq.SpQuantConfig(weights=spq.TernaryWeights()))


def test_a_threshold_per_channel_needs_a_sample():
    config = spq.SpQuantConfig(threshold=spq.LearnableThreshold(per_channel=True))
    message = refused(spiking_jelly(), config)
    assert "2 (LIFNode)" in message
    assert "a sample to convert" in message
    net = spq.convert(spiking_jelly(), config, events(2, 1, 2, 8, 8))
    assert net[2].v_threshold.shape == (4,)
    assert net[6].v_threshold.shape == (6,)


def test_self_firing_is_warned_about_once_per_layer():
    model = nn.Sequential(neuron.IFNode(), neuron.IFNode())
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.0))
    with pytest.warns(spq.errors.SelfFiringWarning) as caught:
        spq.convert(model, config)
    texts = [str(warning.message) for warning in caught]
    assert [text.split(":")[0] for text in texts] == ["0", "1"]
    assert "unit below 1" in texts[0]
    assert "1 * 1 * unit 1 reaches the threshold 1" in texts[0]
    assert "fires without input" in spq.plan(model, config)["0"].reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spq.convert(model, spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=0.99)))


# --- status -------------------------------------------------------------------------------------


def test_status_lists_what_is_converted(case):
    model, sample = case
    assert not spq.status(model)
    assert str(spq.status(model)) == "no converted modules"
    net = spq.convert(model, ADAPTIVE, sample)
    alphas = [b.clone() for name, b in net.named_buffers() if name.endswith("alpha")]
    text = str(spq.status(net))
    rows = {row.path for row in spq.status(net)}
    converted = {
        p for p, m in net.named_modules() if isinstance(m, QuantizedNeuron | QuantizedLayer)
    }
    assert rows == converted
    assert "levels -1..1" in text
    assert "learns (gpw)" in text
    after = [b for name, b in net.named_buffers() if name.endswith("alpha")]
    assert all(torch.equal(a, b) for a, b in zip(alphas, after, strict=True))


# --- what must not go wrong without a word ------------------------------------------------------


def test_a_forward_that_was_replaced_on_the_object_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), neuron.LIFNode())
    model[0].forward = lambda x: x
    assert "replaced on this very object" in refused(model)


def test_an_attribute_called_recurrent_does_not_move_the_edges():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lif, self.recurrent = (
                nn.Linear(3, 3),
                neuron.LIFNode(),
                nn.Linear(3, 3),
            )

        def forward(self, x):
            return self.recurrent(self.lif(self.first(x)))

    assert spq.plan(Block(), QUANT, events(1, 3))["first"].bits == "8"


def test_a_request_for_a_quantised_input_that_finds_no_place():
    rule = spq.UniformInput()
    first_fires = nn.Sequential(neuron.LIFNode(), nn.Linear(3, 2), neuron.LIFNode())
    config = spq.presets.quant_snn(input=rule)
    assert "weight layers that read the raw input" in refused(first_fires, config, events(1, 3))
    plan = spq.plan(spiking_jelly(), config, events(1, 1, 2, 8, 8), exclude="4")
    assert plan["(input)"].reason == "quantised where it is read: 0"
    late = spq.presets.quant_snn(overrides={"4": spq.presets.quant_snn(input=rule)})
    with pytest.raises(spq.errors.SelectionError, match="read the raw input"):
        spq.plan(spiking_jelly(), late, events(1, 1, 2, 8, 8))


def test_a_layer_that_reads_spikes_beside_the_input_is_left_as_it_is():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lif, self.b = nn.Linear(3, 3), neuron.LIFNode(), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.lif(self.a(x)) + x)

    plan = spq.plan(Mixed(), spq.presets.quant_snn(input=spq.UniformInput()), torch.rand(1, 3))
    assert "input 8 bit" in plan["a"].reason
    assert "input 8 bit" not in plan["b"].reason
    assert "not the raw input alone" in plan["b"].reason


def test_the_dry_run_works_on_a_copy_of_the_sample():
    sample = -torch.ones(1, 2)
    spq.plan(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2), neuron.LIFNode()), QUANT, sample)
    assert torch.equal(sample, -torch.ones(1, 2))


def test_a_warning_that_is_an_error_comes_before_any_change():
    model = nn.Sequential(neuron.IFNode())
    config = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=1.0))
    with pytest.raises(spq.errors.SelfFiringWarning):
        spq.convert_(model, config)
    assert type(model[0]) is neuron.IFNode


def test_a_refused_checkpoint_leaves_the_model_as_it_was():
    model = Loop()
    net = spq.convert(model, QUANT)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = {key: value + 1 for key, value in model.state_dict().items()}
    state["lif1.reset_mechanism_val"] = state["lif2.reset_mechanism_val"] = torch.tensor(0)
    state["lif2.threshold"] = torch.tensor(-1.0)
    with pytest.raises(spq.errors.ConversionError, match="not above the rest potential"):
        spq.load_float_state_dict(net, state)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    state["lif1.reset_mechanism_val"] = torch.tensor(1)
    with pytest.warns(spq.errors.CheckpointWarning, match="lif1.reset_mechanism_val 1 for 0"):
        assert not spq.load_float_state_dict(net, state)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("float.pt", "state_dict = str: must map keys to tensors"),
        ({"state_dict": {}}, r"state_dict\['state_dict'\] = dict: every value must be a tensor"),
    ],
)
def test_what_is_no_checkpoint(state, said):
    with pytest.raises(spq.errors.CheckpointError, match=said):
        spq.load_float_state_dict(spq.convert(Loop(), QUANT), state)


def test_calibrate_restores_the_statistics_after_an_error():
    net = spiking_jelly()
    net[1].running_mean += 3
    good = events(2, 2, 2, 8, 8)
    for batches, said in (
        ([good, "text"], "each batch must be a tensor"),
        ([good, good * float("nan")], "1 .BatchNorm2d.: the batches gave NaN"),
        (good, "must be a sequence of batches"),
    ):
        with pytest.raises(spq.errors.ConversionError, match=said):
            spq.calibrate(net, batches)
        assert torch.equal(net[1].running_mean, torch.full((4,), 3.0))
        assert net[2].v == 0.0
        assert net.training


def test_fold_keeps_ties_and_one_to_one_weights():
    tied = nn.Sequential(nn.Linear(3, 3), neuron.LIFNode(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    plain = spq.fold(spq.convert(tied, QUANT))
    assert plain[0].weight is plain[2].weight

    # The same weight at an edge (8 bit), inside (2 bit) and in a layer that was left alone.
    mixed = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(3, 3), neuron.LIFNode())))
    for at in (2, 4):
        mixed[at].weight = mixed[0].weight
    net = spq.convert(mixed, QUANT, exclude="4").eval()
    plain = spq.fold(net)
    assert torch.equal(plain[0].weight, net[0].effective_weight())
    assert torch.equal(plain[2].weight, net[2].effective_weight())
    assert torch.equal(plain[4].weight, mixed[4].weight)
    assert not torch.equal(plain[0].weight, plain[2].weight)

    net = nn.Sequential(nn.Linear(5, 6), snn.RLeaky(0.9, all_to_all=False, V=0.3, init_hidden=True))
    net = spq.convert(net, spq.SpQuantConfig(weights=spq.UniformWeights(4))).eval()
    plain, x = spq.fold(net), events(2, 5)
    assert plain[1].V is plain[1].recurrent.V
    for _ in range(4):
        assert torch.allclose(plain(x), net(x), atol=1e-6)


def test_a_refused_fold_leaves_nothing_behind():
    net = spq.convert(snn_torch(), spq.presets.quant_snn(input=spq.UniformInput()))
    known = len(snn.SpikingNeuron.instances)
    with pytest.raises(spq.errors.ConversionError):
        spq.fold(net)
    assert len(snn.SpikingNeuron.instances) == known


@pytest.mark.parametrize("call", [spq.status, spq.reset, spq.fold])
def test_what_is_no_model(call):
    with pytest.raises(spq.errors.ConversionError, match="model = the class Linear: must be a"):
        call(nn.Linear)
    with pytest.raises(spq.errors.ConversionError, match="model = str"):
        call("model.pt")


def test_a_record_class_instead_of_a_record():
    with pytest.raises(spq.errors.ConfigError, match=r"Call it: TernaryMembrane\(\)"):
        TernaryMembraneLIFNode(membrane=spq.TernaryMembrane)
    with pytest.raises(spq.errors.ConfigError, match="learnable_threshold = True"):
        TernaryMembraneLIFNode(learnable_threshold=True)
    with pytest.raises(spq.errors.ConfigError, match="adaptive=LearnableThreshold"):
        spq.presets.quant_snn(adaptive=spq.LearnableThreshold())


def test_constants_must_be_finite_and_ordered():
    given = spq.SpQuantConfig(membrane=spq.TernaryMembrane(unit=0.5))
    assert "must be finite" in refused(nn.Sequential(snn.Leaky(beta=float("nan"))), given)
    at_rest = nn.Sequential(neuron.LIFNode(v_threshold=1.0, v_reset=1.0))
    assert "not above the rest" in refused(at_rest, spq.SpQuantConfig(spq.TernaryMembrane()))
    with pytest.warns(spq.errors.SelfFiringWarning, match="whatever the unit"):
        spq.convert(at_rest, given)


def test_training_goes_on_exactly_from_a_state_dict():
    net = spq.convert(spiking_jelly(), spq.presets.quant_snn(4), events(2, 2, 2, 8, 8))
    twin = spq.convert(spiking_jelly(), spq.presets.quant_snn(4), events(2, 2, 2, 8, 8))
    with torch.no_grad():
        net[4].weight *= 3  # a change that alpha has not followed yet
    twin.load_state_dict(net.state_dict())
    x = events(2, 2, 2, 8, 8)
    for _ in range(3):
        assert torch.equal(twin(x), net(x))
        spq.reset(net)
        spq.reset(twin)
        assert torch.equal(twin[4].weight_quantizer.alpha, net[4].weight_quantizer.alpha)
