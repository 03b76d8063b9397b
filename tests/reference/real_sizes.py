"""Models of their true sizes with random weights, on the CPU, without a network: what only size can show.

python tests/reference/real_sizes.py sdxl FOLDER      a checkpoint of 6.5 GB is written, loaded, trained for
                                                      one update at 512 pixels in bf16, its LoRA saved
python tests/reference/real_sizes.py z-image FOLDER   a folder of 10 billion parameters, 6 in the transformer
                                                      (files with holes, which take no room on the disk), is
                                                      inspected, and refused or trained
"""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

RUN = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("this run may not use the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from rlr_core.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


NORM = re.compile(r"(norm\d?|ln_\w+|layer_norm\d|(in|out)_layers\.0|\bout\.0)\.weight$")
"""Names of weights that multiply normalized activations."""


def rlr(*arguments: str) -> None:
    """One command in a process of its own; prints what it prints, its seconds and its peak memory."""
    print("$ rlr", " ".join(arguments), flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-c", RUN, *arguments], check=False).returncode
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"exit status {code}, {seconds:.0f} s, at most {peak:.1f} GiB so far\n", flush=True)


def random_weights(name: str, like: torch.Tensor) -> torch.Tensor:
    """float16 weights that keep the size of what goes through them."""
    if like.ndim < 2:
        return torch.full(like.shape, float(bool(NORM.search(name))), dtype=torch.float16)
    fan_in = math.prod(like.shape[1:])
    return torch.randn(like.shape).mul_(0.5 / fan_in**0.5).half()


def sdxl_networks() -> tuple[torch.nn.Module, ...]:
    """The four networks of Stable Diffusion XL base, without weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        return (
            UNet2DConditionModel(
                sample_size=128,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=2,
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                cross_attention_dim=2048,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
            CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                    hidden_act="quick_gelu",
                )
            ),
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=1280,
                    intermediate_size=5120,
                    num_hidden_layers=32,
                    num_attention_heads=20,
                    hidden_act="gelu",
                    projection_dim=1280,
                )
            ),
        )


def sdxl_file(path: Path) -> None:
    """Its single file, with random weights."""
    from safetensors.torch import save_file
    from tiny_sdxl_checkpoint import single_file_state

    torch.manual_seed(0)
    state = {name: random_weights(name, t) for name, t in single_file_state(*sdxl_networks()).items()}
    print(f"{sum(t.numel() for t in state.values()) / 1e9:.2f} billion parameters", flush=True)
    save_file(state, path)


def sdxl(folder: Path) -> None:
    """A checkpoint file: inspected, one update at 512 pixels in bf16, a LoRA."""
    path = folder / "sdxl.safetensors"
    if not path.exists():  # in a process of its own, whose memory is gone afterwards
        subprocess.run([sys.executable, __file__, "sdxl-file", str(path)], check=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("a red fox\na blue house\n")
    shutil.rmtree(folder / "run", ignore_errors=True)
    rlr("inspect", str(path))
    rlr(
        "train",
        "--model",
        str(path),
        "--reward",
        "saturation",
        "--prompts",
        str(prompts),
        "--out",
        str(folder / "run"),
        "dtype=bf16",
        "device=cpu",
        "steps=1",
        "method=adaptive",
        "batch=2",
        "samples_per_prompt=2",
        "sampler.width=512",
        "sampler.height=512",
        "sampler.steps=2",
        "evaluation.samples=2",
        "keep_samples=2",
    )


def z_image(folder: Path) -> None:
    """A diffusers folder with a transformer of 6 billion parameters, all zero, in files with holes."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from tiny_pipelines import write_pipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = write_pipeline("z-image", folder / "z-image")
    vae = json.loads((folder / "vae/config.json").read_text())
    vae |= {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    with torch.device("meta"):
        networks = {
            "transformer": ZImageTransformer2DModel(),
            "vae": AutoencoderKL.from_config(vae),
            "text_encoder": Qwen3ForCausalLM(
                Qwen3Config(
                    hidden_size=2560,
                    intermediate_size=9728,
                    num_hidden_layers=36,
                    num_attention_heads=32,
                    num_key_value_heads=8,
                    head_dim=128,
                    tie_word_embeddings=True,
                )
            ),
        }
    for part, network in networks.items():
        for old in (folder / part).glob("*.safetensors*"):
            old.unlink()
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_holes(folder / part / f"{stem}.safetensors", network)
        save = network.config.save_pretrained if part == "text_encoder" else network.save_config
        save(folder / part)
    shutil.rmtree(folder.parent / "run", ignore_errors=True)
    rlr("inspect", str(folder))
    rlr(
        "train",
        "--model",
        str(folder),
        "--reward",
        "saturation",
        "--prompts",
        "a red fox",
        "--out",
        str(folder.parent / "run"),
        "dtype=bf16",
        "device=cpu",
        "steps=1",
        "method=adaptive",
        "batch=2",
        "samples_per_prompt=2",
    )


def write_holes(path: Path, network: torch.nn.Module) -> None:
    """A .safetensors file of zeros that takes no room: a header, and a hole as long as the weights."""
    header, place = {}, 0
    for name, tensor in network.state_dict().items():
        end = place + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)


WAYS = {"sdxl": sdxl, "sdxl-file": sdxl_file, "z-image": z_image}

if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]))
