"""A small Stable Diffusion checkpoint in the layout of the original code, written from diffusers networks."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def tiny_networks(version: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """UNet, VAE and text encoder with random weights; version 'sd1' or 'sd2'."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=8 if version == "sd1" else (1, 1),
            use_linear_projection=version == "sd2",
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=1,
                hidden_act="quick_gelu" if version == "sd1" else "gelu",
            )
        )
    return unet.eval(), vae.eval(), text_encoder.eval()


def write_tiny_checkpoint(path: Path, version: str, v_prediction: bool = False) -> tuple[nn.Module, ...]:
    """Write the file; returns the networks it was made of."""
    from safetensors.torch import save_file

    networks = unet, vae, text_encoder = tiny_networks(version)
    state = {f"model.diffusion_model.{k}": v for k, v in ldm_unet(unet).items()}
    state |= {f"first_stage_model.{k}": v for k, v in ldm_vae(vae).items()}
    state |= _text(text_encoder, version)
    if v_prediction:
        state["v_pred"] = torch.zeros(0)
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return networks


def ldm_unet(unet: nn.Module) -> dict[str, Tensor]:
    per_level = unet.config.layers_per_block + 1
    state = {}
    for name, tensor in unet.state_dict().items():
        for old, new in UNET_ENDS.items():
            name = re.sub(rf"^{re.escape(old)}\b", new, name)
        name = re.sub(
            r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
            lambda m: f"input_blocks.{1 + int(m[1]) * per_level + int(m[3])}.{int(m[2] == 'attentions')}",
            name,
        )
        name = re.sub(
            r"^down_blocks\.(\d+)\.downsamplers\.0\.conv",
            lambda m: f"input_blocks.{(int(m[1]) + 1) * per_level}.0.op",
            name,
        )
        name = re.sub(
            r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
            lambda m: f"output_blocks.{int(m[1]) * per_level + int(m[3])}.{int(m[2] == 'attentions')}",
            name,
        )
        name = re.sub(
            r"^up_blocks\.(\d+)\.upsamplers\.0\.conv",
            lambda m: (
                f"output_blocks.{(int(m[1]) + 1) * per_level - 1}."
                f"{1 + hasattr(unet.up_blocks[int(m[1])], 'attentions')}.conv"
            ),
            name,
        )
        if ".transformer_blocks." not in name:
            for old, new in RESNET.items():
                name = name.replace(f".{old}.", f".{new}.")
        state[name] = tensor
    return state


def ldm_vae(vae: nn.Module) -> dict[str, Tensor]:
    last = len(vae.config.block_out_channels) - 1
    state = {}
    for name, tensor in vae.state_dict().items():
        for old, new in VAE_NAMES.items():
            name = name.replace(f".{old}.", f".{new}.")
        name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", name)
        name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
        name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{last - int(m[1])}.block.", name)
        name = re.sub(
            r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{last - int(m[1])}.upsample.", name
        )
        if ".attn_1." in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # a linear layer is a 1 x 1 convolution there
        state[name] = tensor
    return state


def _text(text_encoder: nn.Module, version: str) -> dict[str, Tensor]:
    state = {k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()}
    if version == "sd1":
        return {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in state.items()}
    layers = text_encoder.config.num_hidden_layers
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.eye(64),
    }
    for layer in range(layers + 1):  # OpenCLIP's tower has one more layer, which Stable Diffusion 2 ignores
        old, new = f"encoder.layers.{min(layer, layers - 1)}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            for theirs, ours in OPEN_CLIP.items():
                result[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in result.items()}
