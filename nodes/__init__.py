"""The ComfyUI nodes. What they do is in rlr_core; here sockets become its calls.

engine.py   makes the bundled rlr_core importable
host.py     ComfyUI's runtime: folders, progress, cancel, memory, events; lora_patches.py: LoRAs on its models
schema.py   what the nodes' definitions share; sockets.py: what travels between them
defaults.py what RLR Train does where nobody says otherwise; queued.py: the workflow that is being queued
live.py     a run's events as progress bar, preview and live view
questions.py, pair_questions.py   what a person is asked and has clicked; routes.py: how a page gets at it
"""

from __future__ import annotations

from . import engine

engine.make_importable()


async def comfy_entrypoint():
    """What ComfyUI asks for the nodes."""
    from comfy_api.latest import ComfyExtension

    from . import host, routes

    host.register_folders()
    routes.register()

    class RLRExtension(ComfyExtension):
        async def get_node_list(self):
            return all_nodes()

    return RLRExtension()


def all_nodes() -> list[type]:
    """Every node of the pack."""
    from .combine import CombineRewards
    from .from_comfy import FromComfy
    from .load import LoadCheckpoint
    from .lora import ApplyLora, SaveLora
    from .method import MethodNode
    from .preferences import PreferencesNode
    from .prompts import PromptsNode, PromptStages
    from .rate import RateNode
    from .report import TrainingReport
    from .rewards import RewardNode
    from .sample import SampleNode
    from .score import ScoreImages
    from .train import TrainNode
    from .train_settings import TrainSettingsNode

    return [
        LoadCheckpoint, PromptsNode, PromptStages, RewardNode, CombineRewards, RateNode, PreferencesNode,
        ScoreImages, MethodNode, TrainNode, TrainSettingsNode, SaveLora, ApplyLora, SampleNode,
        TrainingReport, FromComfy,
    ]  # fmt: skip
