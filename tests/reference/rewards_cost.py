"""Seconds and memory for one picture through an image tower of real size, forward and backward.

    python tests/reference/rewards_cost.py ViT-L-14 --dtype float16 --device cuda [--checkpointing]

Weights are random; the time does not depend on them. On the CPU the time is the processor's, summed over its
cores, so that other work on the machine does not count, and memory is what autograd keeps for the way back;
on a GPU the time is the wall clock's, and the peak of the allocator is told too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from rlr_core.rewards.towers.clip import CLIP_L, ImageTower
from rlr_core.rewards.towers.clip_layout import ClipFile


def tower(name: str, dtype: str, checkpointing: bool) -> ImageTower:
    """A random image tower by its open_clip name."""
    import open_clip
    from open_clip.transformer import VisionTransformer

    config = open_clip.get_model_config(name)
    v = config["vision_cfg"]
    heads = v["width"] // v.get("head_width", 64)
    torch.manual_seed(0)
    network = VisionTransformer(
        v["image_size"], v["patch_size"], v["width"], v["layers"], heads, 4.0, output_dim=config["embed_dim"]
    )
    state = {key: value.half() for key, value in network.state_dict().items()}
    return ImageTower(ClipFile(Path(name), state, {}, None, False), CLIP_L, dtype, checkpointing)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()

    image_tower = tower(options.name, options.dtype, options.checkpointing)
    image_tower.to(options.device)
    cuda = options.device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in image_tower.network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def measure(backward: bool) -> float:
        pixels = torch.rand(options.batch, 3, image_tower.size, image_tower.size, device=options.device)
        pixels.requires_grad_(backward)
        start = clock()
        if backward:
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                total = image_tower.features(pixels).sum()
            total.backward()
        else:
            with torch.no_grad():
                image_tower.features(pixels)
        if cuda:
            torch.cuda.synchronize()
        return (clock() - start) / options.batch

    measure(True)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    forward = statistics.median(measure(False) for _ in range(options.repeat))
    both = statistics.median(measure(True) for _ in range(options.repeat))
    held = sum(p.numel() * p.element_size() for p in image_tower.network.parameters())
    megabytes = sum(kept.values()) / options.batch / 1e6
    how = f"{options.dtype} checkpointed" if options.checkpointing else options.dtype
    unit = "s" if cuda else "CPU-s"
    line = f"{options.name} {how} on {options.device}: weights {held / 1e9:.2f} GB, "
    line += f"kept for the way back {megabytes:.0f} MB a picture, "
    line += f"forward {forward:.3f} {unit}, forward and backward {both:.3f} {unit} a picture"
    print(line + (f", peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB" if cuda else ""))


if __name__ == "__main__":
    main()
