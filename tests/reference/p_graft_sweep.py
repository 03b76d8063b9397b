"""GRAFT and P-GRAFT on the same pictures, for the same number of steps: which N_I is best on the demo.

    python tests/reference/p_graft_sweep.py [--pictures 2048] [--steps 120] [--seeds 0]

Samples pictures of the built-in model once, four of a prompt, with all states on the way; accepts the best of
each four; and fits a LoRA to the accepted states of each level with a loop of its own, apart from the
engine's methods. Prints the judge's gain on 256 held-out pictures for every level, 0 being the finished
picture (GRAFT). About eight minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from rlr_core.config import SamplerConfig
from rlr_core.config.prompts import read_prompts
from rlr_core.demo.preset import demo_config
from rlr_core.diffusion import losses
from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import PromptBook
from rlr_core.diffusion.models.loading import load_model
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.evaluation import measures
from rlr_core.lora.attach import attach
from rlr_core.rewards import load_reward

GROUP, ROWS, LEVELS, AT_ONCE = 4, 16, 4, 64
RATE, WARMUP, LONGEST, AVERAGED = 1e-3, 6, 0.1, 0.9
NOISE_SEED = 10**6


class Sweep:
    """The demo model, its prompts, and pictures of the base with their states."""

    def __init__(self, pictures: int):
        config = demo_config()
        self.model, self.sampler = load_model("demo", device="cpu"), config.sampler.replace(eta=0.0)
        self.training, self.held_out = read_prompts(config.prompts), read_prompts(config.evaluation.prompts)
        self.book = PromptBook(self.model, self.training + self.held_out)
        self.shape = self.model.latent_shape(*self.model.default_size)
        groups = pictures // GROUP
        rng = torch.Generator().manual_seed(5)
        deals = [
            torch.randperm(len(self.training), generator=rng) for _ in range(groups // len(self.training) + 1)
        ]
        self.prompts = torch.cat(deals)[:groups].repeat_interleave(GROUP)
        chain, parts = self.chain(self.sampler), []
        for index in torch.arange(pictures).split(AT_ONCE):
            noise = Noise((NOISE_SEED + index).tolist(), self.shape)
            parts.append(rollout(chain, noise, self.book.conditioning(self.prompts[index])).latents)
        self.states = [torch.cat([part[t] for part in parts]) for t in range(chain.T)]
        rewards = self.scores("demo", self.states[0], self.prompts)
        best = rewards.view(-1, GROUP).argmax(1)
        self.accepted = best + GROUP * torch.arange(groups)

    def chain(self, sampler: SamplerConfig) -> Chain:
        return Chain(self.model, self.model.schedule(sampler), sampler.guidance)

    @torch.no_grad()
    def scores(self, name: str, latents: Tensor, prompts: Tensor) -> Tensor:
        """[N] of finished latents; prompts: numbers in the book."""
        reward, texts = load_reward(name), self.book.texts(prompts.tolist())
        parts = torch.arange(len(latents)).split(AT_ONCE)
        decoded = ((self.model.decode(latents[i]).clamp(0, 1), [texts[k] for k in i.tolist()]) for i in parts)
        return torch.cat([reward(pictures, prompts) for pictures, prompts in decoded]).float()

    def judged(self, chain: Chain, seed: int, count: int) -> Tensor:
        """[count] what the judge says of held-out pictures."""
        places, seeds = measures.plan(len(self.held_out), count, seed)
        prompts = torch.tensor(places) + len(self.training)
        finals = [
            rollout(
                chain,
                Noise([seeds[k] for k in i.tolist()], self.shape),
                self.book.conditioning(prompts[i]),
                keep=False,
            ).final
            for i in torch.arange(count).split(AT_ONCE)
        ]
        return self.scores("judge", torch.cat(finals), prompts)

    def fit(self, state: int, steps: int, seed: int, count: int) -> measures.ConfidenceInterval:
        """The judge's gain, in points, of a LoRA fitted to the accepted states of a level."""
        chain, adapter = self.chain(self.sampler), attach(self.model, rank=8, seed=seed)
        try:
            before = self.judged(chain, seed, count)
            if state:
                chain.base_steps, chain.base = state, adapter.disabled
            self._descend(chain, adapter.parameters(), state, steps, seed)
            return measures.ConfidenceInterval.of(100 * (self.judged(chain, seed, count) - before))
        finally:
            adapter.detach()

    def _descend(self, chain: Chain, parameters: list[Tensor], state: int, steps: int, seed: int) -> None:
        """Adam on the denoising loss; the parameters end as their running average."""
        share = chain.share(state) if state else 0.0
        level = chain.noise_level(share) if state else losses.CLEAN
        low = share + (chain.share(state + 1) - share) / 10 if state else 0.0
        optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0)
        rng = torch.Generator().manual_seed(seed)
        average, order = [p.detach().clone() for p in parameters], torch.zeros(0, dtype=torch.long)
        for step in range(steps):
            if len(order) < ROWS:
                order = self.accepted[torch.randperm(len(self.accepted), generator=rng)]
            rows, order = order[:ROWS], order[ROWS:]
            quantiles = (torch.randperm(LEVELS, generator=rng) + torch.rand(LEVELS, generator=rng)) / LEVELS
            for quantile, part in zip(quantiles.tolist(), rows.chunk(LEVELS), strict=True):
                at = low + (1 - low) * quantile
                t, states = chain.noise_level(at), self.states[state][part]
                noised = losses.add_noise(states, level, t, torch.randn(states.shape, generator=rng))
                output = chain.predict(noised.latents, at, self.book.conditioning(self.prompts[part]))
                error = (output - losses.target(self.model.prediction, noised, t)).square().flatten(1).mean(1)
                weight = noised.weight * losses.slopes(self.model.prediction, t).velocity ** 2
                (weight * error.sum() / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, LONGEST)
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - min(AVERAGED, (step + 1) / (step + 2)))
        with torch.no_grad():
            torch._foreach_copy_(parameters, average)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2048, help="sampled once, a quarter is accepted")
    parser.add_argument("--steps", type=int, default=120, help="of each fit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--judged", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sweep = Sweep(args.pictures)
    T = sweep.sampler.steps
    for seed in args.seeds:
        for state in dict.fromkeys((0, *(int(share * T + 0.5) for share in (0.25, 0.5, 0.75)))):
            gain = sweep.fit(state, args.steps, seed, args.judged)
            row = {"seed": seed, "N_I": state, "of": T, "gain": gain.mean, "low": gain.low, "high": gain.high}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
