"""A LoRA that was trained through the nodes, in stock CheckpointLoaderSimple + LoraLoader + KSampler.

On a thin checkpoint of Stable Diffusion 1.5's shape; what the LoRA does is compared with diffusers' network.
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
    """(LORA_MODEL, file name, diffusers' UNet): two updates with alpha other than rank, on every layer."""
    from comfy_process import execute_in

    unet = write_checkpoint(base / "models/checkpoints" / NAME)
    run = execute_in(pack)
    (model,) = run("RLR_LoadCheckpoint", checkpoint=NAME)
    (prompts,) = run("RLR_Prompts", text="a red circle\na dog")
    (reward,) = run("RLR_Reward", reward="brightness")
    lora, *_ = run(
        "RLR_Train", model=model, prompts=prompts, reward=reward, run_name="thin", steps=2, batch=2,
        samples_per_prompt=2, sampler_steps=2, guidance=2.0, width=64, height=64, rank=2, alpha=5.0,
        targets="all", learning_rate=0.05, evaluation_samples=2,
    )  # fmt: skip
    run("RLR_SaveLoRA", lora=lora, name="thin")
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(base / "output/loras"))  # as main.py does
    return lora, "thin.safetensors", unet


@pytest.fixture(scope="module")
def stock(trained):
    """MODEL and CLIP of CheckpointLoaderSimple."""
    import nodes

    with torch.inference_mode():
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(NAME)
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


def with_lora(unet, lora):
    """A copy of the network with alpha / rank * up down added to its weights, by the names in the file."""
    import copy

    unet = copy.deepcopy(unet)
    places = {f"lora_unet_{path.replace('.', '_')}": module for path, module in unet.named_modules()}
    for key in [key for key in lora if key.endswith(".lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        up, down = lora[key], lora[f"{name}.lora_down.weight"]
        change = float(lora[f"{name}.alpha"]) / down.shape[0] * (up.flatten(1) @ down.flatten(1))
        places[name].weight.data += change.view_as(places[name].weight)
    return unet


def test_stock_nodes_load_all_of_it_with_the_effect_it_has_in_diffusers(trained, stock, caplog):
    import nodes

    lora, file, unet = trained
    ranks = {value.shape[0] for key, value in lora.items() if key.endswith("lora_down.weight")}
    alphas = {float(value) for key, value in lora.items() if key.endswith(".alpha")}
    assert ranks == {2} and alphas == {5.0}
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 768)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        model, _ = nodes.LoraLoader().load_lora(*stock, file, 1.0, 1.0)
    assert not [m for m in caplog.messages if "not loaded" in m.lower()]

    ours = in_diffusers(with_lora(unet, lora), x, context) - in_diffusers(unet, x, context)
    theirs = in_comfyui(model, x, context) - in_comfyui(stock[0], x, context)
    error = float((theirs - ours).norm() / ours.norm())
    print(f"effect of the LoRA: relative error {error:.1e}, size {float(ours.norm()):.3g}")
    assert ours.norm() > 0.1 and error < 1e-3


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


def test_a_part_of_the_steps_is_the_stock_lora_there_and_nothing_elsewhere(trained, stock, run):
    import nodes

    lora, file, _ = trained
    model, clip = stock
    with torch.inference_mode():
        whole = sampled(*nodes.LoraLoader().load_lora(model, clip, file, 1.0, 1.0))
    without = sampled(model, clip)
    same = {"model": model, "clip": clip, "lora": lora}
    size = (whole - without).norm()
    assert size > 0.1
    assert (sampled(*run("RLR_ApplyLoRA", **same)) - whole).norm() < 1e-3 * size
    nearly_all = run("RLR_ApplyLoRA", **same, end_percent=0.99)
    assert (sampled(*nearly_all) - whole).norm() < 1e-2 * size
    first_half = sampled(*run("RLR_ApplyLoRA", **same, end_percent=0.5))
    assert (first_half - whole).norm() > 0.01 * size and (first_half - without).norm() > 0.01 * size
    between_two_steps = run("RLR_ApplyLoRA", **same, start_percent=0.4, end_percent=0.6)
    assert torch.equal(sampled(*between_two_steps), without)
    assert torch.equal(sampled(model, clip), without), "the stock model itself was changed"


def test_a_lora_of_another_model_is_refused_for_a_part_of_the_steps(trained, stock, run):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match="another model"):
        run("RLR_ApplyLoRA", model=stock[0], lora={"x.lora_up.weight": torch.ones(1, 1)}, end_percent=0.5)
