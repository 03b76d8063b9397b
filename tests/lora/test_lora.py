"""Adapters: nothing changes but what is trained, and all of it can be undone."""

from __future__ import annotations

import pytest
import torch
from adapters import PROMPTS, attach, fill, output
from tiny_flow import TinyFlow

from rlr_core.diffusion.models import peft_layers
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError
from rlr_core.lora.apply import apply_lora


def modules_of(model):
    """Every module of what an adapter can go into, by network and path."""
    return {
        (name, path): module
        for name, network in model.networks.items()
        for path, module in network.named_modules()
        if path
    }


# --- attaching ---


def test_a_new_adapter_changes_nothing_bit_for_bit(tiny_model):
    before = output(tiny_model)
    adapter = attach(tiny_model, rank=4, targets="all")
    assert torch.equal(output(tiny_model), before)
    fill(adapter)
    assert not torch.allclose(output(tiny_model), before, atol=1e-3)


def test_only_the_adapter_gets_gradients(tiny_model):
    adapter = fill(attach(tiny_model, rank=2, targets="all"))
    parameters = {p for module in modules_of(tiny_model).values() for p in module.parameters()}
    trainable = {id(p) for p in parameters if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters()}
    output(tiny_model).square().sum().backward()
    assert all((p.grad is not None) == (id(p) in trainable) for p in parameters)
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_adapter_is_float32_on_a_half_precision_base(tiny_sd_folder, dtype):
    model = load_model(tiny_sd_folder, device="cpu", dtype=dtype)
    adapter = fill(attach(model, rank=2, targets="all", text_encoder=True))
    output(model).sum().backward()
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in adapter.parameters()} == {torch.float32}
    for network in (model.unet, model.text_encoder):
        assert {p.dtype for p in network.parameters() if not p.requires_grad} == {model.dtype}


def step_with_gradients(model, parameters):
    """Output, gradients of the latents and the parameters, and bytes of activations kept for them."""
    networks = (model.unet, model.text_encoder)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = model.encode_prompts(PROMPTS)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model.denoise(latents, 401.0, rows)
    gradients = torch.autograd.grad(result.square().sum(), [latents, *parameters])
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    return result, gradients, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_on_a_half_precision_base_the_adapter_keeps_no_float32_activations(tiny_sd_folder, text_encoder):
    """Bit for bit what peft computes, at a fraction of the memory that its casts hold."""
    model = load_model(tiny_sd_folder, device="cpu", dtype="bf16")
    base = step_with_gradients(model, [])[2]
    adapter = fill(attach(model, rank=1, targets="attention+ff", text_encoder=text_encoder))
    result, gradients, kept = step_with_gradients(model, adapter.parameters())
    for layer in adapter.layers.values():
        plain = torch.nn.Linear(layer.in_features, 1, bias=False)
        plain.weight = layer.lora_A["rlr"].weight
        layer.lora_A["rlr"], layer.cast_input_dtype_enabled = plain, True
    as_in_peft = step_with_gradients(model, adapter.parameters())
    assert torch.equal(result, as_in_peft[0])
    assert all(map(torch.equal, gradients, as_in_peft[1]))
    assert kept - base < 0.5 * (as_in_peft[2] - base)


def test_the_start_depends_on_the_seed_alone(tiny_model):
    def start(seed, global_seed):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        adapter = attach(tiny_model, rank=4, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        state = adapter.state_dict()
        adapter.detach()
        return state

    first, again, other = start(1, 10), start(1, 20), start(2, 10)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[n], other[n]) for n in first if n.endswith("lora_A.weight"))


def test_the_start_is_the_usual_one(tiny_model):
    """A uniform in +-1/sqrt(inputs), B zero: what peft and kohya's scripts start from."""
    adapter = attach(tiny_model, rank=8, targets="all")
    for name, parameter in adapter.named_parameters().items():
        parameter = parameter.detach()
        if name.endswith("lora_B.weight"):
            assert not parameter.any()
            continue
        bound = parameter[0].numel() ** -0.5
        assert parameter.abs().max() <= bound and parameter.abs().max() > 0.9 * bound
        if parameter.numel() >= 256:
            assert float(parameter.std()) == pytest.approx(bound / 3**0.5, rel=0.15)


