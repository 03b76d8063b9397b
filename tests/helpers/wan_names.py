"""Names of Wan's weights in the original code, as the files of ComfyUI's users have them."""

from __future__ import annotations

from torch import Tensor

ORIGINAL_NAMES = (
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    (".norm2.", ".norm3."),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("proj_out", "head.head"),
)
"""diffusers' name -> the original one."""


def original_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by diffusers' names, by their original ones."""
    original = {}
    for name, tensor in tensors.items():
        for ours, theirs in ORIGINAL_NAMES:
            name = name.replace(ours, theirs)
        if name == "scale_shift_table":
            name = "head.modulation"
        original[name.replace("scale_shift_table", "modulation")] = tensor
    return original
