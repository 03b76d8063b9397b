"""ComfyUI's own networks with the weights of diffusers' tiny pipelines, for comparing the two by numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from native_parts import base_model
from native_settings import (
    flux2_settings,
    flux_settings,
    qwen_image_settings,
    sd3_settings,
    unet_settings,
    wan_settings,
    z_image_settings,
)
from tiny_text_parts import WIDTH
from torch import Tensor
from wan_names import original_layout

HIDDEN = 32  # width of most of the transformers
GROUPS = {"block_out_channels": (32, 64), "norm_num_groups": 32}  # ComfyUI's UNets know no other groups
CHANGES: dict[str, dict[str, Any]] = {"stable-diffusion-xl": GROUPS, "animatediff": GROUPS}
"""To the settings of the tiny pipelines, so that ComfyUI has the same networks."""
WAN = ("wan", "wan-2.2-a14b")
NEEDED = {"flux2": "Flux2", "z-image": "ZImage"}
"""The class of `comfy.supported_models` that older versions lack."""


def native_twin(family: str) -> Any:
    """A MODEL: ComfyUI's own network with the same numbers of blocks and the same widths."""
    import comfy.model_base as mb

    if family == "stable-diffusion-xl":
        settings = _unet([0, 2], 2, 2 * WIDTH, True, 6 * 8 + WIDTH)
        return base_model("SDXL", settings | {"num_heads": -1, "num_head_channels": 16}, mb.SDXL)
    if family == "animatediff":
        return base_model("SD15", _unet([1, 0], 1, WIDTH, False), mb.BaseModel)
    if family == "stable-diffusion-3":
        places = {"pos_embed_max_size": 16, "num_patches": 256}
        settings = sd3_settings(2 * WIDTH, 2 * WIDTH, in_channels=4, x_block_self_attn_layers=[0], **places)
        return base_model("SD3", settings, mb.SD3)
    if family == "flux":
        settings = flux_settings(
            in_channels=4, out_channels=4, vec_in_dim=WIDTH, context_in_dim=WIDTH, mlp_ratio=4.0,
            axes_dim=[4, 4, 8],
        )  # fmt: skip
        return base_model("Flux", settings, mb.Flux)
    if family == "flux2":
        settings = flux2_settings(in_channels=16, out_channels=16, context_in_dim=3 * WIDTH, mlp_ratio=3.0)
        return base_model("Flux2", settings, mb.Flux2)
    if family == "qwen-image":
        settings = qwen_image_settings(in_channels=16, out_channels=4, joint_attention_dim=WIDTH)
        return base_model("QwenImage", settings, mb.QwenImage)
    if family == "z-image":
        return _z_image()
    settings = wan_settings(
        dim=HIDDEN, ffn_dim=32, freq_dim=16, text_dim=WIDTH, num_heads=2, in_dim=4, out_dim=4, text_len=512
    )
    return base_model("WAN21_T2V", settings, mb.WAN21)


def _z_image() -> Any:
    import comfy.ldm.lumina.model as lumina
    import comfy.model_base as mb

    settings = z_image_settings(
        in_channels=4,
        dim=HIDDEN,
        cap_feat_dim=WIDTH,
        n_heads=2,
        n_kv_heads=2,
        axes_dims=[4, 6, 6],
        axes_lens=[600, 64, 64],
        multiple_of=1,
        ffn_dim_multiplier=8 / 3,
        pad_tokens_multiple=32,
    )

    def embedder(width: int, **options: Any) -> torch.nn.Module:  # as wide inside as in the full size
        return made(1024, **options | {"output_size": HIDDEN})

    made = lumina.TimestepEmbedder
    with mock.patch.object(lumina, "TimestepEmbedder", embedder):
        return base_model("ZImage", settings, mb.Lumina2)


def _unet(
    depths: list[int], middle: int, context: int, linear: bool, adm: int | None = None
) -> dict[str, Any]:
    output = [depth for depth in depths for _ in range(2)]
    return unet_settings(context, linear, adm) | {
        "transformer_depth": depths,
        "transformer_depth_output": output,
        "transformer_depth_middle": middle,
    }


