"""Files and folders of real size: whole files of zeros, which take no room on the disk."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from tiny_sdxl_checkpoint import single_file_state

from rlr_core.common.weights import read_header
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError
from rlr_core.training import memory
from rlr_core.training.preflight import GIB

pytestmark = pytest.mark.big

UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def write_zeros(path, shapes, dtype="BF16", size=2):
    """A .safetensors file of zeros with holes in place of bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        first = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                             num_attention_heads=12))  # fmt: skip
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                           num_attention_heads=20, projection_dim=1280)
        )  # fmt: skip
    state = single_file_state(unet, vae, first, second)
    path = tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"
    write_zeros(path, {name: tensor.shape for name, tensor in state.items()})
    return path


def test_a_checkpoint_of_stable_diffusion_xl_loads_whole_and_denoises(sdxl):
    assert sum(read_header(sdxl).numbers.values()) == pytest.approx(3.47e9, rel=0.01)
    model = load_model(sdxl, device="cpu", dtype="bf16")
    assert sum(p.numel() for p in model.unet.parameters()) == 2_567_463_684
    assert (model.family, model.default_size) == ("stable-diffusion-xl", (1024, 1024))
    rows = model.encode_prompts(["a cat", ""])
    assert rows["prompt"].shape == (2, 77, 2048) and rows["pooled"].shape == (2, 1280)
    output = model.denoise(torch.randn(2, *model.latent_shape(64, 64)), 500.0, rows)
    assert output.shape == (2, 4, 8, 8) and output.isfinite().all()


def test_stable_diffusion_xl_trains_at_1024_on_a_card_of_12_gb(sdxl):
    model = memory.outline(sdxl)
    found = memory.fits(model, memory.needs(model, memory.Size(1024, 1024)))
    assert found[8] is None and found[12] is not None and found[12].gradient_checkpointing
    print({card: str(fit) for card, fit in found.items()})


@pytest.fixture(scope="module")
def z_image(tmp_path_factory):
    """A folder with a transformer of 6 B parameters."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from tiny_text_parts import letter_tokenizer, qwen3

    folder = tmp_path_factory.mktemp("z-image")
    parts = {
        "transformer": (ZImageTransformer2DModel, {}),
        "vae": (AutoencoderKL, VAE | {"latent_channels": 16}),
    }
    for name, (kind, settings) in parts.items():
        with torch.device("meta"):
            network = kind(**settings)
        network.save_config(folder / name)
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        write_zeros(folder / name / "diffusion_pytorch_model.safetensors", shapes)
    qwen3().save_pretrained(folder / "text_encoder")
    letter_tokenizer().save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    index = {"_class_name": "ZImagePipeline", "text_encoder": ["transformers", "Qwen3ForCausalLM"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_transformer_of_6_b_says_what_it_needs_and_is_refused_where_main_memory_is_too_small(
    z_image, monkeypatch
):
    import psutil

    numbers = read_header(z_image / "transformer/diffusion_pytorch_model.safetensors").numbers
    assert sum(numbers.values()) == pytest.approx(6.15e9, rel=0.01)
    model = memory.outline(z_image)
    found = memory.fits(model, memory.needs(model, memory.Size(1024, 1024)))
    print({card: str(fit) for card, fit in found.items()})
    assert found[24] is not None and found[24].bits == 16 and found[12] is not None and found[12].bits == 4

    class Memory:
        available = 16 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    refusal = r"take 22.9 GiB of main memory in float32, and 16.0 GiB are free; set dtype to bf16"
    with pytest.raises(UserError, match=refusal):
        load_model(z_image, device="cpu")
