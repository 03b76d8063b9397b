"""A small flow model of the demo's scenes, and what inverse noise correction does for it.

    python tests/reference/scene_flow.py [--out runs/scene_flow] [--steps 6] [--updates 800] [--pictures 1024]

It makes a flow out of the demo's U-Net by a short training on drawn scenes, inverts drawn scenes through a
few Euler steps, trains a corrector, and prints KID and FID against fresh scenes with and without it, on
features of the demo's own CLIP, with what a corrected picture costs. About a quarter of an hour on one CPU
core. Needs torch-fidelity.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlr_core.common.images import grid
from rlr_core.config import SamplerConfig
from rlr_core.config.prompts import read_prompts
from rlr_core.correction.fitting import fit
from rlr_core.correction.inversion import invert, state_error
from rlr_core.correction.pictures import sample_corrected
from rlr_core.correction.report import distance
from rlr_core.demo.build.fitting import SceneStream, warmed_cosine
from rlr_core.demo.judge import DemoJudge
from rlr_core.demo.reward import load_demo_clip, normalized
from rlr_core.demo.scenes import caption
from rlr_core.diffusion import kernels
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.base import DiffusionModel, NoiseLevel, Rows
from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.rollout import Noise

BATCH = 64
PEAK_RATE = 5e-4


class SceneFlow(DiffusionModel):
    """The demo's autoencoder, text encoder and U-Net; the network says v = noise - picture at s * 1000."""

    family = "scene-flow"
    name = "scene-flow"
    prediction = "flow"
    denoisers = ("unet",)
    lora_targets = {"attention": ("to_q", "to_k", "to_v", "to_out.0")}

    def __init__(self):
        self.demo = load_model("demo", device="cpu")
        self.device, self.dtype = self.demo.device, self.demo.dtype
        self.default_size = self.demo.default_size
        self.networks = {"unet": self.demo.networks["unet"]}

    def encode_prompts(self, prompts: Sequence[str]) -> Rows:
        return self.demo.encode_prompts(prompts)

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        return self.demo.latent_shape(height, width, frames)

    def schedule(self, sampler: SamplerConfig) -> list[kernels.Step]:
        levels = [1 - index / sampler.steps for index in range(sampler.steps + 1)]
        return kernels.flow_steps([1000 * s for s in levels[:-1]], levels, eta=sampler.eta)

    def noise_level(self, share: float) -> NoiseLevel:
        return NoiseLevel(share * 1000, 1 - share, share)

    def denoise(self, latents: Tensor, timestep: float | Tensor, conditioning: Rows) -> Tensor:
        return self.networks["unet"](latents, timestep, conditioning["prompt"]).sample

    def decode(self, latents: Tensor) -> Tensor:
        return self.demo.decode(latents)

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.cat([self.demo.encode(part) for part in pictures.split(BATCH)])

    def lora_key(self, layer: str, layout: str) -> str:
        return self.demo.lora_key(layer, layout)


def train_flow(model: SceneFlow, steps: int, pool: int, seed: int) -> None:
    """Flow matching on drawn scenes with their captions."""
    stream = SceneStream(seed, model.device)
    drawn = [stream(BATCH) for _ in range(pool // BATCH)]
    latents = torch.cat([model.encode(pictures) for _, pictures in drawn])
    texts = [caption(scene) for scenes, _ in drawn for scene in scenes]
    rows = torch.cat([model.encode_prompts(texts[i : i + BATCH])["prompt"] for i in range(0, pool, BATCH)])
    unet = model.networks["unet"].train().requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99))
    average = [p.detach().clone() for p in unet.parameters()]
    for step in range(steps):
        index = torch.randint(len(latents), (BATCH,), generator=stream.rng)
        clean, noise = latents[index], stream.noise(latents[index])
        s = torch.rand(BATCH, generator=stream.rng)
        column = s.view(-1, 1, 1, 1)
        output = model.denoise((1 - column) * clean + column * noise, 1000 * s, {"prompt": rows[index]})
        loss = (output - (noise - clean)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = warmed_cosine(step, steps, PEAK_RATE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(unet.parameters()), 1 - min(0.99, (step + 1) / (step + 10)))
        if step % 100 == 0 or step == steps - 1:
            print(f"flow {step + 1}/{steps}  loss {float(loss):.4f}", flush=True)
    with torch.no_grad():
        torch._foreach_copy_(list(unet.parameters()), average)
    unet.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/scene_flow"))
    parser.add_argument("--steps", type=int, default=6, help="of the sampler")
    parser.add_argument("--updates", type=int, default=800, help="of the flow's training")
    parser.add_argument("--pool", type=int, default=8192, help="scenes that it is trained on")
    parser.add_argument("--fit", type=int, default=1500, help="of the corrector's training")
    parser.add_argument("--pictures", type=int, default=1024, help="inverted, and compared")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    model = SceneFlow()
    weights = args.out / f"flow-{args.updates}.pt"
    if weights.exists():
        model.networks["unet"].load_state_dict(torch.load(weights, weights_only=True))
    else:
        train_flow(model, args.updates, args.pool, args.seed)
        torch.save(model.networks["unet"].state_dict(), weights)
    chain = Chain(model, model.schedule(SamplerConfig(steps=args.steps, eta=0.0, guidance=1.0)))
    shape = model.latent_shape(*model.default_size)

    def scenes(seed: int) -> tuple[PromptBook, Tensor, list[str]]:
        drawn, pictures = SceneStream(seed, model.device)(args.pictures)
        texts = [caption(scene) for scene in drawn]
        return PromptBook(model, read_prompts(texts)), pictures, texts

    book, pictures, _ = scenes(args.seed + 1)
    latents, everyone = model.encode(pictures), torch.arange(args.pictures)
    parts = [
        invert(chain, latents[part], book.conditioning(part), iterations=30, tolerance=1e-3)
        for part in everyone.split(BATCH)
    ]
    noise, residual = (torch.cat([getattr(p, name) for p in parts]) for name in ("noise", "residual"))
    error = state_error(chain, Noise(list(range(BATCH)), shape), book.conditioning(everyone[:BATCH]))
    learned = fit(noise, steps=args.fit, seed=args.seed)
    learned.corrector.save(args.out / "corrector.safetensors")

    clip, _ = load_demo_clip()
    book, pictures, texts = scenes(args.seed + 2)
    judge, seeds = DemoJudge(), list(range(args.pictures))
    figures = {
        "sampler steps": args.steps,
        "inversion residual (median, worst)": [float(residual.median()), float(residual.max())],
        "state error (median, worst)": [float(error.median()), float(error.max())],
        "inverted noise (mean, deviation)": [float(noise.mean()), float(noise.std())],
        "velocity error on held-out noise (before, after)": [learned.before, learned.after],
    }
    for name, corrector in (("base", None), ("corrected", learned.corrector)):
        began = time.process_time()
        made = sample_corrected(chain, book, range(args.pictures), seeds, shape, BATCH, corrector)
        seconds = time.process_time() - began
        found = distance(made, pictures, lambda x: clip.encode_image(normalized(x)))
        right = float(judge(made, texts).mean())
        figures[name] = {**found._asdict(), "judge": right, "seconds a picture": seconds / args.pictures}
        grid(made[:16]).save(args.out / f"{name}.png")
    figures["seconds in all"] = time.process_time() - start
    text = json.dumps(figures, indent=1)
    (args.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
