"""ComfyUI-RLR: reward in, LoRA out. What ComfyUI loads; outside ComfyUI this file does nothing."""

import importlib.util

if __package__ and importlib.util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./nodes/web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
