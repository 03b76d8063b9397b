"""The walk: from the picture back towards the noise, one denoiser step in memory at a time.

At each visited step t the mean mu_t is recomputed with autograd on, a cotangent u_t is pulled through it,
the parameters' part is added up, and the part for x_t is handed to step t + 1 (math.md section 2):

    u_t     = lam_t p_t + (1 - lam_t) A z_t / sigma_t
    g_t     = (d mu_t / d theta)^T u_t
    p_{t+1} = (d mu_t / d x_t)^T u_t ,     p_1 = dR / dx_0

With a surrogate S of a black-box reward R, p and A belong to S, and the residual R - S has a likelihood ratio
of its own, r_t = (A_R - A_S) z_t / sigma_t, that is handed on only through steps without noise (section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Trajectory
from rlr_core.gradients.plan import Plan


class ChainLike(Protocol):
    """What the walk needs of a chain."""

    T: int

    def sigma(self, t: int) -> float: ...

    def mean(self, x: Tensor, t: int, conditioning: Conditioning) -> Tensor: ...


class Observer(Protocol):
    """Sees each step of a walk; `running.Statistics` is one."""

    def cotangents(self, t: int, pathwise: Tensor, ratio: Tensor) -> None: ...

    def contribution(self, t: int, norm: Tensor, samples: int) -> None: ...


@dataclass
class Signals:
    """What the reward says about a batch of trajectories."""

    advantage: Tensor
    """[B] advantage that multiplies the score of every noise; of the surrogate when there is one."""
    pathwise: Tensor | None = None
    """p_1 = dR/dx_0 [B, ...]; None for a black-box reward without a surrogate."""
    residual: Tensor | None = None
    """[B] advantage of what the surrogate leaves over, R - S; None without a surrogate."""

    def select(self, index: Tensor) -> Signals:
        return Signals(*(None if part is None else part[index] for part in vars(self).values()))


@dataclass
class Proximity:
    """Staying near the base model, or near the policy that sampled the trajectories."""

    base: Callable[[], AbstractContextManager] = nullcontext
    """Context in which the chain's mean is the base model's."""
    kl_weight: float = 0.0
    """Weight beta of the KL divergence to the base."""
    kl_sigma: float = 1.0
    """Stand-in for sigma at steps without noise: the smallest positive one (section 5)."""
    clip_range: float | None = None
    """PPO's clip; None for trajectories that the present parameters sampled."""


@dataclass
class WalkResult:
    """Sums over the batch."""

    gradient: list[Tensor]
    """Gradient of J, one float32 tensor per parameter: a sum over the trajectories, for ascent."""
    kl: Tensor
    """Weighted sum over samples and visited steps of the KL divergence to the base, 0-dim; 0 when beta is."""
    ratio_error: Tensor
    """Largest |rho - 1| seen, 0-dim; 0 unless PPO's clip is on."""
    clipped: Tensor
    """Number of likelihood ratios that the clip cut off, 0-dim."""
    pathwise: Tensor
    """p [B, ...] as handed on by the last step walked."""


def walk(
    chain: ChainLike,
    trajectory: Trajectory,
    parameters: Sequence[Tensor],
    plan: Plan,
    signals: Signals,
    *,
    proximity: Proximity | None = None,
    observer: Observer | None = None,
    steps: range | None = None,
) -> WalkResult:
    """Sum of the batch's gradient estimates of J, by one pass from t = 1 to T.

    trajectory: a full rollout of B samples; parameters: what to differentiate (the adapter's); steps: a part
    of 1..T, where signals.pathwise is the cotangent handed to its first. Works in float32; never waits for
    the device.
    """
    steps = steps or range(1, chain.T + 1)
    proximity = proximity or Proximity()
    x0 = trajectory.latents[0]
    device, batch = x0.device, x0.shape[0]
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    pathwise = torch.zeros_like(x0) if signals.pathwise is None else signals.pathwise
    result = WalkResult(totals, *(torch.zeros((), device=device) for _ in range(3)), pathwise)
    residual = None if signals.residual is None else torch.zeros_like(x0)
    visited = plan.visited
    lam_of, weight_of = plan.lam.to(device), plan.weight.to(device)

    for t in steps:
        index = visited[t].nonzero().flatten()
        if not len(index):
            continue
        index = index.to(device)
        everyone = len(index) == batch
        pick = (lambda tensor: tensor) if everyone else (lambda tensor, index=index: tensor[index])
        sigma = chain.sigma(t)
        hand_on = t < chain.T and (t == steps[-1] or bool((visited[t + 1] & (plan.lam[t + 1] > 0)).any()))

        x = pick(trajectory.latents[t]).detach().requires_grad_(hand_on)
        conditioning = trajectory.conditioning if everyone else trajectory.conditioning.select(index)
        with torch.enable_grad():
            mu = chain.mean(x, t, conditioning)

        p, lam, weight = pick(pathwise), _column(pick(lam_of[t]), x), _column(pick(weight_of[t]), x)
        if sigma > 0:
            advantage = pick(signals.advantage)
            score, factor = _score(trajectory, t, sigma, mu, pick, advantage, proximity.clip_range, result)
            ratio = _column(advantage * factor, x) * score
            if observer is not None:
                observer.cotangents(t, p, ratio)
            mixed = lam * p + (1 - lam) * ratio
        else:
            mixed = lam * p
        left_over = None
        if residual is not None:
            left_over = pick(residual)
            if sigma > 0:
                left_over = _column(pick(signals.residual), x) * score

        pull = _kl_pull(chain, t, sigma, x, mu, conditioning, weight, proximity, result)
        gradients = _pull_back(mu, x, parameters, mixed, left_over, pull, weight, hand_on,
                               t < chain.T and chain.sigma(t + 1) <= 0)  # fmt: skip
        if hand_on:
            pathwise = _put(pathwise, index, gradients.x, everyone)
        if residual is not None:
            handed = gradients.residual if gradients.residual is not None else torch.zeros_like(x)
            residual = _put(residual, index, handed, everyone)
        torch._foreach_add_(totals, gradients.parameters)
        if observer is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients.parameters)))
            observer.contribution(t, norm, len(index))
    result.pathwise = pathwise
    return result


