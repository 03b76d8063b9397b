"""A LoRA that was trained through the nodes, in stock CheckpointLoaderSimple + LoraLoader + KSampler.

On a thin checkpoint of Stable Diffusion 1.5's shape; what the LoRA does to the denoiser and to the text
encoder is compared with diffusers' and transformers' networks.
"""

from __future__ import annotations

import logging

import pytest
import torch
from thin_sd15 import write_checkpoint

NAME = "thin.safetensors"
TIME = 500


@pytest.fixture(scope="module")
def trained(pack, base):
    """(LORA_MODEL, file name, {prefix in it: network}): two updates, alpha other than rank, on every layer.

    The networks are diffusers' UNet and transformers' text encoder.
    """
    from comfy_process import execute_in

    unet, text = write_checkpoint(base / "models/checkpoints" / NAME)
    run = execute_in(pack)
    (model,) = run("RLR_LoadCheckpoint", checkpoint=NAME)
    (prompts,) = run("RLR_Prompts", text="a red circle\na dog")
    (reward,) = run("RLR_Reward", reward="brightness")
    lora, *_ = run(
        "RLR_Train", model=model, prompts=prompts, reward=reward, run_name="thin", steps=2, batch=2,
        samples_per_prompt=2, sampler_steps=2, guidance=2.0, width=64, height=64, rank=2, alpha=5.0,
        targets="all", text_encoder=True, learning_rate=0.05, evaluation_samples=2,
    )  # fmt: skip
    run("RLR_SaveLoRA", lora=lora, name="thin")
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(base / "output/loras"))  # as main.py does
    return lora, "thin.safetensors", {"lora_unet_": unet, "lora_te_text_model_": text}


@pytest.fixture(scope="module")
def stock(trained):
    """MODEL and CLIP of CheckpointLoaderSimple, the CLIP in float32, so that nothing of a LoRA is rounded."""
    from comfy.cli_args import args

    import nodes

    usual, args.fp32_text_enc = args.fp32_text_enc, True
    with torch.inference_mode():
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(NAME)
    args.fp32_text_enc = usual
    return model, clip


