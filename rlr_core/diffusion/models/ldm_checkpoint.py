"""Stable Diffusion 1.x and 2.x from one .safetensors file in the layout of the original code, fully offline.

Every size is read from the file's header; the few things that shapes do not tell (number of heads, noise
schedule, latent scale) are the published values of each version.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlr_core.common.weights import Shapes, kind_of, read_header
from rlr_core.diffusion.models import folders
from rlr_core.diffusion.models.clip_text_encoder import clip_text_encoder
from rlr_core.diffusion.models.clip_tokenizer import clip_tokenizer
from rlr_core.errors import UserError

KINDS = ("sd1", "sd2")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {"sd1": "cond_stage_model.transformer.", "sd2": "cond_stage_model.model."}
PAD_TOKEN = {"sd1": "<|endoftext|>", "sd2": "!"}  # the UNet sees the padding, so it must be the trained one

# Stable Diffusion 2: a v-prediction UNet has far larger biases here than an eps one (an observation that
# ComfyUI's loader relies on too; the file itself does not say)
V_TENSOR = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_STD = 0.09


def load_parts(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The parts of a Stable Diffusion checkpoint, as keywords of `StableDiffusion`.

    Raises UserError if weights are missing or the architecture is not one of Stable Diffusion's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    shapes, metadata, _ = read_header(path)
    version = kind_of(shapes)
    prediction = prediction_type(path, version, shapes, metadata)
    try:
        return {
            "unet": network(UNet2DConditionModel, path, unet_config(shapes, version, prediction), dtype),
            "vae": network(AutoencoderKL, path, vae_config(shapes), dtype),
            "text_encoder": _text_encoder(path, version, text_config(shapes, version), dtype),
            "tokenizer": clip_tokenizer(PAD_TOKEN[version]),
            "scheduler_config": scheduler_config(prediction, zero_snr="ztsnr" in shapes),
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is incomplete: {error} is missing; download it again.") from error


# --- what the header tells ---


def prediction_type(path: Path, version: str, shapes: Shapes, metadata: dict[str, str]) -> str:
    """'epsilon' or 'v_prediction': what the file says, else (2.x only) what the weights look like."""
    from safetensors import safe_open

    if "v_pred" in shapes:
        return "v_prediction"
    declared = metadata.get("modelspec.prediction_type", "").lower()
    if declared:
        return "v_prediction" if declared.startswith("v") else "epsilon"
    if version == "sd2" and V_TENSOR in shapes:
        with safe_open(path, "pt") as file:
            if file.get_tensor(V_TENSOR).float().std(correction=0) > V_STD:
                return "v_prediction"
    return "epsilon"


def unet_config(shapes: Shapes, version: str, prediction: str) -> dict[str, Any]:
    """Configuration of UNet2DConditionModel for a UNet in the original layout."""
    channels: list[int] = []  # of each resolution level
    attention: list[bool] = []
    resnets: list[int] = []
    starts_level = True
    for index in range(1, count(shapes, rf"{UNET}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{index}"
        if f"{block}.0.op.weight" in shapes:
            starts_level = True
            continue
        if starts_level:
            channels.append(shapes[f"{block}.0.out_layers.3.weight"][0])
            attention.append(f"{block}.1.proj_in.weight" in shapes)
            resnets.append(0)
            starts_level = False
        resnets[-1] += 1
    context = shapes[f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)]
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 96 if prediction == "v_prediction" and version == "sd2" else 64,
        "in_channels": first[1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": resnets[0],
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": context,
        # diffusers' name for the number of heads: 8 in 1.x, heads of 64 channels in 2.x
        "attention_head_dim": 8 if version == "sd1" else [max(width // 64, 1) for width in channels],
        "use_linear_projection": len(shapes[f"{UNET}middle_block.1.proj_in.weight"]) == 2,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Configuration of AutoencoderKL for an autoencoder in the original layout."""
    levels = count(shapes, rf"{VAE}encoder\.down\.(\d+)\.")
    channels = [shapes[f"{VAE}encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "layers_per_block": count(shapes, rf"{VAE}encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }


def text_config(shapes: Shapes, version: str) -> dict[str, Any]:
    """Configuration of CLIPTextModel.

    1.x: the text tower of CLIP ViT-L/14; 2.x: that of OpenCLIP ViT-H/14 without its last layer.
    """
    if version == "sd1":
        return clip_config(shapes, TEXT["sd1"])
    config = open_clip_config(shapes, TEXT["sd2"])
    return config | {"num_hidden_layers": config["num_hidden_layers"] - 1}


def clip_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Configuration of a CLIP text tower in transformers' own names."""
    names = {name.replace(".text_model.", "."): shape for name, shape in shapes.items()}
    vocabulary, width = names[f"{prefix}embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": names[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(names, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        "max_position_embeddings": names[f"{prefix}embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "pad_token_id": 49407,
        **_text_sizes(width),
    }


def open_clip_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Configuration of an OpenCLIP text tower."""
    vocabulary, width = shapes[f"{prefix}token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": count(shapes, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        "max_position_embeddings": shapes[f"{prefix}positional_embedding"][0],
        "hidden_act": "gelu",
        "pad_token_id": 0,
        **_text_sizes(width),
    }


def _text_sizes(width: int) -> dict[str, Any]:
    """What all text towers have in common."""
    heads = max(width // 64, 1)
    return {
        "num_attention_heads": heads,
        "projection_dim": width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }


def scheduler_config(prediction: str, zero_snr: bool = False) -> dict[str, Any]:
    """The noise schedule that every Stable Diffusion 1.x and 2.x was trained with."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "rescale_betas_zero_snr": zero_snr,
    }


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index that `pattern` captures at the start of a name."""
    expression = re.compile(pattern)
    return 1 + max((int(match[1]) for name in shapes if (match := expression.match(name))), default=-1)


# --- the networks ---


def network(kind: Any, path: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """A diffusers network from the file; diffusers reads its configuration from a folder only."""
    if (module := folders.outline(lambda: kind.from_config(config), dtype)) is not None:
        return module
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        try:
            module = kind.from_single_file(str(path), config=folder, torch_dtype=dtype, local_files_only=True)
            return module.to("cpu")
        except NotImplementedError as error:  # a weight that the file lacks stays on the meta device
            raise UserError(f"{path} is incomplete: weights are missing; download it again.") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error


def _text_encoder(path: Path, version: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    state = tensors_under(path, TEXT[version])
    if version == "sd2":
        state = from_open_clip(state, config["num_hidden_layers"])
    return text_encoder(path, state, config, dtype)


def text_encoder(
    path: Path, state: dict[str, Tensor], config: dict[str, Any], dtype: torch.dtype, projection: bool = False
) -> nn.Module:
    """The CLIP text tower of the file, strictly: every weight is there or it is an error."""
    from transformers import CLIPTextConfig

    module, missing, unknown = clip_text_encoder(state, CLIPTextConfig(**config), dtype, projection)
    if missing or unknown:
        raise UserError(
            f"The text encoder in {path} is not as expected: {len(missing)} weights are missing and "
            f"{len(unknown)} unknown, first {[*missing, *unknown][0]}."
        )
    return module


def tensors_under(path: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin with a prefix, without it."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def from_open_clip(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """transformers' names for the first `layers` layers of an OpenCLIP text tower."""
    names = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    result = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        "final_layer_norm.weight": state["ln_final.weight"],
        "final_layer_norm.bias": state["ln_final.bias"],
    }
    for layer in range(layers):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            fused = state[f"{old}.attn.in_proj_{kind}"].chunk(3)  # [3 D, ...]: queries, keys, values
            for name, part in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                result[f"{new}.self_attn.{name}.{kind}"] = part.clone()
            for name, target in names.items():
                result[f"{new}.{target}.{kind}"] = state[f"{old}.{name}.{kind}"]
    return result
