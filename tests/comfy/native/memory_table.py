"""Bytes that autograd keeps of one evaluation of a tiny model, as a Markdown table.

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python tests/comfy/native/memory_table.py

plain: the model with ordinary layers, no adapter; frozen: with frozen ops and a LoRA on every attention;
checkpointed: and gradient checkpointing. Weights that lie in memory anyway are not counted; those that are
cast for the computation are.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]


def kept(function, ignored) -> int:
    """Bytes of the storages that autograd saves in a call, without those of ignored tensors."""
    import torch

    known = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    found: dict[int, tuple] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(size for size, _ in found.values())


def row(native, sockets) -> list[int]:
    """Bytes kept: plain, frozen, checkpointed."""
    import torch
    from native_runs import family, random_adapter

    model = family(native, sockets)
    with native.running(model):
        rows = model.encode_prompts(["a cat", "two cats on a mat"])
        model.load_weights()
        level = model.noise_level(0.6).timestep
        x = torch.randn(2, *model.latent_shape(*model.default_size)).requires_grad_()

        def evaluate():
            return model.denoise(x, level, rows)

        weights = list(model.networks["diffusion_model"].parameters())
        for ops in model.ops:
            ops.remove()
        plain = kept(evaluate, weights)
        for ops in model.ops:
            ops.install()
        weights += random_adapter(model).parameters()
        frozen = kept(evaluate, weights)
        model.gradient_checkpointing(True)
        return [plain, frozen, kept(evaluate, weights)]


def main() -> None:
    from comfy_process import MODULE, load_pack

    base = Path(tempfile.mkdtemp())
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    load_pack(base)
    logging.disable(logging.WARNING)
    import native_models
    import torch

    native = importlib.import_module(f"{MODULE}.nodes.native.model")
    print("| model | fp32: plain | frozen | checkpointed | bf16 cast: plain | frozen | checkpointed |")
    print("|-|-|-|-|-|-|-|")
    for name in filter(native_models.available, native_models.NAMES):
        cells = row(native, native_models.build(name))
        cells += row(native, native_models.build(name, dtype=torch.bfloat16, manual_cast=torch.float32))
        print(f"| {name} | " + " | ".join(f"{size / 1024:.0f} KiB" for size in cells) + " |")


if __name__ == "__main__":
    main()
