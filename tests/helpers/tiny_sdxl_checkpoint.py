"""A small Stable Diffusion XL checkpoint in the layout of the original code, from diffusers networks."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_checkpoint import OPEN_CLIP, ldm_unet, ldm_vae
from torch import Tensor, nn

LABELS = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
FIRST, SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."


def tiny_networks() -> tuple[nn.Module, ...]:
    """UNet, VAE and both text encoders with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "bos_token_id": 49406,
             "eos_token_id": 49407}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(1, 1),
            use_linear_projection=True,
            cross_attention_dim=128,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + 48,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            scaling_factor=0.13025,
        )
        first = CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=2, hidden_act="quick_gelu"))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(**sizes, num_hidden_layers=3, hidden_act="gelu", projection_dim=48)
        )
    return tuple(network.eval() for network in (unet, vae, first, second))


def write_tiny_sdxl_checkpoint(path: Path) -> tuple[nn.Module, ...]:
    """Write the file; returns the networks it was made of."""
    from safetensors.torch import save_file

    networks = tiny_networks()
    state = single_file_state(*networks)
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return networks


def single_file_state(
    unet: nn.Module, vae: nn.Module, first: nn.Module, second: nn.Module
) -> dict[str, Tensor]:
    """The weights of the four networks as the original code names and shapes them."""
    state = {f"model.diffusion_model.{_label(k)}": v for k, v in ldm_unet(unet).items()}
    state |= {f"first_stage_model.{k}": v for k, v in ldm_vae(vae).items()}
    state |= {f"{FIRST}{k.removeprefix('text_model.')}": v for k, v in first.state_dict().items()}
    return state | {f"{SECOND}{k}": v for k, v in _open_clip(second).items()}


def _label(name: str) -> str:
    for old, new in LABELS.items():
        name = name.replace(old, new)
    return name


def _open_clip(text_encoder: nn.Module) -> dict[str, Tensor]:
    state = {k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()}
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": torch.ones(()),
    }
    for layer in range(text_encoder.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in OPEN_CLIP.items():
                result[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return result
