"""Backward through a rollout: from the picture to the noise, one denoiser step in memory at a time.

We call it the walk. At each visited step t the mean mu_t is recomputed with autograd on and the
vector-Jacobian product of a cotangent u_t is taken: the parameters' part is added up, the part for x_t is
propagated to step t + 1 (math.md section 2):

    u_t     = lam_t p_t + (1 - lam_t) A z_t / sigma_t
    g_t     = (d mu_t / d theta)^T u_t
    p_{t+1} = (d mu_t / d x_t)^T u_t ,     p_1 = dR / dx_0

With a surrogate S of a black-box reward R, p and A belong to S, and the residual R - S has a likelihood ratio
of its own, r_t = (A_R - A_S) z_t / sigma_t, that is propagated only through deterministic steps (section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlr_core.diffusion.chain import ChainLike
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.rollout import Trajectory
from rlr_core.gradients.plan import Plan


class Observer(Protocol):
    """Sees each step of a walk; `statistics.Statistics` is one."""

    def cotangents(self, t: int, pathwise: Tensor, score_function: Tensor) -> None: ...

    def mixture(self, t: int, mixed: Tensor) -> None: ...


@dataclass
class Signals:
    """What the reward says about a batch of trajectories."""

    advantage: Tensor
    """[B] advantage that multiplies the score of every noise; of the surrogate when there is one."""
    pathwise: Tensor | None = None
    """p_1 = dR/dx_0 [B, ...]; None for a black-box reward without a surrogate."""
    residual: Tensor | None = None
    """[B] advantage of what the surrogate leaves over, R - S; None without a surrogate."""


@dataclass
class Regularization:
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
class BackwardResult:
    """Sums over the batch."""

    gradient: list[Tensor]
    """Gradient of J, one float32 tensor per parameter: a sum over the trajectories, for ascent."""
    kl: Tensor
    """Weighted sum over samples and visited steps of the KL divergence to the base, 0-dim; 0 when beta is."""
    importance_ratio_error: Tensor
    """Largest |rho - 1| seen, 0-dim; 0 unless PPO's clip is on."""
    clipped: Tensor
    """Number of importance ratios that the clip cut off, 0-dim."""
    pathwise: Tensor
    """p [B, ...] as propagated by the last step walked."""


def backward(
    chain: ChainLike,
    trajectory: Trajectory,
    parameters: Sequence[Tensor],
    plan: Plan,
    signals: Signals,
    *,
    regularization: Regularization | None = None,
    observer: Observer | None = None,
    steps: range | None = None,
) -> BackwardResult:
    """Sum of the batch's gradient estimates of J, by one pass from t = 1 to T.

    trajectory: a full rollout of B samples, whose kept graphs are used up; parameters: what to differentiate
    (the adapter's); steps: a part of 1..T, where signals.pathwise is the cotangent propagated to its first.
    Works in float32; never waits for the device.
    """
    steps = steps or range(1, chain.T + 1)
    regularization = regularization or Regularization()
    x0 = trajectory.latents[0]
    device, batch = x0.device, x0.shape[0]
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    pathwise = torch.zeros_like(x0) if signals.pathwise is None else signals.pathwise
    kl, ratio_error, clipped = torch.zeros(3, device=device)
    result = BackwardResult(totals, kl, ratio_error, clipped, pathwise)
    residual = None if signals.residual is None else torch.zeros_like(x0)
    visited = plan.visited
    lam_of, weight_of = (part.to(device, non_blocking=True) for part in (plan.lam, plan.weight))

    for t in steps:
        index = visited[t].nonzero().flatten()
        if not len(index):
            continue
        index = index.to(device, non_blocking=True)
        everyone = len(index) == batch
        pick = (lambda tensor: tensor) if everyone else (lambda tensor, index=index: tensor[index])
        sigma = chain.sigma(t)
        propagate = t < chain.T and (t == steps[-1] or bool((visited[t + 1] & (plan.lam[t + 1] > 0)).any()))

        conditioning = trajectory.conditioning if everyone else trajectory.conditioning.select(index)
        graph = trajectory.graphs.pop(t, None)
        if graph is not None and everyone:
            x, mu = graph
        else:
            x = pick(trajectory.latents[t]).detach().requires_grad_(propagate)
            with torch.enable_grad():
                mu = chain.mean(x, t, conditioning)
        del graph

        p, lam, weight = pick(pathwise), _column(pick(lam_of[t]), x), _column(pick(weight_of[t]), x)
        if sigma > 0:
            advantage = pick(signals.advantage)
            score, factor = _score(
                trajectory, t, sigma, mu, pick, advantage, regularization.clip_range, result
            )
            score_function = _column(advantage * factor, x) * score
            if observer is not None:
                observer.cotangents(t, p, score_function)
            mixed = lam * p + (1 - lam) * score_function
        else:
            mixed = lam * p
        if observer is not None:
            observer.mixture(t, mixed)
        residual_cotangent = None
        if residual is not None:
            residual_cotangent = pick(residual)
            if sigma > 0:
                residual_cotangent = _column(pick(signals.residual), x) * score

        kl_cotangent = _kl_cotangent(chain, t, sigma, x, mu, conditioning, weight, regularization, result)
        next_is_deterministic = t < chain.T and chain.sigma(t + 1) <= 0
        gradients = _vjp(
            mu,
            x,
            parameters,
            mixed,
            residual_cotangent,
            kl_cotangent,
            weight,
            propagate,
            next_is_deterministic,
        )
        if gradients.x is not None:
            pathwise = _put(pathwise, index, gradients.x, everyone)
        if residual is not None:
            passed_on = gradients.residual if gradients.residual is not None else torch.zeros_like(x)
            residual = _put(residual, index, passed_on, everyone)
        torch._foreach_add_(totals, gradients.parameters)
    result.pathwise = pathwise
    return result


