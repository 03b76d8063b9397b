"""What only a GPU can show of the native family, with one command:

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python tests/comfy/gpu_check.py [--cpu] [--only NAME ...]

1. The gradient with weights offloaded (--lowvram) and with dynamic VRAM against a full load, with an upstream
   LoRA, of a tiny SDXL, Flux and Wan. Each in a process of its own: these are
   ComfyUI's start options.
2. Seconds and memory of an update, random weights: SDXL in bf16 at 1024, a 6 B and a 12 B flow transformer in
   fp8 at 1024, Wan 2.2 5B in bf16 at 480p and 17 frames.

--cpu goes through all of it with tiny models on the CPU, as a test of this script. Exit code 1 if a gradient
is off.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "native"), str(HERE.parent)]

MODES = {"full": ["--highvram"], "lowvram": ["--lowvram", "--reserve-vram", "1"], "dynamic": []}
"""Name -> ComfyUI's start options."""
GRADIENTS = ("sdxl", "flux", "wan21")
COSTS = ("sdxl-1024", "flow-6b-fp8", "flow-12b-fp8", "wan-5b-480p")
TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}
"""Of a gradient in bf16 on a GPU, whose kernels differ between modes, and in float32 on the CPU."""


def main() -> None:
    """Parent: run every check in a process of its own and print two tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--cpu", action="store_true", help="tiny models on the CPU")
    arguments.add_argument("--only", nargs="*", choices=[*GRADIENTS, *COSTS], help="some of the checks")
    arguments.add_argument("--worker", nargs=3, metavar=("MODE", "NAME", "OUT"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        mode, name, out = options.worker
        worker(mode, name, Path(out), options.cpu)
        return
    chosen = options.only or [*GRADIENTS, *COSTS]
    compared = table(
        ["gradient against full load", *(mode for mode in MODES if mode != "full")],
        [name for name in GRADIENTS if name in chosen],
        functools.partial(gradients, cpu=options.cpu),
    )
    table(
        ["update", "parameters", "seconds", "peak GiB", "weights"],
        [name for name in COSTS if name in chosen],
        functools.partial(costs, cpu=options.cpu),
    )
    sys.exit(1 if any("OFF" in cell for cells in compared for cell in cells) else 0)


def table(head: list[str], names: list[str], measured: Callable[[str, Path], list[str]]) -> list[list[str]]:
    """Print a table with a row for each name, as soon as it is measured; its cells."""
    print("| " + " | ".join(head) + " |\n|" + "-|" * len(head))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            rows.append(measured(name, Path(scratch)))
            print(f"| {name} | " + " | ".join(rows[-1]) + " |", flush=True)
    return rows


def gradients(name: str, scratch: Path, cpu: bool) -> list[str]:
    """How far a model's gradient in every other mode is off that at full load."""
    from safetensors.torch import load_file

    tolerance, cells = TOLERANCE["cpu" if cpu else "cuda"], []
    found = {mode: load_file(run(mode, name, scratch / f"{name}-{mode}", cpu)) for mode in MODES}
    whole = sum(float(value.double().square().sum()) for value in found["full"].values())
    for mode in [mode for mode in MODES if mode != "full"]:
        pairs = [(found[mode][key].double(), value.double()) for key, value in found["full"].items()]
        error = (sum(float((other - value).square().sum()) for other, value in pairs) / whole) ** 0.5
        cells.append(f"{error:.1e}{'' if error < tolerance else ' OFF'}")
    return cells


def costs(name: str, scratch: Path, cpu: bool) -> list[str]:
    """What an update of a model of its own size costs."""
    found = json.loads(run("default", name, scratch / name, cpu).read_text())
    size, peak = f"{found['parameters'] / 1e9:.2f} B", f"{found['peak'] / 2**30:.1f}"
    return [size, f"{found['seconds']:.1f}", peak, found["dtype"]]


