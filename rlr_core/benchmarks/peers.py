"""TRL's diffusion trainers on the demo, with the demo's settings: runs where trl 0.12.2 is installed.

Later versions of TRL have no diffusion trainers; this one asks for older transformers and diffusers than
ours, so it gets an environment of its own, whose Python runs this file:

    python -m venv trl
    trl/bin/pip install trl==0.12.2 transformers==4.46.3 diffusers==0.31.0 peft==0.14.0 accelerate==1.2.0 \\
        open_clip_torch pydantic pyyaml torch==2.11.0 torchvision==0.26.0
    rlr bench --curves --peers trl/bin/python

It writes a LoRA at every mark of seconds; what they are worth is judged by the Python that asked.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS: dict[str, dict[str, Any]] = {
    "TRL AlignProp, random truncation": {"truncated_backprop_rand": True},
    "TRL AlignProp, whole chain": {"truncated_backprop_rand": False, "truncated_backprop_timestep": 0},
    "TRL AlignProp, K = 1": {"truncated_backprop_rand": False, "truncated_backprop_timestep": -1},
    "TRL DDPO": {},
}
"""Name -> settings of its config. A timestep counts from the noise; -1 stands for the last."""
RANK = 8


def trainer(name: str, seed: int, folder: Path) -> Any:
    """One of TRL's trainers, its pipeline holding the built-in model."""
    import torch
    from peft import LoraConfig
    from trl import (
        AlignPropConfig,
        AlignPropTrainer,
        DDPOConfig,
        DDPOTrainer,
        DefaultDDPOStableDiffusionPipeline,
    )

    from rlr_core.demo import model_path
    from rlr_core.demo.preset import demo_config
    from rlr_core.rewards import load_reward

    config = demo_config(seed=seed)
    sampler, optimizer = config.sampler, config.optimizer
    pipeline = DefaultDDPOStableDiffusionPipeline(str(model_path()))

    def layers() -> Any:
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        pipeline.unet.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
        )
        return pipeline.unet

    pipeline.get_trainable_layers = layers  # theirs has rank 4
    reward: Any = load_reward("demo")
    settings = {
        "seed": seed,
        "mixed_precision": "no",
        "allow_tf32": False,
        "save_freq": 10**9,
        "project_kwargs": {"project_dir": str(folder)},
        "sample_num_steps": sampler.steps,
        "sample_eta": sampler.eta,
        "sample_guidance_scale": sampler.guidance,
        "train_batch_size": config.batch,
        "train_learning_rate": optimizer.learning_rate,
        "train_adam_beta2": optimizer.beta2,
        "train_max_grad_norm": optimizer.max_grad_norm,
    }
    prompts = [prompt if isinstance(prompt, str) else prompt.text for prompt in config.prompts]
    draw = random.Random(seed)

    def prompt() -> tuple[str, dict]:
        return draw.choice(prompts), {}

    def score(images: Any, texts: Any, metadata: Any) -> tuple[Any, dict]:
        return reward(images.float(), list(texts)), {}

    if name == "TRL DDPO":
        settings |= {"sample_batch_size": config.batch, "sample_num_batches_per_epoch": 1}
        return DDPOTrainer(DDPOConfig(**settings), torch.no_grad()(score), prompt, pipeline)
    options = dict(PEERS[name])
    if options.get("truncated_backprop_timestep") == -1:
        options["truncated_backprop_timestep"] = sampler.steps - 1
    options["truncated_rand_backprop_minmax"] = (0, sampler.steps)

    return AlignPropTrainer(AlignPropConfig(**settings, **options), score, prompt, pipeline)


def run(name: str, seed: int, marks: list[float], folder: Path, say: Callable[[str], None] = print) -> None:
    """Train until the last mark; a LoRA at each, and rows of what had been done by then."""
    import torch
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    torch.set_num_threads(1)
    made = trainer(name, seed, folder)
    spent, step, rows = 0.0, 0, []
    for mark in marks:
        while spent < mark:
            start = time.process_time()
            step = made.step(step, step)
            spent += time.process_time() - start
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(made.sd_pipeline.unet))
        file = f"{mark:g}.safetensors"
        made.sd_pipeline.sd_pipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name=file)
        rows.append({"mark": mark, "seconds": spent, "updates": step, "lora": file})
        say(f"{name}, seed {seed}: {step} updates in {spent:.0f} s")
    (folder / "marks.json").write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("marks", type=float, nargs="+")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run(args.name, args.seed, args.marks, args.folder)


if __name__ == "__main__":
    main()
