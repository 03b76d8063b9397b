"""The command line: what it does. What it refuses and what it prints have files of their own."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import train
from PIL import Image

from rlr_core.cli import main as cli
from rlr_core.cli.configs import build_config
from rlr_core.config import TrainConfig, load_config
from rlr_core.demo.preset import demo_config
from rlr_core.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def without_times(row):
    return {key: value for key, value in row.items() if not key.startswith(("time/", "memory/"))}


# --- configs ---


def config_of(*arguments):
    return build_config(cli._parse([str(argument) for argument in arguments]))


def test_settings_win_over_flags_and_flags_over_the_file(here):
    (here / "run.yaml").write_text("model: m\nprompts: [a]\nsteps: 1\nbatch: 8\nlora: {rank: 2}\n")
    config = config_of(
        "train", "run.yaml", "--steps", 2, "lora.rank=3", "--seed", 5, "seed=6", "--method", "full"
    )
    assert (config.steps, config.batch, config.lora.rank, config.seed) == (2, 8, 3, 6)
    assert (config.method.name, config.prompts, config.model) == ("full", ["a"], "m")


def test_prompts_are_read_into_the_config_so_that_it_runs_again_from_anywhere(
    here, tiny_sd_folder, monkeypatch
):
    (here / "held.txt").write_text("x\ny")
    monkeypatch.chdir(tiny_sd_folder.parent)
    shutil.copy(here / "prompts.txt", "prompts.txt")
    config = config_of(
        "train",
        "--model",
        tiny_sd_folder.name,
        "--prompts",
        "prompts.txt",
        f"evaluation.prompts={here}/held.txt",
    )
    assert config.prompts == ["a red circle", "a cat above a dog", "a blue square"]
    assert config.evaluation.prompts == ["x", "y"]
    assert config.model == str(tiny_sd_folder)


def test_the_built_in_model_starts_from_the_demo_and_brings_its_prompts(here):
    demo = demo_config(out="runs/run")
    assert config_of("train") == demo
    config = config_of("train", "--model", "demo", "--method", "full", "sampler.eta=0.75")
    assert config.sampler.steps == demo.sampler.steps and config.sampler.eta == 0.75
    assert config.method.name == "full"
    (here / "run.yaml").write_text("model: demo\nsteps: 3\n")
    config = config_of("train", "run.yaml")
    assert config.prompts == demo.prompts and config.evaluation.prompts == demo.evaluation.prompts
    assert config.sampler == TrainConfig().sampler


def test_training_and_held_out_prompts_of_the_demo_share_nothing():
    demo = demo_config("x", 3)
    assert (demo.out, demo.seed) == ("x", 3)
    assert demo.method.name == "auto" and demo.evaluation.judge == "judge"
    assert not set(demo.prompts) & set(demo.evaluation.prompts)


def test_a_flag_that_looks_like_yaml_is_taken_as_it_is(here):
    (here / "[1].txt").write_text("a cat")
    config = config_of("train", "--model", "[m]", "--prompts", "[1].txt", "--out", "2024")
    assert (config.model, config.prompts, config.out) == ("[m]", ["a cat"], "2024")


def test_every_setting_is_explained_without_a_run(rlr, here):
    code, out, err = rlr("train", "--help-settings")
    assert code == 0 and err == "" and not list(here.glob("run*"))
    for known in TrainConfig.settings():
        assert f"  {known.key} = " in out
    assert "sampler.eta = 1.0  (number, between 0 and 2)" in out


# --- train, resume ---


def test_train_leaves_a_run_folder_and_says_what_it_did(rlr, here, tiny_sd_folder):
    code, out, err = rlr(*train(tiny_sd_folder), "--steps", 3, "--out", "run")
    assert code == 0
    pictures = ["reward.png", "before_after.png", "samples/step_000000.png", "samples/step_000003.png"]
    for name in ("config.yaml", "metrics.jsonl", "lora.safetensors", "state/state.safetensors", *pictures):
        assert (here / "run" / name).stat().st_size > 0, name
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if row.get("judge/mean") is not None] == [0, 2, 3]
    for key in ("reward/mean", "reward/std", "gradient/norm", "kl", "evaluations/forward",
                "evaluations/backward", "memory/peak_bytes", "time/seconds"):  # fmt: skip
        assert all(row[key] is not None for row in rows[1:]), key
    lines = out.splitlines()
    assert re.match(r"4 pictures +before +after +difference", lines[0])
    number = r"-?\d+\.\d{3} \[-?\d+\.\d{3}, -?\d+\.\d{3}\]"
    signed = r"[+-]\d+\.\d{3} \[[+-]\d+\.\d{3}, [+-]\d+\.\d{3}\]"
    assert re.match(rf"reward: brightness +{number} +{number} +{signed}$", lines[1])
    assert re.match(rf"judge: saturation +{number} +{number} +{signed}$", lines[2])
    assert re.match(r"diversity +\d\.\d{3} +\d\.\d{3} +[+-]\d\.\d{3}$", lines[3])
    evaluations = f"{rows[-1]['evaluations/forward']} forward, {rows[-1]['evaluations/backward']}"
    assert "3 (finished)" in out and evaluations in out and "run/lora.safetensors" in out
    assert "update 3/3" in err and "evaluations/s" in err


@pytest.mark.slow
def test_the_config_that_ran_runs_again_as_it_is(rlr, run_folder, here):
    code, *_ = rlr("train", "run/config.yaml", "out=again")
    assert code == 0
    first, second = (RunFolder.open(here / name) for name in ("run", "again"))
    assert [without_times(row) for row in first.metrics()] == [without_times(row) for row in second.metrics()]
    theirs, ours = load_config(run_folder / "config.yaml"), load_config(here / "again" / "config.yaml")
    assert ours.fingerprint() == theirs.fingerprint()


@pytest.mark.slow
def test_resume_makes_a_run_longer_and_equal_to_one_that_never_stopped(
    rlr, run_folder, here, tiny_sd_folder, monkeypatch
):
    monkeypatch.chdir(here.parent)  # a resumed run needs no file but its folder and the model
    os.remove(here / "prompts.txt")
    code, _, err = rlr("train", "--resume", run_folder, "steps=4")
    assert code == 0 and "going on from update 2 of 4" in err
    (here.parent / "prompts.txt").write_text("a red circle\na cat above a dog\na blue square\n")
    assert rlr(*train(tiny_sd_folder), "--steps", 4, "--out", here / "whole")[0] == 0
    again, whole = (RunFolder.open(here / name) for name in ("run", "whole"))
    assert again.config.steps == 4
    ours, theirs = ([without_times(row) for row in folder.metrics()] for folder in (again, whole))
    assert ours == theirs
    left, right = (folder.load_state()[0] for folder in (again, whole))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name].nan_to_num(-1), right[name].nan_to_num(-1)) for name in left)


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(here, tiny_sd_folder):
    command = [
        sys.executable,
        "-m",
        "rlr_core",
        *map(str, train(tiny_sd_folder)),
        "--steps",
        "1000",
        "--out",
        "run 1",
    ]
    process = subprocess.Popen(
        command, cwd=here, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in process.stderr:
        if line.startswith("update 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and out == ""
    assert err.splitlines()[-1] == "Stopped; the state is saved. Go on with: rlr train --resume 'run 1'"
    folder = RunFolder.open(here / "run 1")
    step = folder.load_state()[1]["step"]
    assert 2 <= step == folder.metrics()[-1]["step"] < 1000
    assert cli.main(["train", "--resume", str(here / "run 1"), f"steps={step + 1}"]) == 0
    assert [row["step"] for row in folder.metrics()] == list(range(step + 2))


def test_ctrl_c_before_training_is_quiet(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("rlr_core.cli.listing.LISTS", {"models": interrupted})
    assert cli.main(["list", "models"]) == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_running_out_of_gpu_memory_names_the_settings_that_help(monkeypatch, capsys):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("rlr_core.cli.listing.LISTS", {"models": full})
    assert cli.main(["list", "models"]) == 2
    assert "lower micro_batch" in capsys.readouterr().err


# --- sample, evaluate ---


@pytest.mark.slow
def test_evaluate_measures_what_the_run_measured(rlr, run_folder, here):
    _, out, _ = rlr("evaluate", "run/config.yaml", "--lora", "run/lora.safetensors")
    rows = RunFolder.open(run_folder).metrics()
    judge = next(line for line in out.splitlines() if line.startswith("judge: saturation"))
    before, after = (rows[place]["judge/mean"] for place in (0, -1))
    assert re.match(rf"judge: saturation +{before:.3f} \[.*\] +{after:.3f} \[", judge)
    assert re.search(r"diversity +\d\.\d+ +\d\.\d+ +[+-]\d\.\d+\n", out)


@pytest.mark.slow
def test_evaluate_without_a_lora_shows_the_base_alone(rlr, run_folder):
    code, out, _ = rlr("evaluate", "run/config.yaml")
    assert code == 0
    assert re.match(r"4 pictures +mean\nreward: brightness +\d\.\d{3} \[.*\]\njudge: saturation", out)
    assert "difference" not in out


@pytest.mark.slow
def test_strength_zero_is_the_base_model(rlr, run_folder):
    _, out, _ = rlr("evaluate", "run/config.yaml", "--lora", "run/lora.safetensors", "--strength", 0)
    assert out.count("+0.000 [+0.000, +0.000]") == 2


def test_sample_writes_every_prompt_with_every_seed_and_a_grid(rlr, here, tiny_sd_folder):
    code, out, _ = rlr("sample", "--model", tiny_sd_folder, "--prompts", "prompts.txt", "sampler.steps=2",
                       "--out", "pictures", "--seeds", 7, 8)  # fmt: skip
    assert code == 0 and out == "6 pictures and grid.png in pictures\n"
    names = [f"{number:04d}_seed{7 + number % 2}.png" for number in range(6)]
    assert sorted(path.name for path in (here / "pictures").iterdir()) == [*names, "grid.png"]
    with Image.open(here / "pictures" / names[0]) as picture:
        assert picture.size == (16, 16)
    with Image.open(here / "pictures" / "grid.png") as picture:
        assert picture.size == (2 * 132 + 4, 3 * 132 + 4)  # a row a prompt, a column a seed


@pytest.mark.slow
def test_a_sampled_picture_does_not_depend_on_its_batch_and_a_lora_changes_it(
    rlr, run_folder, here, tiny_sd_folder
):
    common = [
        "sample",
        "--model",
        tiny_sd_folder,
        "--prompt",
        "a cat",
        "--prompt",
        "a dog",
        "sampler.steps=3",
    ]
    rlr(*common, "--out", "a", "evaluation.batch=1")
    rlr(*common, "--out", "b", "evaluation.batch=2", "--lora", "run/lora.safetensors", "--strength", 0)
    rlr(*common, "--out", "c", "--lora", "run/lora.safetensors", "--strength", 300)
    a, b, c = ([Image.open(here / name / f"000{i}_seed0.png").tobytes() for i in range(2)] for name in "abc")
    assert a == b
    assert a[0] != a[1]
    assert a[0] != c[0]


def test_sample_takes_the_first_held_out_prompts_of_a_config(rlr, run_folder, here):
    code, out, _ = rlr("sample", "run/config.yaml", "keep_samples=2", "--out", "pictures")
    assert code == 0 and out.startswith("2 pictures")


# --- list, score ---


def test_list_names_all_there_is(rlr):
    from rlr_core.methods import METHODS
    from rlr_core.rewards import REWARDS

    code, out, _ = rlr("list")
    names = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert names >= {
        *METHODS,
        *REWARDS,
        "demo",
        "stable-diffusion",
        "ddim",
        "flow_ddim",
        "flow_grpo",
        "dance",
    }
    assert [line for line in out.splitlines() if line and line[0] != " "] == [
        "models", "methods", "rewards", "samplers", "prompts",
    ]  # fmt: skip
    assert rlr("list", "methods")[1].startswith("methods\n  auto")


def test_score_prints_a_table_and_writes_csv(rlr, here):
    for name, color in (("a.png", "red"), ("b.png", "white")):
        Image.new("RGB", (8, 8), color).save(here / name)
    code, out, _ = rlr(
        "score", "*.png", "--reward", "brightness", "--reward", "saturation", "--csv", "out/s.csv"
    )
    assert code == 0
    assert re.search(r"b\.png +1\.0000 +0\.0000", out)
    rows = list(csv.DictReader(io.StringIO((here / "out" / "s.csv").read_text())))
    assert [row["image"] for row in rows] == ["a.png", "b.png"]
    assert float(rows[1]["brightness"]) == pytest.approx(1, abs=1e-6)


def test_score_passes_options_on(rlr, here):
    Image.new("RGB", (8, 8), "blue").save(here / "a.png")
    _, out, _ = rlr("score", "a.png", "--reward", "mean_color", "--option", "channel=blue")
    assert re.search(r"a\.png +1\.0000", out)


# --- the program itself ---


def test_python_m_rlr_core_is_rlr():
    command = [sys.executable, "-m", "rlr_core", "--version"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"rlr \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    "code",
    [
        "import rlr_core; rlr_core.TrainConfig(); rlr_core.UserError; dir(rlr_core)",
        "from rlr_core.cli.main import main; main(['train', '--steps', 'x'])",
        "from rlr_core.cli.main import make_parser; make_parser().format_help()",
    ],
)
def test_importing_and_asking_for_help_load_nothing_heavy(code):
    code += "\nimport sys; assert not {'torch', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_public_face_is_all_there():
    import rlr_core

    for name in rlr_core.__all__:
        assert getattr(rlr_core, name) is not None
        assert name in dir(rlr_core)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rlr_core.trian  # noqa: B018