@dataclass
class _Gradients:
    parameters: list[Tensor]
    x: Tensor | None
    residual: Tensor | None


def _pull_back(
    mu: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    mixed: Tensor,
    left_over: Tensor | None,
    pull: Tensor | None,
    weight: Tensor,
    hand_on: bool,
    next_is_silent: bool,
) -> _Gradients:
    """Vector-Jacobian products of one step.

    One backward pass when what the parameters see is the weighted mixture that is handed on (the weights are
    per sample, so x's part is divided by them again); another one each for what is not handed on.
    """
    for_parameters = weight * mixed
    extra = [weight * part for part in (left_over, pull) if part is not None]
    hand_residual = left_over is not None and next_is_silent
    handed = residual = None
    if hand_on and not extra:
        handed, *gradients = torch.autograd.grad(mu, [x, *parameters], for_parameters, allow_unused=True)
        handed = handed / weight
    else:
        if hand_on:
            (handed,) = torch.autograd.grad(mu, x, mixed, retain_graph=True)
            if hand_residual:
                (residual,) = torch.autograd.grad(mu, x, left_over, retain_graph=True)
        gradients = torch.autograd.grad(mu, list(parameters), sum(extra, for_parameters), allow_unused=True)
    return _Gradients(
        [torch.zeros_like(p) if g is None else g.float() for g, p in zip(gradients, parameters, strict=True)],
        handed,
        residual,
    )


def _score(
    trajectory: Trajectory,
    t: int,
    sigma: float,
    mu: Tensor,
    pick: Callable[[Tensor], Tensor],
    advantage: Tensor,
    clip: float | None,
    result: WalkResult,
) -> tuple[Tensor, Tensor | float]:
    """d log p / d mu of the drawn x_{t-1} [B, ...], and PPO's factor on the advantage [B].

    On trajectories of the present parameters the score is z / sigma, exactly, and the factor 1. Otherwise it
    is taken at the present mean and carries rho = p_new / p_old, cut off where it would go on growing.
    """
    z = pick(trajectory.noises[t])
    if clip is None:
        return z / sigma, 1.0
    present = (pick(trajectory.latents[t - 1]) - mu.detach()) / sigma
    # log p_new - log p_old = -(|z'|^2 - |z|^2) / 2, as a product of a small difference
    log_ratio = -0.5 * ((present - z) * (present + z)).sum(tuple(range(1, z.ndim)))
    rho = log_ratio.clamp(-20, 20).exp()
    cut = ((advantage > 0) & (rho > 1 + clip)) | ((advantage < 0) & (rho < 1 - clip))
    result.ratio_error = torch.maximum(result.ratio_error, (rho - 1).abs().max())
    result.clipped = result.clipped + cut.sum()
    return present / sigma, torch.where(cut, torch.zeros_like(rho), rho)


def _kl_pull(
    chain: ChainLike,
    t: int,
    sigma: float,
    x: Tensor,
    mu: Tensor,
    conditioning: Conditioning,
    weight: Tensor,
    proximity: Proximity,
    result: WalkResult,
) -> Tensor | None:
    """-beta (mu - mu_base) / sigma^2: the pull to the base, for the parameters alone (section 5)."""
    if proximity.kl_weight <= 0:
        return None
    with torch.no_grad(), proximity.base():
        base = chain.mean(x.detach(), t, conditioning)
    variance = (sigma if sigma > 0 else proximity.kl_sigma) ** 2
    difference = mu.detach() - base
    result.kl = result.kl + (weight * difference.square()).sum() / (2 * variance)
    return -proximity.kl_weight * difference / variance


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with the rank of `like`."""
    return per_sample.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def _put(whole: Tensor, index: Tensor, part: Tensor, everyone: bool) -> Tensor:
    if everyone:
        return part
    whole = whole.clone()
    whole[index] = part
    return whole
