"""What travels between the nodes: descriptions, not weights, so that nothing is held between two runs.

A description says the same to `rlr_core.TrainConfig`, so that a run's config.yaml runs on the command line.
The exception is `Native`, which holds what ComfyUI has loaded, and holds, anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .native.model import NativeModel


class Wanted(NamedTuple):
    """How a model is sampled where nobody says otherwise."""

    steps: int
    guidance: float


@dataclass(frozen=True)
class Model:
    """RLR_MODEL: where a model is, and the LoRA that it wears."""

    path: str
    """A file, a folder, or 'demo'."""
    name: str
    dtype: str | None = None
    """Of the frozen weights; None chooses by device."""
    lora: str | None = None
    """A LoRA file."""

    @property
    def wanted(self) -> Wanted:
        """The built-in model's, or the engine's defaults."""
        from rlr_core.config import SamplerConfig
        from rlr_core.demo.preset import demo_config

        sampler = demo_config().sampler if self.path == "demo" else SamplerConfig()
        return Wanted(sampler.steps, sampler.guidance)

    @property
    def family_name(self) -> str:
        """The engine's name of its family."""
        return self._found().family

    @property
    def flows(self) -> bool:
        """Whether it is a flow model."""
        return getattr(self._found(), "prediction", "") == "flow"

    @property
    def moving(self) -> bool:
        """Whether it makes videos."""
        return False

    def _found(self) -> Any:
        from rlr_core.diffusion.models.loading import recognize

        return recognize(self.path)


@dataclass(frozen=True)
class Native(Model):
    """RLR_MODEL of RLR From ComfyUI: a MODEL, CLIP and VAE; `path` is their name and signature."""

    model: Any = None
    clip: Any = None
    vae: Any = None
    latent: Any = None
    scheduler: str = "simple"
    guidance_kind: str | None = None
    steps: int = 0
    guidance: float = 0.0
    """What it is sampled with where nobody says otherwise."""
    distilled: str = ""
    """Why it is taken for a distilled model; '' where it is not."""
    flow: bool = False
    frames: int = 1

    @classmethod
    def of(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        latent: Any,
        scheduler: str = "simple",
        guidance_kind: str | None = None,
        files: Sequence[str] = (),
    ) -> Native:
        """From ComfyUI's sockets. Raises UserError for what cannot be trained; loads nothing.

        guidance_kind: as a person has set it, None to ask the model; files: names of those that the MODEL is
        made of, its own first.
        """
        from rlr_core.config.validate import PYTHON

        from .native import guidance, refusals
        from .native.sampling import is_flow

        refusals.check_files(files)
        parts = {"model": model, "clip": clip, "vae": vae, "latent": latent, "scheduler": scheduler}
        family = cls("", files[0] if files else "", **parts, guidance_kind=guidance_kind).family()
        found = guidance.manner(family.base, family.model_sampling, guidance_kind, files)
        return cls(
            f"{PYTHON}{family.name} {family.signature()}",
            family.name,
            **parts,
            guidance_kind=found.kind,
            steps=found.steps,
            guidance=found.guidance,
            distilled=found.distilled,
            flow=is_flow(family.model_sampling),
            frames=family.frames,
        )

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.steps, self.guidance)

    @property
    def family_name(self) -> str:
        return "comfy"

    @property
    def flows(self) -> bool:
        return self.flow

    @property
    def moving(self) -> bool:
        return self.frames > 1

    def family(self) -> NativeModel:
        """The engine's family over it; nothing is loaded yet."""
        from .native.model import NativeModel

        return NativeModel(
            self.model,
            self.clip,
            self.vae,
            self.latent,
            scheduler=self.scheduler,
            guidance_kind=self.guidance_kind,
            name=self.name or None,
        )

    def patched(self, lora: dict[str, Any]) -> Any:
        """The MODEL with a LoRA on, as RLR Apply LoRA gives it."""
        from .lora_patches import put_on

        return put_on(self.model, None, lora)[0]


@dataclass(frozen=True)
class Prompts:
    """RLR_PROMPTS: what to train on, and what to hold out."""

    training: list[Any]
    """Texts, or lists of stages from coarse to fine."""
    held_out: list[Any] | None = None
    boundaries: list[float] | None = None
    """Where stages change, as shares of the sampling counted from the noise."""
    untouched: bool = False
    """Whether nobody chose them: the node is as it was put down."""


@dataclass(frozen=True)
class Person:
    """Whoever rates the pictures, and where."""

    node: str
    """Execution id of the RLR Rate node that shows them."""
    mode: str
    """How: 'pictures' or 'pairs'."""


@dataclass(frozen=True)
class Reward:
    """RLR_REWARD: a reward's name and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    person: Person | None = None
    """Who is asked, where the reward is or holds a person's ratings."""


@dataclass(frozen=True)
class TrainSettings:
    """RLR_SETTINGS: what was set in RLR Train Settings, by setting; what was left alone is not in it."""

    values: dict[str, Any] = field(default_factory=dict)


class LoraWeights(dict):
    """LORA_MODEL, as stock nodes know it (tensors by name), with the file's metadata beside it."""

    metadata: dict[str, str]

    def __init__(self, tensors: dict[str, Any], metadata: dict[str, str]):
        super().__init__(tensors)
        self.metadata = metadata