@dataclass
class _Gradients:
    parameters: list[Tensor]
    x: Tensor | None
    residual: Tensor | None


def _vjp(
    mu: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    mixed: Tensor,
    residual_cotangent: Tensor | None,
    kl_cotangent: Tensor | None,
    weight: Tensor,
    propagate: bool,
    next_is_deterministic: bool,
) -> _Gradients:
    """Vector-Jacobian products of one step.

    What is propagated, p, is the mixture; what the parameters see is weight * mixture plus what is not
    propagated (the residual, the pull to the base). Where there is nothing but the mixture, one backward pass
    gives both: the weights are per sample, and so is the Jacobian of x, so that x's part of the weighted
    product divided by the weights is the product of the mixture itself. Otherwise there is one pass each.
    """
    if not mu.requires_grad:  # nothing of the adapter is in this step, and nothing goes further
        return _Gradients([torch.zeros_like(parameter) for parameter in parameters], None, None)
    for_parameters = weight * mixed
    extra = [weight * part for part in (residual_cotangent, kl_cotangent) if part is not None]
    propagate_residual = residual_cotangent is not None and next_is_deterministic
    of_x = residual = None
    if propagate and not extra:
        of_x, *gradients = torch.autograd.grad(mu, [x, *parameters], for_parameters, allow_unused=True)
        of_x = of_x / weight
    else:
        if propagate:
            (of_x,) = torch.autograd.grad(mu, x, mixed, retain_graph=True)
            if propagate_residual:
                (residual,) = torch.autograd.grad(mu, x, residual_cotangent, retain_graph=True)
        gradients = torch.autograd.grad(mu, list(parameters), sum(extra, for_parameters), allow_unused=True)
    return _Gradients(
        [torch.zeros_like(p) if g is None else g.float() for g, p in zip(gradients, parameters, strict=True)],
        of_x,
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
    result: BackwardResult,
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
    result.importance_ratio_error = torch.maximum(result.importance_ratio_error, (rho - 1).abs().max())
    result.clipped = result.clipped + cut.sum()
    return present / sigma, torch.where(cut, torch.zeros_like(rho), rho)


def _kl_cotangent(
    chain: ChainLike,
    t: int,
    sigma: float,
    x: Tensor,
    mu: Tensor,
    conditioning: Conditioning,
    weight: Tensor,
    regularization: Regularization,
    result: BackwardResult,
) -> Tensor | None:
    """-beta (mu - mu_base) / sigma^2: the pull to the base, for the parameters alone (section 5)."""
    if regularization.kl_weight <= 0:
        return None
    with torch.no_grad(), regularization.base():
        base = chain.mean(x.detach(), t, conditioning)
    variance = (sigma if sigma > 0 else regularization.kl_sigma) ** 2
    difference = mu.detach() - base
    result.kl = result.kl + (weight * difference.square()).sum() / (2 * variance)
    return -regularization.kl_weight * difference / variance


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with the rank of `like`."""
    return per_sample.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def _put(whole: Tensor, index: Tensor, part: Tensor, everyone: bool) -> Tensor:
    if everyone:
        return part
    whole = whole.clone()
    whole[index] = part
    return whole
