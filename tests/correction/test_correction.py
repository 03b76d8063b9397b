"""Inverse noise correction: inversion on maps that can be written down, the corrector's law, files."""

from __future__ import annotations

import pytest
import torch
from gaussian_flow import MEAN, SPREAD, affine, gaussian_chain, nobody
from lessons import Workbench
from safetensors.torch import save_file
from tiny_flow import TinyFlow

from rlr_core.common.images import to_pil
from rlr_core.correction.corrector import Corrector, load_corrector
from rlr_core.correction.fitting import fit
from rlr_core.correction.inversion import invert, state_error
from rlr_core.correction.pictures import read_pictures
from rlr_core.correction.report import distance
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError

SHAPE = (2, 4, 4)


def real(count: int, seed: int = 0) -> torch.Tensor:
    """Pictures of the Gaussian model's law."""
    rng = torch.Generator().manual_seed(seed)
    return MEAN + SPREAD * torch.randn(count, *SHAPE, generator=rng)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_inversion_undoes_the_samplers_steps(steps):
    chain, pictures = gaussian_chain(steps), real(6)
    found = invert(chain, pictures, nobody(6), tolerance=1e-7)
    slope, offset = affine(chain)
    assert torch.allclose(found.noise, (pictures - offset) / slope, atol=2e-5 / abs(slope))
    assert float(found.residual.max()) < 1e-6


def test_inversion_holds_where_the_plain_map_runs_away():
    chain = gaussian_chain(2, sharpness=-6.0)
    slope, offset = affine(chain)
    step = chain.step(2)
    assert abs(step.b * 6.0) > 1  # the map's own slope: from one iteration to the next it grows
    found = invert(chain, real(3), nobody(3), tolerance=1e-7)
    assert torch.allclose(found.noise, (real(3) - offset) / slope, atol=1e-4)


def test_a_network_s_state_comes_back_and_not_only_its_residual():
    bench = Workbench(TinyFlow(), steps=8, guidance=1.0)
    count = 4
    noise = Noise(list(range(count)), bench.shape)
    conditioning = bench.book.conditioning([0, 1, 2, 0])
    final = rollout(bench.chain, noise, conditioning, keep=False).final
    found = invert(bench.chain, final, conditioning)
    assert float(found.residual.max()) < 1e-5
    assert float(state_error(bench.chain, noise, conditioning).max()) < 1e-3
    assert torch.allclose(found.noise, noise.initial(), atol=1e-2)


def test_inversion_of_a_sampler_with_noise_is_refused():
    with pytest.raises(UserError, match="eta"):
        invert(gaussian_chain(3, eta=0.5), real(2), nobody(2))


def test_an_untrained_corrector_changes_no_noise():
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Corrector(2, width=16).correct(z), z)


def test_an_untrained_corrector_is_right_where_the_wanted_noise_is_normal():
    """The error that is left is uncorrelated with the state at every time."""
    rng = torch.Generator().manual_seed(0)
    wanted, z = torch.randn(2, 200_000, 1, 1, 1, generator=rng)
    for s in (0.1, 0.5, 0.8):
        x = (1 - s) * wanted + s * z
        error = z - wanted - x * (2 * s - 1) / (s**2 + (1 - s) ** 2)
        assert abs(float((error * x).mean())) < 0.01


@pytest.mark.slow
def test_corrected_noise_gives_the_law_of_the_pictures():
    """Two Euler steps make the spread of these pictures wrong by a half; corrected noise makes it right."""
    chain, count = gaussian_chain(2), 2000
    slope, offset = affine(chain)
    assert not 0.7 < abs(slope) / SPREAD < 1.4
    learned = fit(invert(chain, real(count), nobody(count)).noise, steps=300, width=16)
    assert learned.after < learned.before
    z = torch.randn(2000, *SHAPE, generator=torch.Generator().manual_seed(1))
    noise = learned.corrector.correct(z)
    pictures = slope * noise + offset
    assert float(pictures.std()) == pytest.approx(SPREAD, rel=0.1)
    assert float(pictures.mean()) == pytest.approx(MEAN, abs=0.1 * SPREAD)


def test_training_is_the_same_every_time():
    noise = real(64)
    first, second = (fit(noise, steps=6, batch=8, width=8).corrector.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_noise_that_has_nothing_to_teach_leaves_the_corrector_alone():
    normal = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    learned = fit(normal, steps=40, batch=8, width=16, learning_rate=0.1)
    assert learned.after <= learned.before
    if learned.steps == 0:
        assert torch.equal(learned.corrector.correct(normal), normal)


def test_too_few_pictures_and_videos_are_refused():
    with pytest.raises(UserError, match="too few"):
        fit(real(5))
    with pytest.raises(UserError, match="pictures"):
        fit(torch.zeros(30, 2, 3, 4, 4))


def test_a_corrector_comes_back_from_its_file(tmp_path):
    corrector = fit(real(64), steps=10, batch=16, width=8).corrector
    path = corrector.save(tmp_path / "corrector.safetensors", {"model": "gaussian"})
    found, metadata = load_corrector(path)
    assert metadata == {"model": "gaussian"}
    z = real(3, seed=4)
    assert torch.equal(found.correct(z), corrector.correct(z))
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match="no corrector"):
            load_corrector(tmp_path / name)


def test_pictures_come_with_their_captions_and_cover_the_size(tmp_path):
    wide = torch.zeros(3, 20, 40)
    wide[:, :, 10:30] = 1.0  # the middle square is white
    to_pil(wide).save(tmp_path / "b.png")
    to_pil(torch.full((3, 16, 16), 0.5)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" a gray square \n")
    found = read_pictures(tmp_path, 10, 10)
    assert found.captions == ["a gray square", ""]
    assert found.pictures.shape == (2, 3, 10, 10)
    assert torch.allclose(found.pictures[0], torch.tensor(0.5), atol=0.01)
    assert float(found.pictures[1].mean()) > 0.9
    with pytest.raises(UserError, match="no pictures"):
        read_pictures(tmp_path / "nothing", 10, 10)


def test_distances_tell_one_law_from_another():
    pytest.importorskip("torch_fidelity")
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 200, 3, 8, 8, generator=rng)

    def features(pictures):
        return pictures.flatten(1)[:, :16]

    same, other = distance(first, second, features), distance(first, 0.5 * second, features)
    assert abs(same.kid) < 0.01 < other.kid
    assert same.fid < other.fid
    assert distance(first, first, features).fid == pytest.approx(0, abs=1e-6)


def test_distances_say_what_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.metric_fid", None)
    with pytest.raises(UserError, match="torch-fidelity"):
        distance(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), lambda x: x.flatten(1))
