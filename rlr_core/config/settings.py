"""Every setting of a run: its default, its bounds and choices, and what it means, each in one place."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar, Literal

from rlr_core.config.base import Settings, setting

GRAFTS = ("auto", "graft", "p_graft")
FROM_SAMPLES = ("nft", "awm", "dpo", *GRAFTS, "reward_weighted")
"""Methods that learn from finished pictures."""


class SamplerConfig(Settings):
    """How pictures are sampled, in training as in `rlr sample`."""

    section: ClassVar[str] = "sampler"

    kernel: Literal["auto", "ddim", "flow_ddim", "flow_grpo", "dance"] = setting(
        "auto",
        "Which Gaussian step: ddim for models that predict noise or velocity, the others for flow models; "
        "auto takes what fits the model.",
    )
    steps: int = setting(
        20, "Denoising steps per picture. Cost grows with it; 10 to 20 is plenty.", ge=2, le=10_000
    )
    eta: float = setting(
        1.0,
        "Noise that every step adds: 0 is DDIM (not for methods that learn from the noise), 1 is DDPM.",
        ge=0,
        le=2,
        step=0.05,
    )
    guidance: float = setting(
        5.0,
        "Classifier-free guidance, as cfg in KSampler; 1 turns it off and halves the cost.",
        ge=0,
        step=0.1,
    )
    negative_prompt: str = setting("", "What guidance steers away from.")
    last_step_noise: float = setting(
        0.0,
        "Noise on the last step, so that rewards without a gradient reach it too: 0.05 is plenty.",
        ge=0,
        le=1,
        step=0.01,
    )
    scheduler: str = setting(
        "auto",
        "Noise schedule of a model loaded in ComfyUI, such as simple or beta; other families have their own.",
    )
    width: int | None = setting(
        None, "Picture width in pixels.", unset="what the model was made for", ge=1, le=16_384
    )
    height: int | None = setting(
        None, "Picture height in pixels.", unset="what the model was made for", ge=1, le=16_384
    )
    frames: int = setting(1, "Frames of a video; 1 for pictures.", ge=1, le=1024)
    stage_boundaries: list[float] | None = setting(
        None,
        "Where prompt stages change, as shares of the steps counted from the noise.",
        unset="evenly divided",
    )


class MethodConfig(Settings):
    """How the model learns: one row of `rlr list methods` and its settings.

    The name may come first: MethodConfig("adaptive", budget=1.0).
    """

    section: ClassVar[str] = "method"

    name: str = setting("auto", "How the model learns; a row of `rlr list methods`.")
    kl_weight: float = setting(
        0.0,
        "Weight of the KL divergence to the base model: keeps the model from pleasing the reward at any "
        "price. Try 0.01.",
        ge=0,
        step=0.001,
    )
    advantage: Literal["leave_one_out", "z_score", "running_mean"] = setting(
        "leave_one_out",
        "What a reward is compared with: the others of its prompt, the same divided by their spread, or the "
        "mean so far.",
    )
    budget: float = setting(
        1.0,
        "Share of the steps that is back-propagated through, on average; less is faster and noisier.",
        methods=("auto", "adaptive"),
        ge=0.001,
        le=1,
        step=0.05,
    )
    surrogate: bool = setting(
        True,
        "Lower the noise of a reward without a gradient by a similar reward that has one, where there is "
        "one.",
        methods=("auto", "adaptive"),
    )
    window: int = setting(
        2, "Length h of the half-order window, in steps.", methods=("rlr",), ge=1, le=10_000
    )
    start: Literal["uniform", "gradient_norm", "range"] = setting(
        "uniform",
        "Where the window starts: anywhere, where gradients have been long, or within a range.",
        methods=("rlr",),
    )
    start_range: list[int] | None = setting(
        None,
        "With start=range: the first and the last step at which the window may start, counted from the "
        "picture.",
        methods=("rlr",),
        unset="not used",
    )
    remainder: Literal["zeroth_order", "likelihood_ratio", "importance", "none"] = setting(
        "zeroth_order",
        "What covers the steps outside the window: zeroth_order (the paper), likelihood_ratio, importance, "
        "or none (biased).",
        methods=("rlr",),
    )
    perturbation: float = setting(
        0.01,
        "Size of the noise on the LoRA's weights.",
        methods=("rlr", "zeroth_order"),
        ge=1e-8,
        step=0.001,
    )
    perturbations: int = setting(
        1,
        "Perturbations per update; the batch is divided among them.",
        methods=("rlr", "zeroth_order"),
        ge=1,
        le=65_536,
    )
    depth: int = setting(
        1, "How many last steps are back-propagated through (K).", methods=("truncated",), ge=1, le=10_000
    )
    random_depth: bool = setting(
        False, "Draw the depth anew for every trajectory (AlignProp).", methods=("truncated",)
    )
    clip_range: float = setting(
        0.2, "PPO's clip of the likelihood ratio.", methods=("ddpo", "awm"), ge=1e-6, le=1, step=0.01
    )
    inner_epochs: int = setting(2, "Optimizer steps per update.", methods=("ddpo",), ge=1, le=1000)
    inner_steps: int | None = setting(
        None,
        "Optimizer steps per update, each with other noise on the same pictures.",
        methods=FROM_SAMPLES,
        unset="4 for methods that learn from accepted pictures, 1 for the others",
        ge=1,
        le=1000,
    )
    noise_levels: int = setting(
        2,
        "At how many noise levels every picture is learned from, in each optimizer step.",
        methods=FROM_SAMPLES,
        ge=1,
        le=1000,
    )
    noise_law: Literal["uniform", "sampler"] = setting(
        "uniform",
        "Which noise levels: anywhere in the range that the model was trained on, or those of the sampler's "
        "own steps, for models that know no others (turbo models).",
        methods=FROM_SAMPLES,
    )
    least_noise: float = setting(
        0.0,
        "The lowest noise level that is learned from: 0 is the picture, 1 is pure noise.",
        methods=FROM_SAMPLES,
        ge=0,
        le=1,
        step=0.05,
    )
    most_noise: float = setting(
        1.0, "The highest noise level that is learned from.", methods=FROM_SAMPLES, ge=0, le=1, step=0.05
    )
    train_guided: bool = setting(
        False,
        "Learn what the network says with guidance, as the sampler uses it, instead of without: twice the "
        "cost. It ruins methods that push no picture away, such as graft: guided outputs are no mean of "
        "pictures.",
        methods=FROM_SAMPLES,
    )
    snapshot_decay: float = setting(
        0.0,
        "How slowly the model that samples follows the one that is trained: its decay grows by 0.001 an "
        "update up to this. 0 samples with the latest.",
        methods=FROM_SAMPLES,
        ge=0,
        le=0.999,
        step=0.1,
    )
    norm_guard: float = setting(
        0.0,
        "Weight of a pull on outputs of the network that get longer than the base model's, which shows as "
        "glaring pictures.",
        methods=FROM_SAMPLES,
        ge=0,
        step=0.1,
    )
    nft_beta: float = setting(
        1.0,
        "How far the implied good and bad policies lie from the one that samples; smaller learns faster.",
        methods=("nft",),
        ge=0.001,
        le=10,
        step=0.1,
    )
    dpo_beta: float = setting(
        2000.0,
        "How firmly the base model holds: smaller lets the LoRA go further from it.",
        methods=("dpo",),
        ge=0.001,
        step=100,
    )
    pairs: str | None = setting(
        None,
        "A file of preferences to learn from; their prompts must be among the training prompts.",
        methods=("dpo",),
        unset="the best and the worst of one's own pictures of each prompt",
    )
    d3po_beta: float = setting(
        0.1,
        "How firmly the base model holds: smaller lets the LoRA go further from it.",
        methods=("d3po",),
        ge=1e-6,
        step=0.05,
    )
    temperature: float = setting(
        1.0,
        "How much better pictures weigh: small takes the best ones only.",
        methods=("reward_weighted",),
        ge=0.01,
        step=0.1,
    )
    accept: Literal["best_of_n", "top_k", "threshold"] = setting(
        "best_of_n",
        "Which pictures are trained on: the best of each prompt, its best accept_count, or those that reach "
        "accept_threshold.",
        methods=GRAFTS,
    )
    accept_count: int = setting(2, "With accept=top_k: how many of each prompt.", methods=GRAFTS, ge=1)
    accept_threshold: float = setting(
        0.0, "With accept=threshold: the reward that a picture must reach.", methods=GRAFTS
    )
    accept_at: float = setting(
        0.5,
        "Where the state is accepted, as a share of the steps counted from the picture; the LoRA acts on the "
        "steps before it only.",
        methods=("auto", "p_graft"),
        ge=0,
        le=1,
        step=0.05,
    )
    sample_from: Literal["current", "base"] = setting(
        "base",
        "Who makes the pictures to choose from: the base model, or the model as it is trained so far, which "
        "then also learns its own faults.",
        methods=GRAFTS,
    )
    buffer: int = setting(
        256,
        "How many accepted pictures are kept and trained on again, a batch of them at a time; 0 trains on "
        "those of the update alone.",
        methods=GRAFTS,
        ge=0,
        le=1_000_000,
    )

    def __init__(self, name: str | None = None, /, **values: Any) -> None:
        super().__init__(**({} if name is None else {"name": name}), **values)

    @classmethod
    def of(cls, value: Any) -> MethodConfig:
        """A plain name stands for a method with its defaults."""
        return super().of({"name": value} if isinstance(value, str) else value)


class LoraConfig(Settings):
    """The adapter."""

    section: ClassVar[str] = "lora"

    rank: int = setting(8, "Rank of the LoRA: its size.", ge=1, le=4096)
    alpha: float | None = setting(
        None, "The LoRA is scaled by alpha / rank.", unset="alpha = rank", ge=1e-6, step=1.0
    )
    targets: Literal["attention", "attention+ff", "all"] = setting(
        "attention", "Which layers get a LoRA; all is every linear layer."
    )
    text_encoder: bool = setting(
        False,
        "Train a LoRA on the text encoder too, in the same file, so that prompts change their meaning. Load "
        "it with a node that takes CLIP as well.",
    )
    denoisers: Literal["all", "high_noise", "low_noise"] = setting(
        "all",
        "Of a model with two denoisers (Wan 2.2 A14B), which get a LoRA: both, that for much noise, or that "
        "for little. Each has a file of its own: of both, lora_low_noise.safetensors is the second.",
    )
    start_from: str | None = setting(
        None,
        "A LoRA file to start from, whose rank, alpha and layers are then the run's.",
        unset="a new LoRA",
    )


class OptimizerConfig(Settings):
    """The optimizer and its learning rate."""

    section: ClassVar[str] = "optimizer"

    name: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "The optimizer; adamw8bit where bitsandbytes is installed."
    )
    learning_rate: float = setting(
        3e-4,
        "Size of an update: 3e-4 is careful, 1e-3 suits small models. Too high: pictures fall apart; too "
        "low: nothing happens.",
        ge=1e-12,
        le=1,
        step=1e-5,
    )
    warmup: int = setting(5, "Updates over which the learning rate rises from 0.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "The learning rate after the warm-up; linear and cosine end at 0 with the last update."
    )
    beta1: float = setting(0.9, "Adam's decay of the gradient's mean.", ge=0, le=0.9999)
    beta2: float = setting(
        0.99,
        "Adam's decay of the gradient's square; short runs want it shorter than the usual 0.999.",
        ge=0,
        le=0.999999,
    )
    weight_decay: float = setting(0.0, "Decoupled weight decay of the LoRA.", ge=0)
    max_grad_ratio: float = setting(
        0.0,
        "Gradients longer than this many times the median of the last updates are shortened to it; 0 is no "
        "such limit. It knows nothing of what is usual while a run is young.",
        ge=0,
        le=1000,
        step=0.1,
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients longer than this are shortened to it; 0 leaves them as they are. When the reward falls "
        "apart, set it to the usual gradient/norm of metrics.jsonl.",
        ge=0,
        step=0.01,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a running average of the LoRA, which is then evaluated and saved instead of the last; 0.9 "
        "calms short runs with a high learning rate.",
        ge=0,
        le=0.9999,
        step=0.01,
    )


class EvaluationConfig(Settings):
    """What is evaluated while training, on prompts and seeds that training never sees."""

    section: ClassVar[str] = "evaluation"

    judge: str | None = setting(
        None, "A second reward that training does not follow.", unset="only the training reward"
    )
    judge_options: dict[str, Any] = setting({}, "Options of the judge, such as weights.")
    prompts: Any = setting(
        None, "Held-out prompts: a list or a file.", unset="the training prompts with other seeds"
    )
    samples: int = setting(
        32, "Pictures per evaluation; more make the judge's curve surer.", ge=2, le=1_000_000
    )
    every: int = setting(
        10,
        "Updates between evaluations; there is always one before the first update and one after the last.",
        ge=1,
    )
    batch: int = setting(8, "Pictures sampled at a time in an evaluation.", in_state=False, ge=1, le=65_536)
    stop_when_judge_drops: bool = setting(
        False, "Stop when the judge falls significantly below its best, and keep the LoRA of the best."
    )


class TrainConfig(Settings):
    """A whole run. `rlr train run.yaml key=value ...` sets any field; those of a group with dots."""

    model: str = setting("demo", "A diffusers folder, a checkpoint file, or demo.")
    dtype: str | None = setting(
        None,
        "Type of the frozen weights: bf16, fp16, fp32, or, for large transformers, 4bit or 8bit.",
        unset="what suits the device",
    )
    device: str | None = setting(None, "Such as cuda or cpu.", unset="the best one here", in_state=False)
    reward: str = setting("demo", "What is maximized; a row of `rlr list rewards`.")
    reward_options: dict[str, Any] = setting({}, "Options of the reward, such as weights.")
    prompts: Any = setting(
        None,
        "A list of prompts, a file with one a line, a row of `rlr list prompts`, or lists of stages, coarse "
        "to fine.",
    )
    steps: int = setting(
        100, "Updates. Raise it later to go on with a finished run.", in_state=False, ge=1, le=10_000_000
    )
    batch: int = setting(16, "Pictures per update, over all devices.", ge=1, le=65_536)
    samples_per_prompt: int = setting(
        4,
        "Pictures of one prompt in a batch, which are compared with each other. Back-propagation compares "
        "nothing: it takes each prompt once.",
        ge=1,
        le=65_536,
    )
    micro_batch: int = setting(
        4,
        "Pictures at a time. Lower it when memory runs out; the result stays as good.",
        in_state=False,
        ge=1,
        le=65_536,
    )
    decode_batch: int = setting(1, "Pictures decoded and scored at a time.", in_state=False, ge=1, le=65_536)
    gradient_checkpointing: bool = setting(False, "Much less memory, a third slower.", in_state=False)
    seed: int = setting(0, "Seed of everything random. Another seed is another run.", ge=0, le=2**63 - 1)
    out: str = setting("runs/run", "The run folder.", in_state=False)
    save_every: int = setting(5, "Updates between saved states.", in_state=False, ge=1)
    keep_samples: int = setting(
        8,
        "Held-out pictures kept: before_after.png takes those that changed most, samples/ the first 8.",
        in_state=False,
        ge=1,
        le=1024,
    )
    tracker: Literal["none", "tensorboard", "wandb"] = setting(
        "none", "Where metrics are shown besides the run folder.", in_state=False
    )
    sampler: SamplerConfig = setting(SamplerConfig, "How pictures are sampled.")
    method: MethodConfig = setting(MethodConfig, "How the model learns.")
    lora: LoraConfig = setting(LoraConfig, "The adapter.")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "The optimizer.")
    evaluation: EvaluationConfig = setting(EvaluationConfig, "What is evaluated on held-out prompts.")

    def fingerprint(self) -> str:
        """Hash of what a saved state depends on; a state goes on only under the same fingerprint."""
        return _hash(self.state_settings())

    def setting_hashes(self) -> dict[str, str]:
        """A short hash of each setting that a saved state depends on, by which changed ones are named."""
        return {name: _hash(value)[:16] for name, value in self.state_settings().items()}

    def state_settings(self) -> dict[str, Any]:
        """What a saved state depends on, by name with dots."""
        data = self.to_dict()
        return {
            known.key: data[section][name] if section else data[name]
            for known in self.settings()
            if known.in_state
            for section, _, name in [known.key.rpartition(".")]
        }


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


NOT_IN_STATE = tuple(known.key for known in TrainConfig.settings() if not known.in_state)
"""Settings that may change when a run goes on: how long, where, and how it is cut into pieces."""
