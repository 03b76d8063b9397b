"""What cannot be trained is refused by name, in one sentence; signatures tell models apart."""

from __future__ import annotations

import pytest
import torch
from native_runs import family, random_adapter


def refused(native, sockets, match):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match=match) as caught:
        family(native, sockets)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("sampler_cfg_function", "cfg formula"),
        ("sampler_post_cfg_function", "cfg formula"),
        ("sampler_pre_cfg_function", "cfg formula"),
        ("sampler_calc_cond_batch_function", "conditionings"),
        ("model_function_wrapper", "wraps"),
        ("denoise_mask_function", "differential"),
        ("context_handler", "context windows"),
    ],
)
def test_what_kSampler_would_do_and_the_chain_would_not(native, build, option, named):
    sockets = build("wan21")
    sockets.model = sockets.model.clone()
    sockets.model.model_options[option] = (
        [lambda args: args] if "post" in option or "pre" in option else object()
    )
    refused(native, sockets, named)


def test_compiled_models(native, build):
    import comfy.patcher_extension

    sockets = build("wan21")
    sockets.model = sockets.model.clone()
    kinds = comfy.patcher_extension.WrappersMP
    sockets.model.add_wrapper_with_key(
        kinds.APPLY_MODEL, "torch.compile", lambda executor, *args, **kwargs: None
    )
    refused(native, sockets, "compile")


def test_models_of_other_engines(native, build):
    sockets = build("wan21")
    sockets.model.model.diffusion_model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    refused(native, sockets, "ComfyUI's own layers")


def test_latents_of_several_streams(native, build):
    sockets = build("wan21")

    class Nested:
        is_nested = True

    sockets.latent = {"samples": Nested()}
    refused(native, sockets, "several streams")


@pytest.mark.parametrize("flag", ["sage", "flash"])
def test_attention_without_a_gradient(native, build, flag, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, f"{flag}_attention_enabled", lambda: True)
    refused(native, build("wan21"), f"--use-{flag}-attention")


@pytest.mark.parametrize(
    ("name", "value"),
    [("control", object()), ("area", (1, 1, 0, 0)), ("mask", torch.ones(1)), ("start_percent", 0.1)],
)
def test_conditionings_with_more_on_them_than_a_text(native, build, name, value):
    from rlr_core.errors import UserError

    sockets = build("wan21")
    sockets.clip.extras = lambda length: {name: value}
    with pytest.raises(UserError, match="cannot be trained"):
        family(native, sockets).encode_prompts(["a cat"])


def test_hooks_that_give_several_conditionings(native, build):
    from rlr_core.errors import UserError

    sockets = build("wan21")
    encode = sockets.clip.encode_from_tokens_scheduled
    sockets.clip.encode_from_tokens_scheduled = lambda text: encode(text) * 2
    with pytest.raises(UserError, match="hooks"):
        family(native, sockets).encode_prompts(["a cat"])


def test_a_lora_on_the_text_encoder(native, build):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match="RLR Load Checkpoint"):
        family(native, build("sd15")).lora_layers("attention", text_encoder=True)


def test_unknown_schedulers_and_foreign_kernels(native, build):
    from rlr_core.config import SamplerConfig
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match="simple"):
        family(native, build("sd15"), scheduler="nonsense").schedule(SamplerConfig())
    with pytest.raises(UserError, match="ddim"):
        family(native, build("sd15")).schedule(SamplerConfig(kernel="flow_grpo"))
    with pytest.raises(UserError, match="flow_ddim"):
        family(native, build("flux")).schedule(SamplerConfig(kernel="ddim"))


def test_signatures_tell_weights_patches_and_strengths_apart(native, build, tmp_path):
    import comfy.sd
    import comfy.utils

    first = family(native, build("flux"))
    assert first.signature() == family(native, build("flux")).signature()
    with native.running(first):
        path = random_adapter(first).save(tmp_path / "lora.safetensors")

    def patched(strength):
        sockets = build("flux")
        file = comfy.utils.load_torch_file(str(path))
        sockets.model, _ = comfy.sd.load_lora_for_models(sockets.model, None, file, strength, 0.0)
        return sockets

    other_weight = build("flux")
    with torch.inference_mode():
        other_weight.model.model.diffusion_model.img_in.weight[0, 0] += 1
    found = [
        first.signature(),
        family(native, patched(1.0)).signature(),
        family(native, patched(0.5)).signature(),
        family(native, other_weight).signature(),
        family(native, build("chroma")).signature(),
    ]
    assert len(set(found)) == len(found)


def test_the_signature_stays_while_patches_are_baked_in(native, build, tmp_path):
    import comfy.sd
    import comfy.utils

    with native.running(family(native, build("flux"))) as model:
        path = random_adapter(model).save(tmp_path / "lora.safetensors")
    sockets = build("flux")
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(path))
        sockets.model, _ = comfy.sd.load_lora_for_models(sockets.model, None, file, 1.0, 0.0)
    model = family(native, sockets)
    before = model.signature()
    with native.running(model):
        model.load_weights()
        assert model.patcher.backup and model.signature() == before
