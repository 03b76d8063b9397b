"""What a run is made of, built before its first update: from a model, a reward and a config to `Parts`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlr_core.common.distributed import World
from rlr_core.config import TrainConfig
from rlr_core.config.prompts import Prompt, read_prompts, with_prompts_read
from rlr_core.config.validate import PYTHON
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.evaluation.held_out import HeldOut
from rlr_core.gradients.estimator import Problem
from rlr_core.lora.apply import apply_lora
from rlr_core.lora.attach import Adapter, attach
from rlr_core.methods import method_class
from rlr_core.methods.base import Method
from rlr_core.rewards import load_reward
from rlr_core.rewards.base import Reward
from rlr_core.training.batches import Batches
from rlr_core.training.check import check_config
from rlr_core.training.interrupts import Interrupts
from rlr_core.training.optimizer import AdapterOptimizer
from rlr_core.training.scoring import Scorer


@dataclass
class Parts:
    """What a run is made of. The adapter is in the model."""

    config: TrainConfig
    """What really runs: prompt files read, model and rewards by the names of those that were handed over."""
    model: DiffusionModel
    reward: Reward
    judge: Reward | None
    world: World
    chain: Chain
    latent_shape: tuple[int, ...]
    adapter: Adapter
    batches: Batches
    scorer: Scorer
    method: Method
    optimizer: AdapterOptimizer
    held_out: HeldOut
    interrupts: Interrupts


def build(
    model: DiffusionModel,
    reward: Any,
    config: TrainConfig,
    *,
    judge: Any | None = None,
    check: Callable[[], None] | None = None,
    on_phase: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Parts:
    """Everything that a run needs; the model has its adapter afterwards, or is as it was if this raises.

    reward, judge: a Reward, a name, or a callable; a name that is the config's takes the config's options.
    check: called before every evaluation of the denoiser and every decoded piece; may raise to stop there.
    """
    check_config(config)
    reward = _loaded(reward, config.reward, config.reward_options).to(model.device)
    settings = config.evaluation
    judge = settings.judge if judge is None else judge
    if judge is not None:
        judge = _loaded(judge, settings.judge, settings.judge_options).to(model.device)
    config = _as_it_runs(config, model, reward, judge)
    reward.keep_in(Path(config.out).expanduser())
    world, interrupts = World(), Interrupts(check)

    sampler = config.sampler
    height, width = sampler.height or model.default_size[0], sampler.width or model.default_size[1]
    latent_shape = model.latent_shape(height, width, sampler.frames)
    chain = Chain(model, model.schedule(sampler), sampler.guidance)
    chain.on_evaluation = interrupts.check

    adapter = _adapter(model, config)
    try:
        model.gradient_checkpointing(config.gradient_checkpointing)

        def encoding(done: int, total: int) -> None:
            interrupts.check()
            on_phase("prompts", done, total)

        book, training, held_out = _prompts(
            config, model, reward, judge, encoding
        )  # with the adapter in place
        batches = Batches(book, training, config.batch, config.samples_per_prompt, config.seed, latent_shape)
        scorer = Scorer(
            model,
            reward,
            config.decode_batch,
            before_piece=interrupts.check,
            surrogate=config.method.surrogate,
        )
        parameters = adapter.parameters()
        optimizer = AdapterOptimizer(parameters, config.optimizer, config.steps)
        problem = Problem(
            chain,
            parameters,
            scorer,
            pathwise=scorer.pathwise,
            differentiable=reward.differentiable,
            micro_batch=config.micro_batch,
            base=adapter.disabled,
            conditioning=book.conditioning,
            prompts=book.texts(range(len(book.prompts))),
            seed=config.seed,
            learning_rate=config.optimizer.learning_rate,
            world=world,
            on_phase=on_phase,
        )
        method = method_class(config.method.name)(problem, config.method)
        evaluator = HeldOut(
            chain,
            reward,
            judge,
            book,
            held_out,
            config.evaluation,
            seed=config.seed,
            latent_shape=latent_shape,
            keep=config.keep_samples,
            world=world,
            averaged=optimizer.ema_weights,
            adapter_state=adapter.state_dict,
        )
    except BaseException:
        adapter.detach()
        model.gradient_checkpointing(False)
        raise
    return Parts(
        config,
        model,
        reward,
        judge,
        world,
        chain,
        latent_shape,
        adapter,
        batches,
        scorer,
        method,
        optimizer,
        evaluator,
        interrupts,
    )


def _adapter(model: DiffusionModel, config: TrainConfig) -> Adapter:
    """A new adapter, or the one in the file that config.lora.start_from names."""
    lora = config.lora
    if lora.start_from is None:
        seed, text = config.seed, lora.text_encoder
        return attach(model, lora.rank, lora.alpha, lora.targets, seed, text, lora.denoisers)
    return apply_lora(model, Path(lora.start_from).expanduser())


def _loaded(reward: Any, name: str | None, options: dict[str, Any]) -> Reward:
    return load_reward(reward, **(options if isinstance(reward, str) and reward == name else {}))


def _as_it_runs(
    config: TrainConfig, model: DiffusionModel, reward: Reward, judge: Reward | None
) -> TrainConfig:
    """The config with prompt files read, and with the model and the rewards that were really handed over."""
    config = copy.deepcopy(with_prompts_read(config))
    config.model = model.source or _by_python(model.name, model.signature())
    config.reward, config.reward_options = _description(reward)
    if judge is not None:
        config.evaluation.judge, config.evaluation.judge_options = _description(judge)
    return config


def _description(reward: Reward) -> tuple[str, dict[str, Any]]:
    """A reward's name and options, where it has been loaded by a name; else 'python:name'."""
    return described(*reward.source) if reward.source is not None else (_by_python(reward.name), {})


def described(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A reward's name and options as config.yaml holds them.

    'python:name' where an option is an object, which is then there by the name of what it is.
    """
    return (name if _plain(options) else _by_python(name)), _written(options)


def _written(value: Any) -> Any:
    """A value as a YAML file can hold it."""
    if isinstance(value, dict):
        return {str(key): _written(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    return value if _plain(value) else _by_python(getattr(value, "__name__", type(value).__name__))


def _by_python(name: str, signature: str | None = None) -> str:
    return f"{PYTHON}{name}" + (f" {signature}" if signature else "")


def _plain(value: Any) -> bool:
    """Whether a YAML file can hold the value."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def _prompts(
    config: TrainConfig,
    model: DiffusionModel,
    reward: Reward,
    judge: Reward | None,
    on_progress: Callable[[int, int], None],
) -> tuple[PromptBook, list[int], list[int]]:
    """One book of all prompts, the numbers of those to train on, and of those held out."""
    sampler = config.sampler
    training = read_prompts(config.prompts)
    held_out = read_prompts(config.evaluation.prompts) if config.evaluation.prompts else training
    every: list[Prompt] = list(dict.fromkeys([*training, *held_out]))
    negative, boundaries = sampler.negative_prompt, sampler.stage_boundaries
    book = PromptBook(model, every, negative, boundaries, on_progress=on_progress)
    model.release_text_encoders()
    for scorer in (reward, judge):
        if scorer is not None:
            scorer.prepare([prompt.text for prompt in every])
    place = {prompt: number for number, prompt in enumerate(every)}
    return book, [place[p] for p in training], [place[p] for p in held_out]
