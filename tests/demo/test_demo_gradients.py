"""The z-score test of every method on the built-in model: a real denoiser, guidance, decoder and reward."""

from __future__ import annotations

import pytest

from rlr_core.benchmarks.gradient_quality import measure_methods, methods_for
from rlr_core.config import SamplerConfig
from rlr_core.demo.preset import demo_config
from rlr_core.diffusion.models.loading import load_model
from rlr_core.rewards import load_reward

pytestmark = pytest.mark.slow

STEPS, UPDATES = 4, 20
BIASED = [name for name in methods_for(STEPS) if name.startswith("truncated")]


@pytest.fixture(scope="module")
def found():
    """The quality of every method's gradient, by name."""
    config = demo_config()
    config = config.replace(
        batch=4,
        samples_per_prompt=2,
        micro_batch=4,
        decode_batch=4,
        sampler=SamplerConfig(steps=STEPS, eta=1.0, guidance=3.0, last_step_noise=0.05),
    )
    rows = measure_methods(load_model("demo"), load_reward("demo"), config, UPDATES)
    return {row.name: row for row in rows}


@pytest.mark.parametrize("method", [name for name in methods_for(STEPS) if name not in BIASED])
def test_method_is_unbiased_on_a_real_model(method, found):
    assert found[method].largest_z < 4.5


def test_mixture_is_as_quiet_as_back_propagation_and_far_quieter_than_the_likelihood_ratio(found):
    whole = found["adaptive"].noise
    assert whole < 1.3 * found["full"].noise
    assert whole < 0.3 * found["likelihood_ratio"].noise


def test_walks_visit_what_their_plans_say(found):
    """4 trajectories, 4 steps, guidance twice: 32 evaluations of a rollout, as many of a whole walk; the KL
    figure takes 16 of two trajectories in the first update and in every tenth."""
    kl = 16 * 3 // UPDATES
    assert (found["full"].forward, found["full"].backward) == (32 + kl, 32)
    assert found["truncated, K = 1"].backward == 8
    assert found["zeroth_order"].backward == 0
    assert found["zeroth_order"].forward == 64 + kl
