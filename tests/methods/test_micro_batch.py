"""How a batch is cut into micro-batches changes no gradient, with what earlier updates left behind."""

from __future__ import annotations

import pytest
import torch
from lessons import Workbench
from marks import quick
from tiny_models import TINY

from rlr_core.gradients.samples import Scores
from rlr_core.methods import METHODS

OPTIONS = {
    "adaptive": {"budget": 0.5},
    "rlr": {"start": "gradient_norm", "kl_weight": 0.1, "perturbations": 2},
}
UPDATES = 3
PROMPTS = [0, 0, 0, 1, 1, 1, 2, 2]


def score(latents, prompts, gradient):
    """A smooth reward, heavy enough in places that gradients of one batch differ."""
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_()
        value = leaf.flatten(1)[:, 0] + leaf.flatten(1).square().mean(1)
        (of_latents,) = torch.autograd.grad(value.sum(), leaf)
    return Scores(value.detach(), of_latents if gradient else None)


def gradients(bench: Workbench, name: str, micro_batch: int) -> list[list[torch.Tensor]]:
    """Of a few updates at the same weights, but for a trial that a method makes of its own accord."""
    bench.problem.micro_batch = micro_batch
    start = [parameter.detach().clone() for parameter in bench.problem.parameters]
    method = bench.method(name, **OPTIONS.get(name, {}))
    method.prepare(lambda step, per_prompt=None: bench.batch(PROMPTS, seed=step + 1))
    samples = (method.collect(bench.batch(PROMPTS, seed=step), step) for step in range(UPDATES))
    found = [next(iter(method.gradients(batch))).gradient for batch in samples]
    with torch.no_grad():
        torch._foreach_copy_([parameter.data for parameter in bench.problem.parameters], start)
    return found


@pytest.mark.parametrize("tiny_model", quick(TINY, "tiny-flow"), indirect=True)
@pytest.mark.parametrize("name", quick(METHODS, "adaptive", "ddpo", "nft"))
def test_gradient_does_not_depend_on_the_micro_batch(name, tiny_model):
    bench = Workbench(tiny_model, eta=1.0)
    bench.problem.score, bench.problem.pathwise, bench.problem.differentiable = score, True, True
    whole = gradients(bench, name, 8)
    for micro_batch in (1, 3):
        for update, (one, other) in enumerate(zip(whole, gradients(bench, name, micro_batch), strict=True)):
            size = torch.stack([part.norm() for part in one]).norm()
            distance = torch.stack([(a - b).norm() for a, b in zip(one, other, strict=True)]).norm()
            assert size > 0
            assert distance < 1e-3 * size, f"update {update}, micro_batch {micro_batch}"
