"""Trains the demo's models from nothing: `python -m rlr_core.demo.build [--out DIR] [--seed N] [--quick]`.

It draws its own data, prints its curves, and writes what the `weights/` folder here holds: model/ (a
`StableDiffusionPipeline`) and reward/ (a CLIP), as fp16 safetensors. About an hour on two CPU cores; a GPU
is used where there is one. --only trains one part again: vae first (the others build on it), then model and
reward in either order.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

PARTS = ("vae", "model", "reward")


@dataclass(frozen=True)
class Budget:
    vae: int = 6000
    """Steps of the autoencoder."""
    text: int = 600
    """Steps of each text encoder, alone."""
    model: int = 2500
    """Steps of the denoiser on true captions."""
    careless: int = 800
    """Steps of the denoiser on careless captions."""
    reward: int = 2500
    """Steps of the reward."""
    pool: int = 16_384
    """Scenes encoded once for the denoiser, and pictures made once for the reward."""
    judged: int = 128
    """Held-out prompts that the denoiser is judged on as it goes."""


QUICK = Budget(vae=12, text=3, model=6, careless=3, reward=6, pool=192, judged=4)


def build(
    out: str | Path, seed: int = 0, budget: Budget | None = None, parts: tuple[str, ...] = PARTS
) -> None:
    """Trains the parts and writes them into the folder `out`. Each part has its own seeds: built alone or
    with the others, it comes out the same, as far as the machine and its number of threads allow."""
    budget = budget or Budget()
    out = Path(out)
    start = time.monotonic()
    if "vae" in parts:
        _build_vae(out, seed, budget)
    if "model" in parts:
        _build_model(out, seed, budget)
    if "reward" in parts:
        _build_reward(out, seed, budget)
    megabytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    print(f"{out}: {megabytes:.1f} MB in {(time.monotonic() - start) / 60:.0f} minutes", flush=True)


def _build_vae(out: Path, seed: int, budget: Budget) -> None:
    from rlr_core.demo.build.vae import train_vae

    train_vae(budget.vae, seed).half().save_pretrained(out / "model" / "vae")


def _load_vae(out: Path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "model" / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def _build_model(out: Path, seed: int, budget: Budget) -> None:
    from transformers import CLIPTokenizer

    from rlr_core.demo.build.denoiser import train_denoiser
    from rlr_core.demo.vocabulary import write_tokenizer

    write_tokenizer(out / "model" / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "model" / "tokenizer")
    pipeline = train_denoiser(
        _load_vae(out),
        tokenizer,
        (budget.text, budget.model, budget.careless),
        seed + 1,
        budget.pool,
        budget.judged,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(out / "model")
    nest_text_encoder(out / "model" / "text_encoder" / "model.safetensors")
    # fp16 is how the weights are stored; unasked, every part is to load as float32
    config = out / "model" / "text_encoder" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    # where the autoencoder lay while it was built is nobody's business
    config = out / "model" / "vae" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def nest_text_encoder(path: Path) -> None:
    """Put every name of a CLIP text encoder's file under 'text_model.', which every transformers reads.

    Releases from 5.6 on write the file without the prefix, which those before cannot read."""
    from safetensors.torch import load, save_file

    from rlr_core.diffusion.models.clip_text_encoder import NESTED

    tensors = load(path.read_bytes())  # not mapped: the file is written anew
    nested = {f"{NESTED}{name.removeprefix(NESTED)}": tensor for name, tensor in tensors.items()}
    save_file(nested, path, metadata={"format": "pt"})


def _build_reward(out: Path, seed: int, budget: Budget) -> None:
    from safetensors.torch import save_file

    from rlr_core.demo.build.reward import clip_config, train_reward
    from rlr_core.demo.reward import load_tokenize
    from rlr_core.demo.vocabulary import write_tokenizer

    folder = out / "reward"
    write_tokenizer(folder / "tokenizer")
    tokenize = load_tokenize(folder / "tokenizer")
    vocabulary = len(json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    clip = train_reward(
        _load_vae(out), tokenize, vocabulary, (budget.text, budget.reward), seed + 2, budget.pool
    )
    config = json.dumps({"model_cfg": clip_config(vocabulary)}, indent=2)
    (folder / "open_clip_config.json").write_text(config + "\n", encoding="utf-8")
    save_file(
        {name: value.half().contiguous() for name, value in clip.state_dict().items()},
        folder / "model.safetensors",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlr_core.demo.build", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo_weights"), help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="a few steps each: shows that it runs, learns nothing"
    )
    parser.add_argument("--only", choices=PARTS, help="train this part alone, on the vae that is in --out")
    args = parser.parse_args()
    budget = QUICK if args.quick else Budget()
    build(args.out, args.seed, budget, (args.only,) if args.only else PARTS)


if __name__ == "__main__":
    main()
