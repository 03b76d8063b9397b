"""`rlr correct`: a small flow in front of a model, so that few steps make pictures like the given ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.cli.configs import add_settings, build_config
from rlr_core.cli.tables import table
from rlr_core.config import TrainConfig
from rlr_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from rlr_core.correction.corrector import Corrector
    from rlr_core.diffusion.chain import Chain

CORRECT = """Inverse noise correction: learn which noise a sampler of few steps would need.

  rlr correct --model M --pictures photos --out corrected sampler.steps=8 sampler.guidance=1
  rlr correct --model M --corrector corrected/corrector.safetensors --prompt "a lighthouse" --seeds 1 2 3 \\
      --out pictures sampler.steps=8 sampler.guidance=1

The first inverts the pictures of a folder (captions: a .txt file beside each) through the sampler's own
steps and trains a small flow from normal noise to what came out; the model itself is not changed. The second
samples through it. A corrector fits the model, the steps and the guidance that it was made with; the sampler
adds no noise. Meant for flow models; guidance makes inversion harder. With torch-fidelity installed, KID and
FID of the pictures with and without it are printed, on features of --clip, or on simple ones of color and
texture."""


def add_correct(commands: Any) -> None:
    parser = commands.add_parser(
        "correct", help="a small flow that corrects the noise of a sampler of few steps", description=CORRECT
    )
    add_settings(parser, "model", "seed", "device", "dtype")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pictures", metavar="DIR", help="the pictures to learn from")
    what.add_argument("--corrector", metavar="FILE", help="the corrector to sample with")
    parser.add_argument("--out", metavar="DIR", default="corrected", help="the folder to write, new or empty")
    parser.add_argument("--updates", metavar="N", type=int, default=1500, help="training steps of the flow")
    parser.add_argument("--samples", metavar="N", type=int, default=256, help="pictures that are compared")
    parser.add_argument("--clip", metavar="FILE", help="a CLIP ViT-L/14 whose features KID and FID compare")
    parser.add_argument(
        "--prompt", metavar="TEXT", action="append", help="a prompt to sample; may be repeated"
    )
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0], help="seeds to sample")
    parser.set_defaults(run=correct)


def correct(args: argparse.Namespace) -> int:
    from rlr_core.diffusion.chain import Chain
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.training.run_folder import require_free

    config = build_config(args)
    config.sampler = config.sampler.replace(eta=0.0, last_step_noise=0.0)
    folder = Path(args.out).expanduser()
    require_free(folder)
    if args.corrector is not None and not args.prompt:
        raise UserError("Which pictures? Give --prompt, as often as you like.")
    if min(args.seeds) < 0:
        raise UserError(f"Seeds start at 0; {min(args.seeds)} is none.")
    if args.samples < 2 or args.updates < 1:
        raise UserError(
            f"--samples is {args.samples} and --updates {args.updates}: two pictures and one update are the "
            f"least."
        )
    model = load_model(config.model, config.device, config.dtype)
    chain = Chain(model, model.schedule(config.sampler), config.sampler.guidance)
    height, width = (
        given or own
        for given, own in zip((config.sampler.height, config.sampler.width), model.default_size, strict=True)
    )
    if args.corrector is not None:
        return _sample(args, config, chain, model.latent_shape(height, width), folder)
    return _train(args, config, chain, (height, width), folder)


def made_for(config: TrainConfig, chain: Chain) -> dict[str, str]:
    """What a corrector fits, as its file says it."""
    sampler = config.sampler
    return {"model": chain.model.name, "steps": str(sampler.steps), "guidance": f"{sampler.guidance:g}"}


def _sample(
    args: argparse.Namespace, config: TrainConfig, chain: Chain, shape: tuple[int, ...], folder: Path
) -> int:
    from rlr_core.common.atomic import replacing
    from rlr_core.common.images import to_pil
    from rlr_core.config.prompts import read_prompts
    from rlr_core.correction.corrector import load_corrector
    from rlr_core.correction.pictures import sample_corrected
    from rlr_core.diffusion.conditioning import PromptBook

    corrector, fits = load_corrector(args.corrector)
    wanted = made_for(config, chain)
    for name, value in wanted.items():
        if fits.get(name) != value:
            raise UserError(
                f"{args.corrector!r} was made for {name} {fits.get(name)} and this is {value}: sample as it "
                f"was made for, or make one for this."
            )
    _check_shape(corrector, shape)
    corrector.to(chain.model.device)
    book = PromptBook(chain.model, read_prompts(args.prompt), config.sampler.negative_prompt)
    places = [place for place in range(len(args.prompt)) for _ in args.seeds]
    seeds = args.seeds * len(args.prompt)
    pictures = sample_corrected(chain, book, places, seeds, shape, config.evaluation.batch, corrector)
    for number, picture in enumerate(pictures):
        with replacing(folder / f"{number:04d}_seed{seeds[number]}.png") as path:
            to_pil(picture).save(path)
    print(f"{len(pictures)} pictures in {folder}")
    return 0


def _check_shape(corrector: Corrector, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] != corrector.sizes["channels"]:
        raise UserError(
            f"The corrector is for latents of {corrector.sizes['channels']} channels and the model's are "
            f"{list(shape)}: make one for this model."
        )


def _train(
    args: argparse.Namespace, config: TrainConfig, chain: Chain, size: tuple[int, int], folder: Path
) -> int:
    from rlr_core.cli.progress import Counter
    from rlr_core.common.atomic import replacing
    from rlr_core.common.images import grid
    from rlr_core.config.prompts import read_prompts
    from rlr_core.correction.fitting import fit
    from rlr_core.correction.inversion import state_error
    from rlr_core.correction.pictures import invert_pictures, read_pictures, sample_corrected
    from rlr_core.diffusion.conditioning import PromptBook
    from rlr_core.diffusion.rollout import Noise

    batch, device = config.evaluation.batch, chain.model.device
    real = read_pictures(args.pictures, *size)
    book = PromptBook(chain.model, read_prompts(real.captions), config.sampler.negative_prompt)
    inversion = invert_pictures(chain, book, real.pictures, batch, Counter("inverting"))
    shape = inversion.noise.shape[1:]
    few = list(range(min(batch, len(real.captions))))
    wrong = state_error(chain, Noise(few, shape, device), book.conditioning(few))
    learned = fit(inversion.noise, steps=args.updates, seed=config.seed, on_progress=Counter("training"))
    learned.corrector.save(folder / "corrector.safetensors", made_for(config, chain))

    places = [place % len(real.captions) for place in range(args.samples)]
    seeds = list(range(args.samples))
    made = {
        name: sample_corrected(chain, book, places, seeds, shape, batch, corrector)
        for name, corrector in (("base", None), ("corrected", learned.corrector))
    }
    for name, pictures in made.items():
        with replacing(folder / f"{name}.png") as path:
            grid(pictures[:16]).save(path)
    figures = {
        "pictures": len(real.captions),
        "inversion residual, median and worst": _spread(inversion.residual),
        "state error of sample and invert, median and worst": _spread(wrong),
        "mean and deviation of the inverted noise": [
            float(inversion.noise.mean()),
            float(inversion.noise.std()),
        ],
        "held-out error of the velocity, before and after": [learned.before, learned.after],
        "training steps kept": learned.steps,
    }
    figures |= _distances(args, made, real.pictures)
    with replacing(folder / "report.json") as path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table([[name, _text(value)] for name, value in figures.items()]))
    print(f"corrector.safetensors, report.json, base.png and corrected.png in {folder}")
    return 0


def _spread(values: Tensor) -> list[float]:
    return [float(values.median()), float(values.max())]


def _distances(args: argparse.Namespace, made: dict[str, Tensor], real: Tensor) -> dict[str, Any]:
    """KID and FID of each set of pictures, or the sentence that says what they would take."""
    from rlr_core.correction.report import distance
    from rlr_core.rewards.towers.features import ClipFeatures, SimpleFeatures

    features = SimpleFeatures() if args.clip is None else ClipFeatures(args.clip)
    found: dict[str, Any] = {"features": "color and texture" if args.clip is None else "CLIP"}
    try:
        for name, pictures in made.items():
            result = distance(pictures, real, features)
            found[f"KID and its deviation, {name}"] = [result.kid, result.kid_deviation]
            found[f"FID, {name}"] = result.fid
    except UserError as missing:
        return {"KID and FID": str(missing)}
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