def run(mode: str, name: str, out: Path, cpu: bool) -> Path:
    """Run a worker; its file. Raises RuntimeError with its last words if it fails."""
    command = [sys.executable, __file__, "--worker", mode, name, str(out), *(["--cpu"] if cpu else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ({mode}) failed:\n{done.stderr[-4000:]}")
    return out


# --- one process with ComfyUI in it ---


def worker(mode: str, name: str, out: Path, cpu: bool) -> None:
    """Import ComfyUI as it would be started in this mode, and do one check."""
    native = comfyui(mode, cpu)
    if not cpu:
        import comfy.model_management as mm
        import native_parts

        native_parts.DEVICES[:] = [mm.get_torch_device(), mm.unet_offload_device()]
    if name in GRADIENTS:
        gradient(native, name, out, cpu)
    else:
        cost(native, name, out, cpu)


def comfyui(mode: str, cpu: bool) -> Any:
    """ComfyUI with its options, the pack loaded; nodes/native/model.py."""
    sys.argv = ["main.py", *(["--cpu"] if cpu else MODES.get(mode, []))]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options

    comfy.options.enable_args_parsing()
    if mode == "dynamic" and not cpu:
        _dynamic_vram()
    from comfy_process import MODULE, load_pack

    base = Path(tempfile.mkdtemp())
    for folder in ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True)
    load_pack(base, cpu=cpu)
    return importlib.import_module(f"{MODULE}.nodes.native.model")


def _dynamic_vram() -> None:
    """What main.py does to switch dynamic VRAM on, in versions that have it."""
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    devices = comfy.model_management.get_all_torch_devices()
    try:
        ready = comfy_aimdo.control.init_devices((device.index, 0) for device in devices)
    except TypeError:
        ready = comfy_aimdo.control.init_devices(device.index for device in devices)
    if not ready:
        raise RuntimeError("Dynamic VRAM does not start on this machine.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def gradient(native: Any, name: str, out: Path, cpu: bool) -> None:
    """Write the gradient of a number behind one guided step, of a model with an upstream LoRA."""
    import comfy.sd
    import comfy.utils
    import native_models
    import torch
    from native_runs import chain_of, family, random_adapter
    from safetensors.torch import save_file

    dtypes = {} if cpu else {"dtype": torch.bfloat16}
    with native.running(family(native, native_models.build(name, **dtypes))) as model:
        upstream = random_adapter(model, rank=4).save(out.with_suffix(".upstream.safetensors"))
    sockets = native_models.build(name, **dtypes)
    with torch.inference_mode():
        file = comfy.utils.load_torch_file(str(upstream))
        sockets.model, _ = comfy.sd.load_lora_for_models(sockets.model, None, file, 0.7, 0.0)
    with native.running(family(native, sockets)) as model:
        chain, conditioning = chain_of(model)
        adapter = random_adapter(model)
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(3, *model.latent_shape(*model.default_size), generator=generator)
        x = x.to(model.device).requires_grad_()
        named = {"x": x, **adapter.named_parameters()}
        found = torch.autograd.grad(chain.mean(x, 3, conditioning).square().mean(), list(named.values()))
        save_file({key: g.float().cpu().contiguous() for key, g in zip(named, found, strict=True)}, out)


def cost(native: Any, name: str, out: Path, cpu: bool) -> None:
    """Write seconds and peak bytes of the second of two updates."""
    import torch
    from native_runs import TEXTS, Redness, family

    from rlr_core.config import config_from_dict
    from rlr_core.training.trainer import train

    started = time.monotonic()
    sockets = big(name, tiny=cpu)
    print(f"built in {time.monotonic() - started:.0f} s", file=sys.stderr)
    model = family(native, sockets)
    settings = {
        "prompts": TEXTS,
        "steps": 2,
        "batch": 4,
        "samples_per_prompt": 2,
        "micro_batch": 1,
        "decode_batch": 1,
        "gradient_checkpointing": True,
        "out": str(out.with_suffix(".run")),
        "sampler": {"steps": 8, "eta": 0.5, "guidance": 1.0},
        "evaluation": {"samples": 2, "every": 100, "batch": 1},
        "keep_samples": 1,
    }
    with native.running(model):
        rows = train(model, Redness(), config_from_dict(settings)).metrics
    network = model.networks["diffusion_model"]
    report = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": rows[-1]["time/seconds"] - rows[-2]["time/seconds"],
        "peak": torch.cuda.max_memory_allocated() if not cpu else rows[-1]["memory/peak_bytes"] or 0,
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
    }
    out.write_text(json.dumps(report))


def big(name: str, tiny: bool) -> Any:
    """Sockets of a model of the real size with random weights; tiny: of the same class, for a dry run."""
    import native_models as models
    import native_parts as parts
    import torch

    small = {"sdxl-1024": "sdxl", "flow-6b-fp8": "lumina2", "flow-12b-fp8": "flux", "wan-5b-480p": "wan21"}
    if tiny:
        fp8 = {"dtype": torch.float8_e4m3fn, "manual_cast": torch.float32} if name.endswith("fp8") else {}
        return models.build(small[name], **fp8)
    import comfy.model_base as mb

    bf16, fp8 = torch.bfloat16, torch.float8_e4m3fn
    with torch.inference_mode():
        if name == "sdxl-1024":
            settings = models.unet_settings(2048, linear=True, adm=2816) | {
                "model_channels": 320,
                "num_res_blocks": [2, 2, 2],
                "channel_mult": [1, 2, 4],
                "transformer_depth": [0, 0, 2, 2, 10, 10],
                "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
                "transformer_depth_middle": 10,
                "num_heads": -1,
                "num_head_channels": 64,
            }
            make = functools.partial(mb.SDXL, model_type=mb.ModelType.EPS)
            model = parts.base_model("SDXL", settings, make, dtype=bf16)
            clip = parts.Clip(2048, pooled=1280, same_length=True)
            return parts.Sockets(model, clip, parts.picture_vae(4, real=True), parts.latent(4, 128, 128))
        if name == "flow-6b-fp8":
            settings = models.lumina_settings(
                dim=3840,
                n_layers=30,
                n_refiner_layers=2,
                n_heads=30,
                n_kv_heads=30,
                axes_dims=[32, 48, 48],
                axes_lens=[1536, 512, 512],
                cap_feat_dim=2560,
                ffn_dim_multiplier=8 / 3,
                multiple_of=256,
                rope_theta=256.0,
                z_image_modulation=True,
                time_scale=1000.0,
                pad_tokens_multiple=32,
            )
            model = parts.base_model("ZImage", settings, mb.Lumina2, dtype=fp8, manual_cast=bf16)
            clip, channels = parts.Clip(2560), 16
        elif name == "flow-12b-fp8":
            settings = models.flux_settings(
                vec_in_dim=768,
                context_in_dim=4096,
                hidden_size=3072,
                mlp_ratio=4.0,
                num_heads=24,
                depth=19,
                depth_single_blocks=38,
                axes_dim=[16, 56, 56],
            )
            model = parts.base_model("Flux", settings, mb.Flux, dtype=fp8, manual_cast=bf16)
            clip, channels = parts.Clip(4096, pooled=768), 16
        else:
            settings = models.wan_settings(
                dim=3072,
                ffn_dim=14336,
                freq_dim=256,
                text_dim=4096,
                num_heads=24,
                num_layers=30,
                in_dim=48,
                out_dim=48,
                text_len=512,
            )
            model = parts.base_model("WAN22_T2V", settings, mb.WAN22, dtype=bf16)
            clip = parts.Clip(4096, same_length=True)
            return parts.Sockets(model, clip, parts.video_vae(48, real=True), parts.latent(48, 5, 30, 52))
        return parts.Sockets(
            model, clip, parts.picture_vae(channels, real=True), parts.latent(channels, 128, 128)
        )


if __name__ == "__main__":
    main()
