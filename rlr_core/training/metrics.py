"""How much memory a run has taken."""

from __future__ import annotations

import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """Most bytes ever held: by PyTorch on the GPU, by the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