# --- weights ---


def give_weights(family: str, twin: Any, network: torch.nn.Module) -> None:
    """Put the weights of diffusers' network into ComfyUI's: all of them, and nothing else is there."""
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    twin.model.diffusion_model.load_state_dict(
        _translated(family, twin.model.model_config.unet_config, weights)
    )


def _translated(family: str, settings: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' weights by ComfyUI's names, with ComfyUI's own tables where it has them."""
    import comfy.utils

    if family == "qwen-image":
        return weights
    if family in WAN:
        return original_layout(weights)
    if family in CHANGES:
        spatial = {name: tensor for name, tensor in weights.items() if ".motion_modules." not in name}
        return _renamed(spatial, comfy.utils.unet_to_diffusers(settings))
    if family == "stable-diffusion-3":
        return _renamed(weights, comfy.utils.mmdit_to_diffusers(settings))
    if family == "z-image":
        return _renamed(weights, comfy.utils.z_image_to_diffusers(settings))
    table = comfy.utils.flux_to_diffusers(settings)
    if family == "flux2":
        table |= {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in FLUX2_NAMES.items()}
    return _renamed(weights, table)


FLUX2_NAMES = {
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
}
"""What ComfyUI's table, made for LoRA files, leaves out."""


def _renamed(weights: Mapping[str, Tensor], table: Mapping[str, Any]) -> dict[str, Tensor]:
    """table: name -> name, or (name, place among fused rows, what to do with it first)."""
    fused: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in weights.items():
        entry = table[name]
        target, place, change = (*entry, None, None)[:3] if isinstance(entry, tuple) else (entry, None, None)
        row = 0 if place is None else place[1]
        fused.setdefault(target, []).append((row, tensor if change is None else change(tensor)))
    return {
        name: torch.cat([tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])])
        for name, pieces in fused.items()
    }


# --- outputs ---


def twin_output(family: str, twin: Any, model: Any, latents: Tensor, timestep: float, rows: Any) -> Tensor:
    """What ComfyUI's network makes of what `model.denoise` is given, told in its own terms."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([twin], force_full_load=True)
    network = twin.model.diffusion_model
    times = torch.full((len(latents),), timestep)
    return CALLS.get(family, _flow)(network, model, latents, times, rows)


def _unet_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    """Every picture of a video by itself."""
    pictures = latents.transpose(1, 2).flatten(0, 1)
    context = model._encoded(rows).repeat_interleave(latents.shape[2], 0)
    output = network(pictures, times.repeat_interleave(latents.shape[2]), context=context)
    return output.unflatten(0, (len(latents), -1)).transpose(1, 2)


def _sdxl_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    sizes = model.unet.add_time_proj(model._size(*latents.shape[-2:]).flatten()).view(1, -1)
    told = torch.cat([rows["pooled"], sizes.expand(len(latents), -1)], 1)
    return network(latents, times, context=rows["prompt"], y=told)


def _sd3_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    return network(latents, times, context=rows["prompt"], y=rows["pooled"])


def _flux_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    scale = torch.full_like(times, model.guidance)
    return network(latents, times / 1000, rows["prompt"], rows["pooled"], scale)


def _qwen_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    return network(latents[:, :, None], times / 1000, rows["prompt"], attention_mask=None)[:, :, 0]


def _z_image_output(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    return network(latents, times / 1000, rows["prompt"], rows["prompt"].shape[1])


def _flow(network: Any, model: Any, latents: Tensor, times: Tensor, rows: Any) -> Tensor:
    return network(latents, times if model.family in WAN else times / 1000, rows["prompt"])


CALLS: dict[str, Callable[..., Tensor]] = {
    "stable-diffusion-xl": _sdxl_output,
    "animatediff": _unet_output,
    "stable-diffusion-3": _sd3_output,
    "flux": _flux_output,
    "qwen-image": _qwen_output,
    "z-image": _z_image_output,
}