def test_parameters_come_in_sorted_order(tiny_model):
    names = list(attach(tiny_model, rank=2, targets="all").named_parameters())
    assert len(names) > 8
    assert names == sorted(names, key=lambda name: (name.startswith("text_encoder."), name))


def test_the_named_targets_grow(tiny_model):
    attention, with_ff, everything = (
        set(tiny_model.lora_layers(targets)) for targets in ("attention", "attention+ff", "all")
    )
    assert attention < with_ff < everything


def test_stable_diffusion_targets_are_every_projection_of_its_blocks(sd):
    paths = set(sd.lora_layers("all"))
    rest = {
        name for name, module in sd.unet.named_modules()
        if isinstance(module, torch.nn.Linear) and f"unet.{name}" not in paths
    }  # fmt: skip
    assert rest == {"time_embedding.linear_1", "time_embedding.linear_2"}
    assert any(name.endswith("to_out.0") for name in sd.lora_layers("attention"))


def test_targets_may_be_a_list_of_endings(sd):
    adapter = attach(sd, rank=2, targets=["attn2.to_k", "mid_block.resnets.0.conv1"])
    assert all(path.endswith(("attn2.to_k", "mid_block.resnets.0.conv1")) for path in adapter.layers)
    assert "unet.mid_block.resnets.0.conv1" in adapter.layers and len(adapter.layers) == 5
    before = output(sd)
    fill(adapter)
    assert not torch.equal(output(sd), before)


def test_a_modules_rank_is_its_own_even_if_its_path_ends_another():
    """As in Flux: proj_out at the top and single_transformer_blocks.0.proj_out."""
    layers = torch.nn.ModuleDict({"out": torch.nn.Linear(8, 8), "other": torch.nn.Linear(8, 8)})
    denoiser = torch.nn.ModuleDict({"out": torch.nn.Linear(8, 8), "block": layers})
    sizes = {"net.block.other": (2, 2.0), "net.block.out": (2, 2.0), "net.out": (3, 5.0)}
    layers = peft_layers.inject({"net": denoiser}, sizes, torch.device("cpu"))
    ranks = {
        name: (layer.r[peft_layers.ADAPTER], layer.lora_alpha[peft_layers.ADAPTER])
        for name, layer in layers.items()
    }
    assert ranks == sizes


def test_targets_that_match_nothing_show_what_there_is(sd):
    with pytest.raises(UserError, match="No layer of .* is called query; .* to_q"):
        attach(sd, targets=["query"])
    with pytest.raises(UserError, match="Unknown LoRA targets 'atention'.*Did you mean 'attention'"):
        attach(sd, targets="atention")
    with pytest.raises(UserError, match="rank must be at least 1"):
        attach(sd, rank=0)
    with pytest.raises(UserError, match="alpha must be positive"):
        attach(sd, alpha=0)


def test_a_second_adapter_is_refused_and_leaves_the_first(tiny_model, tmp_path):
    adapter = fill(attach(tiny_model, rank=2))
    before = output(tiny_model)
    with pytest.raises(UserError, match="already has an adapter; detach"):
        attach(tiny_model, rank=4)
    file = adapter.save(tmp_path / "same.safetensors")
    with pytest.raises(UserError, match="already has an adapter; detach"):
        apply_lora(tiny_model, file)
    assert torch.equal(output(tiny_model), before) and len(adapter.layers) > 0


# --- the text encoder ---


def test_the_text_encoder_gets_a_lora_only_if_asked(sd):
    assert not any(name.startswith("text") for name in attach(sd, rank=2, targets="all").layers)


@pytest.mark.parametrize("targets, each", [("attention", 4), ("attention+ff", 6), ("all", 6)])
def test_the_text_encoders_layers_come_after_the_denoisers_which_stay_as_they_are(sd, targets, each):
    alone = attach(sd, rank=2, targets=targets, seed=3)
    before = alone.state_dict()
    alone.detach()
    state = attach(sd, rank=2, targets=targets, seed=3, text_encoder=True).state_dict()
    assert list(state)[: len(before)] == list(before)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    added = list(state)[len(before) :]
    assert added == sorted(added) and len(added) == 2 * 2 * each  # matrices, layers
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in added)


