"""Weights in every form that ComfyUI keeps them in: gradients stay exact, autograd keeps none of them."""

from __future__ import annotations

import json

import pytest
import torch
from native_runs import chain_of, family, norm, random_adapter, slopes

FP8 = torch.float8_e4m3fn


def quantized(build, name, form, **conf):
    """The sockets of a tiny model whose linear layers lie in one of ComfyUI's quantised formats."""
    import comfy.ops

    if not hasattr(comfy.ops, "mixed_precision_ops"):
        pytest.skip("this ComfyUI has no quantised layers")
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    if form not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {form}")
    weights = build(name).model.model.diffusion_model.state_dict()
    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    sockets = build(name, operations=operations)
    network = sockets.model.model.diffusion_model
    linear = {path for path, module in network.named_modules() if isinstance(module, operations.Linear)}
    with torch.inference_mode():
        state = {}
        for key, tensor in weights.items():
            path, _, last = key.rpartition(".")
            if path not in linear or last != "weight":
                state[key] = tensor
                continue
            layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
            state |= QuantizedTensor.from_float(tensor, layout, scale="recalculate").state_dict(key)
            text = json.dumps({"format": form, **conf}).encode()
            state[f"{path}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        network.load_state_dict(state, strict=False)
    kept = {
        path: type(module.weight.data).__name__ for path, module in network.named_modules() if path in linear
    }
    assert linear and set(kept.values()) == {"QuantizedTensor"}
    return sockets


def scaled_fp8_of_older_versions(build, name):
    import comfy.ops

    if not hasattr(comfy.ops, "scaled_fp8_ops"):
        pytest.skip("this ComfyUI has another form of scaled fp8")
    return build(name, operations=comfy.ops.scaled_fp8_ops(override_dtype=FP8), manual_cast=torch.float32)


def gguf_pack():
    """The ComfyUI-GGUF pack's module, whose parts are imported from it; skips where it is not installed."""
    import importlib
    import importlib.util
    import sys
    import types

    from comfy_process import comfyui

    folder = comfyui() / "custom_nodes/ComfyUI-GGUF"
    if not (folder / "ops.py").is_file() or importlib.util.find_spec("gguf") is None:
        pytest.skip("ComfyUI-GGUF is not installed in this ComfyUI")
    if "gguf_pack" not in sys.modules:
        sys.modules["gguf_pack"] = types.ModuleType("gguf_pack")
        sys.modules["gguf_pack"].__path__ = [str(folder)]
    return lambda part: importlib.import_module(f"gguf_pack.{part}")


def gguf(build, name):
    """Linear layers in Q8_0, as the ComfyUI-GGUF pack keeps them, behind the pack's own patcher."""
    pack = gguf_pack()
    import gguf as library

    module = pack("ops")
    weights = build(name).model.model.diffusion_model.state_dict()
    sockets = build(name, operations=module.GGMLOps)
    network, kind, packed = sockets.model.model.diffusion_model, library.GGMLQuantizationType, 0
    linear = {path for path, layer in network.named_modules() if isinstance(layer, module.GGMLOps.Linear)}
    with torch.inference_mode():
        state = {}
        for key, tensor in weights.items():
            path, _, last = key.rpartition(".")
            form, data = kind.F32, tensor.clone()
            if path in linear and last == "weight" and tensor.shape[1] % 32 == 0:
                form, packed = kind.Q8_0, packed + 1
                data = torch.from_numpy(library.quants.quantize(tensor.numpy(), form))
            state[key] = module.GGMLTensor(data, tensor_type=form, tensor_shape=tensor.shape)
        network.load_state_dict(state, strict=False)
        sockets.model = pack("nodes").GGUFModelPatcher.clone(sockets.model)
    assert packed
    return sockets


FORMS = {
    "gguf": gguf,
    "bf16 cast": lambda build, name: build(name, dtype=torch.bfloat16, manual_cast=torch.float32),
    "fp8 cast": lambda build, name: build(name, dtype=FP8, manual_cast=torch.float32),
    "scaled fp8, old": scaled_fp8_of_older_versions,
    "scaled fp8": lambda build, name: quantized(
        build, name, "float8_e4m3fn", full_precision_matrix_mult=True
    ),
    "mxfp8": lambda build, name: quantized(build, name, "mxfp8", full_precision_matrix_mult=True),
    "nvfp4": lambda build, name: quantized(build, name, "nvfp4", full_precision_matrix_mult=True),
}


def problem(model):
    """A number that a step of the chain goes into, what it depends on, and the adapter."""
    chain, conditioning = chain_of(model)
    adapter = random_adapter(model)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *model.latent_shape(*model.default_size), generator=generator).requires_grad_()
    return (lambda: chain.mean(x, 3, conditioning).double().square().mean()), [x, *adapter.parameters()]