def in_comfyui(model, x, context):
    """The denoiser's output with ComfyUI's network, as it samples."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network = model.model.diffusion_model
        parameter = next(network.parameters())
        return network(x.to(parameter.dtype), torch.tensor([TIME]), context.to(parameter.dtype)).float()


def in_diffusers(unet, x, context):
    with torch.no_grad():
        return unet(x, torch.tensor([TIME]), encoder_hidden_states=context).sample


def with_lora(networks, lora):
    """Copies of the networks with alpha / rank * up down added to their weights, by the names in the file."""
    import copy

    networks = copy.deepcopy(networks)
    places = {
        prefix + path.removeprefix("text_model.").replace(".", "_"): module
        for prefix, network in networks.items()
        for path, module in network.named_modules()
    }
    for key in [key for key in lora if key.endswith(".lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        up, down = lora[key], lora[f"{name}.lora_down.weight"]
        change = float(lora[f"{name}.alpha"]) / down.shape[0] * (up.flatten(1) @ down.flatten(1))
        places[name].weight.data += change.view_as(places[name].weight)
    return networks


def told_in_comfyui(clip, prompt):
    """What stock CLIPTextEncode tells the denoiser, [1, 77, 768]."""
    import nodes

    with torch.inference_mode():
        ((conditioning,),) = nodes.CLIPTextEncode().encode(clip, prompt)
        return conditioning[0].float().clone()


def told_in_transformers(text, clip, prompt):
    """The same by transformers' network, for ComfyUI's tokens."""
    (tokens,) = clip.tokenize(prompt)["l"]
    with torch.no_grad():
        return text(torch.tensor([[token for token, _ in tokens]]))[0]


def relative(theirs, ours, what):
    """|theirs - ours| / |ours|, also printed."""
    error = float((theirs - ours).norm() / ours.norm())
    print(f"{what}: relative error {error:.1e}, size {float(ours.norm()):.3g}")
    return error


@pytest.fixture(scope="module")
def tuned(trained, stock):
    """MODEL and CLIP of LoraLoader, with what it logged."""
    import nodes

    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    with torch.inference_mode():
        model, clip = nodes.LoraLoader().load_lora(*stock, trained[1], 1.0, 1.0)
    logging.getLogger().removeHandler(handler)
    return model, clip, said


def test_stock_nodes_load_all_of_it_with_the_effect_it_has_in_diffusers(trained, stock, tuned):
    lora, _, networks = trained
    ranks = {value.shape[0] for key, value in lora.items() if key.endswith("lora_down.weight")}
    alphas = {float(value) for key, value in lora.items() if key.endswith(".alpha")}
    assert ranks == {2} and alphas == {5.0}
    assert sum(key.startswith("lora_te_") for key in lora) == 3 * 12 * 6
    assert not [message for message in tuned[2] if "not loaded" in message.lower()]

    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 768)
    unets = networks["lora_unet_"], with_lora(networks, lora)["lora_unet_"]
    base, changed = (in_diffusers(unet, x, context) for unet in unets)
    theirs = in_comfyui(tuned[0], x, context) - in_comfyui(stock[0], x, context)
    assert (changed - base).norm() > 0.1
    assert relative(theirs, changed - base, "effect on the denoiser") < 1e-3


def test_the_text_encoders_part_has_the_effect_it_has_in_transformers(trained, stock, tuned):
    lora, _, networks = trained
    key = "lora_te_text_model_"
    texts = networks[key], with_lora(networks, lora)[key]
    base, changed = (told_in_transformers(text, stock[1], "a red dog") for text in texts)
    their_base, their_changed = (told_in_comfyui(clip, "a red dog") for clip in (stock[1], tuned[1]))
    assert relative(their_base, base, "the text encoder itself") < 1e-4
    assert (changed - base).norm() > 0.01 * base.norm()
    assert relative(their_changed - their_base, changed - base, "effect on the text encoder") < 1e-3


def test_both_parts_together_have_the_effect_they_have_in_diffusers(trained, stock, tuned):
    lora, _, networks = trained
    x = torch.randn(1, 4, 16, 16)
    ours = []
    for pair in (networks, with_lora(networks, lora)):
        told = told_in_transformers(pair["lora_te_text_model_"], stock[1], "a red dog")
        ours.append(in_diffusers(pair["lora_unet_"], x, told))
    theirs = [in_comfyui(m, x, told_in_comfyui(clip, "a red dog")) for m, clip in (stock, tuned[:2])]
    assert relative(theirs[1] - theirs[0], ours[1] - ours[0], "effect of both parts") < 1e-3


def test_the_text_encoder_of_stable_diffusion_2_is_called_as_comfyui_calls_it(pack, tmp_path):
    import comfy.lora
    from comfy.text_encoders.sd2_clip import SD2ClipModel
    from tiny_checkpoint import write_tiny_checkpoint

    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.lora import attach, load_lora

    write_tiny_checkpoint(tmp_path / "sd2.safetensors", "sd2")
    model = load_model(tmp_path / "sd2.safetensors", device="cpu")
    file = load_lora(attach(model, rank=2, text_encoder=True).save(tmp_path / "lora.safetensors"))
    places = comfy.lora.model_lora_keys_clip(SD2ClipModel(device="meta"), {})
    layer = "text_model.encoder.layers.1.self_attn.out_proj"
    assert f"lora_te_{layer.replace('.', '_')}" in file.modules
    assert places[f"lora_te_{layer.replace('.', '_')}"] == f"clip_h.transformer.{layer}.weight"
    assert {name for name in file.modules if name.startswith("lora_te_")} <= places.keys()


def sampled(model, clip):
    """Latents of stock KSampler."""
    import nodes

    with torch.inference_mode():
        (positive,) = nodes.CLIPTextEncode().encode(clip, "a dog")
        (negative,) = nodes.CLIPTextEncode().encode(clip, "")
        (latent,) = nodes.EmptyLatentImage().generate(128, 128)
        (out,) = nodes.KSampler().sample(
            model, 7, 4, 3.0, "euler", "normal", positive, negative, latent, denoise=1.0
        )
    return out["samples"].clone()


def test_a_part_of_the_steps_is_the_stock_lora_there_and_nothing_elsewhere(
    trained, stock, tuned, run, caplog
):
    lora, *_ = trained
    model, clip = stock
    whole = sampled(*tuned[:2])
    without = sampled(model, clip)
    same = {"model": model, "clip": clip, "lora": lora}
    size = (whole - without).norm()
    assert size > 0.1
    assert (sampled(*run("RLR_ApplyLoRA", **same)) - whole).norm() < 1e-3 * size
    nearly_all = run("RLR_ApplyLoRA", **same, end_percent=0.99)
    assert (sampled(*nearly_all) - whole).norm() < 1e-2 * size
    first_half = sampled(*run("RLR_ApplyLoRA", **same, end_percent=0.5))
    assert (first_half - whole).norm() > 3e-3 * size and (first_half - without).norm() > 3e-3 * size
    between_two_steps, told = run("RLR_ApplyLoRA", **same, start_percent=0.4, end_percent=0.6)
    assert torch.equal(sampled(between_two_steps, clip), without)
    assert torch.equal(told_in_comfyui(told, "a dog"), told_in_comfyui(tuned[1], "a dog"))
    assert torch.equal(sampled(model, clip), without), "the stock model itself was changed"
    assert not [message for message in caplog.messages if "not loaded" in message.lower()]


def test_without_a_clip_only_the_denoisers_part_is_applied(trained, stock, run, caplog):
    import nodes

    lora, file, _ = trained
    model, clip = stock
    with torch.inference_mode():
        (expected,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, file, 1.0)
    caplog.clear()
    ours, no_clip = run("RLR_ApplyLoRA", model=model, lora=lora)
    part, _ = run("RLR_ApplyLoRA", model=model, lora=lora, end_percent=0.99)
    assert no_clip is None
    expected = sampled(expected, clip)
    assert torch.equal(sampled(ours, clip), expected)
    size = (expected - sampled(model, clip)).norm()
    assert (sampled(part, clip) - expected).norm() < 1e-2 * size
    assert not [message for message in caplog.messages if "not loaded" in message.lower()]


def test_a_lora_of_another_model_is_refused_for_a_part_of_the_steps(trained, stock, run):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match="another model"):
        run("RLR_ApplyLoRA", model=stock[0], lora={"x.lora_up.weight": torch.ones(1, 1)}, end_percent=0.5)