def test_a_list_of_endings_is_looked_for_in_both_networks(sd):
    def adapted(endings):
        adapter = attach(sd, rank=2, targets=endings, text_encoder=True)
        found = {name.partition(".")[0] == "text_encoder" for name in adapter.layers}
        adapter.detach()
        return found

    assert adapted(["to_q", "fc1"]) == {False, True}
    assert adapted(["q_proj"]) == {True}
    with pytest.raises(UserError, match=r"No layer of .* \(text_encoder\) is called to_q; .* q_proj"):
        adapted(["to_q"])


def test_a_family_without_a_text_encoder_refuses(tiny_sd_folder):
    with pytest.raises(UserError, match="tiny-flow-0 has no text encoder that can be trained"):
        attach(TinyFlow(), rank=2, text_encoder=True)


def test_a_text_encoder_is_taken_back_from_where_it_was_released_to(sd, monkeypatch):
    moves = []
    monkeypatch.setattr(type(sd.text_encoder), "to", lambda self, place: moves.append(str(place)) or self)
    sd.release_text_encoders()
    sd.device = torch.device("cpu:0")
    monkeypatch.setattr(
        torch.nn.ModuleDict, "to", lambda self, place: [m.to(place) for m in self.values()] and self
    )
    adapter = attach(sd, rank=2, text_encoder=True)
    sd.release_text_encoders()  # it is needed at every step: it stays
    assert moves == ["cpu", "cpu:0"]
    adapter.detach()
    sd.release_text_encoders()
    assert moves == ["cpu", "cpu:0", "cpu"]


# --- switching ---


def test_disabled_is_the_base_model_and_touches_no_gradient(tiny_model):
    base = output(tiny_model)
    adapter = fill(attach(tiny_model, rank=2, targets="all"))
    tuned = output(tiny_model)
    with adapter.disabled():
        assert torch.equal(output(tiny_model), base)
        assert all(p.requires_grad for p in adapter.parameters())
        with adapter.disabled():
            pass
        assert torch.equal(output(tiny_model), base)
    assert torch.equal(output(tiny_model), tuned)
    with pytest.raises(RuntimeError), adapter.disabled():
        raise RuntimeError
    assert torch.equal(output(tiny_model), tuned)


def test_strength_scales_what_alpha_scales(tiny_model):
    base = output(tiny_model)
    adapter = fill(attach(tiny_model, rank=4, alpha=8, targets="all"))
    tuned = output(tiny_model)
    adapter.strength = 0.5
    half = output(tiny_model)
    adapter.strength = 0.0
    torch.testing.assert_close(output(tiny_model), base, rtol=0, atol=1e-6)
    adapter.strength = 1.0
    assert torch.equal(output(tiny_model), tuned)
    adapter.detach()
    fill(attach(tiny_model, rank=4, alpha=4, targets="all"))
    assert torch.equal(output(tiny_model), half)


def test_detaching_gives_the_model_back(tiny_model):
    modules = modules_of(tiny_model)
    base = output(tiny_model)
    adapter = fill(attach(tiny_model, rank=2, targets="all"))
    assert modules_of(tiny_model) != modules
    adapter.detach()
    assert list(modules_of(tiny_model).items()) == list(modules.items())  # the very same objects, in order
    assert torch.equal(output(tiny_model), base)
    assert not any(p.requires_grad for module in modules.values() for p in module.parameters())
    assert not any(hasattr(module, "peft_config") for module in modules.values())
    assert attach(tiny_model, rank=3).parameters()


def test_state_goes_round_and_is_a_copy(tiny_model):
    adapter = fill(attach(tiny_model, rank=2))
    state = adapter.state_dict()
    tuned = output(tiny_model)
    fill(adapter, seed=5)
    assert not torch.equal(output(tiny_model), tuned)
    adapter.load_state_dict(state)
    assert torch.equal(output(tiny_model), tuned)


def test_state_of_another_adapter_is_refused_by_name(tiny_model):
    adapter = attach(tiny_model, rank=2)
    state = adapter.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match=f"{name} is missing; extra.weight is unknown"):
        adapter.load_state_dict({n: t for n, t in state.items() if n != name} | {"extra.weight": state[name]})
    with pytest.raises(UserError, match=f"{name} has shape"):
        adapter.load_state_dict(state | {name: torch.zeros(1, 1)})
    assert all(torch.equal(t, state[n]) for n, t in adapter.state_dict().items())