@pytest.mark.parametrize("name", ["wan21", "flux", "sdxl"])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_finite_differences(native, build, name, form):
    model = family(native, FORMS[form](build, name))
    with native.running(model):
        value, inputs = problem(model)
        found, wanted = slopes(value, inputs)
        assert found == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize(
    ("form", "most"), [("float8_e4m3fn", 0.05), ("int8_tensorwise", 0.02), ("mxfp8", 0.05), ("nvfp4", 0.2)]
)
def test_quantized_matrix_products_have_the_straight_through_gradient(native, build, form, most):
    """Where activations are rounded too, the gradient is that of the same weights without this rounding."""
    rounded = quantized(build, "wan21", form)
    plain = build("wan21")
    with torch.inference_mode():
        for path, module in rounded.model.model.diffusion_model.named_modules():
            if hasattr(module, "_full_precision_mm"):
                module._full_precision_mm = False  # as on devices that compute in this form
                weight = plain.model.model.diffusion_model.get_submodule(path).weight
                weight.copy_(module.weight.dequantize())
    gradients = []
    for sockets in (plain, rounded):
        model = family(native, sockets)
        with native.running(model):
            value, inputs = problem(model)
            gradients.append(torch.autograd.grad(value(), inputs))
    exact, through = gradients
    difference = norm([a - b for a, b in zip(exact, through, strict=True)]) / norm(exact)
    print(f"{form}: {difference:.1%} off the gradient without rounding")
    assert 0 < difference < most


@pytest.mark.parametrize("name", ["wan21", "flux", "sdxl"])
def test_offloaded_weights_with_an_upstream_lora_give_the_same_gradient(
    native, build, name, tmp_path, monkeypatch
):
    """Every layer cast when needed, the patch applied on the fly, against a patched model at full load."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    with native.running(family(native, build(name))) as model:
        path = random_adapter(model, rank=4).save(tmp_path / "upstream.safetensors")
        layers = len(model.lora_layers("attention"))

    def sockets():
        made = build(name)
        with torch.inference_mode():
            file = comfy.utils.load_torch_file(str(path))
            made.model, _ = comfy.sd.load_lora_for_models(made.model, None, file, 0.7, 0.0)
        assert len(made.model.patches) == layers
        return made

    def measured(made):
        model = family(native, made)
        with native.running(model):
            value, inputs = problem(model)
            number = value()
            gradient = torch.autograd.grad(number, inputs)
            network = model.networks["diffusion_model"]
            functions = [m for m in network.modules() if getattr(m, "weight_function", None)]
            return number, gradient, len(functions), slopes(value, inputs)

    number, gradient, on_the_fly, _ = measured(sockets())
    assert on_the_fly == 0
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", _load_next_to_nothing)
    found, again, on_the_fly, (slope, difference) = measured(sockets())
    assert on_the_fly == layers
    assert float(found) == pytest.approx(float(number), rel=1e-5)
    assert norm([a - b for a, b in zip(gradient, again, strict=True)]) < 1e-4 * norm(gradient)
    assert slope == pytest.approx(difference, rel=2e-3)


@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_gguf_with_an_upstream_lora_is_trained_and_given_back(native, build, name, tmp_path):
    """The pack keeps patches on its quantised tensors; its patcher samples afterwards as before."""
    import comfy.sd
    import comfy.utils
    from native_runs import ksampler, noise_of

    with native.running(family(native, build(name))) as model:
        path = random_adapter(model, rank=4).save(tmp_path / "upstream.safetensors")
    sockets = gguf(build, name)
    plain = sockets.model
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path))
        sockets.model, _ = comfy.sd.load_lora_for_models(plain, None, file, 0.7, 0.0)
    noise = noise_of(family(native, sockets)).initial()
    before = ksampler(sockets, noise, "simple", 3, 1.0)
    model = family(native, sockets)
    with native.running(model):
        assert type(model.patcher).__name__ == "GGUFModelPatcher"
        value, inputs = problem(model)
        found, wanted = slopes(value, inputs)
        assert found == pytest.approx(wanted, rel=2e-3)
    assert torch.equal(ksampler(sockets, noise, "simple", 3, 1.0), before)
    assert not torch.equal(ksampler(sockets, noise, "simple", 3, 1.0, model=plain), before)


def _load_next_to_nothing(patchers, **options):
    for patcher in patchers:
        patcher.patch_model(patcher.load_device, lowvram_model_memory=1)


@pytest.mark.parametrize("name", ["wan21", "flux", "sdxl"])
def test_autograd_keeps_no_weight(native, build, name):
    """Neither the stored weights nor what they are cast to."""
    sockets = build(name, dtype=torch.bfloat16, manual_cast=torch.float32)
    model = family(native, sockets)
    with native.running(model):
        value, inputs = problem(model)
        shapes = {
            module.weight.shape
            for path, module in model.networks["diffusion_model"].named_modules()
            if path in set(model.adaptable("diffusion_model"))
        }
        own = {tuple(parameter.shape) for parameter in inputs[1:]}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            value()
        assert kept
        weights = {tuple(shape) for shape in shapes} - own
        assert not [shape for shape in kept if tuple(shape) in weights and len(shape) == 2]
