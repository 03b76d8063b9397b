"""Bad input on the command line: one sentence, exit code 2, nothing touched."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import snapshot, train

from rlr_core.cli import main as cli
from rlr_core.config import TrainConfig, load_config, save_config
from rlr_core.errors import UserError
from rlr_core.training.events import PHASES
from rlr_core.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


def refused(rlr, here, *arguments, says):
    """The command is refused with one sentence that matches `says`, and no file has changed."""
    before = snapshot(here)
    code, out, err = rlr(*arguments)
    assert code == 2
    assert out == ""
    said = err[err.index("rlr: ") :]
    phases = {line.partition(",")[0] for line in err[: -len(said)].splitlines()}
    assert phases <= set(PHASES.values()), err  # what it was at, no more
    assert re.fullmatch(r"rlr: [^\n]+\n", said), err
    assert re.search(says, err), err
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "adaptve"], "Unknown method 'adaptve'.*Did you mean 'adaptive'"),
        (["--reward", "brightnes"], "Unknown reward 'brightnes'.*Did you mean 'brightness'"),
        (["--judge", "saturatoin"], "Unknown judge 'saturatoin'.*Did you mean 'saturation'"),
        (["--model", "nowhere"], "There is no model 'nowhere'"),
        (["--model", "prompts.txt"], r"prompts\.txt is .*"),
        (["--prompts", "nowhere.txt"], "Cannot read the prompt file 'nowhere.txt'"),
        (["--device", "gpu"], "Unknown device 'gpu'"),
        (["--dtype", "fp23"], "Unknown dtype 'fp23'.*'fp32'"),
        (["--steps", "ten"], "--steps: invalid int value: 'ten'"),
        (["--stpes", "3"], "does not know '--stpes'.*Did you mean '--steps'"),
        (["sampler.stesp=3"], r"Unknown setting 'sampler\.stesp'.*'sampler\.steps'"),
        (["nonsense"], "'nonsense' is neither a config file nor a setting"),
        (["a.yaml", "b.yaml"], "One config file at a time, not a.yaml and b.yaml"),
        (["missing.yaml"], "Cannot read the config 'missing.yaml'"),
        (["steps=0"], "steps is 0"),
        (["sampler.steps=1"], "sampler.steps is 1; it must be between 2 and 10,000"),
        (["method=rlr", "method.window=3"], r"method\.window is 3; with 3 sampler steps it must be 1\.\.2"),
        (["method=ddpo", "sampler.eta=0"], "learns from the sampler's noise"),
        (["method=likelihood_ratio", "sampler.eta=0"], "learns from the sampler's noise"),
        (["--resume", "nowhere"], "There is no run folder 'nowhere'"),
        (["--resume", "."], "not a run folder"),
        (["--resume", "x", "--out", "y"], "leave out --out"),
        (["sampler.height=13"], "13"),
        (["reward_options.glow=3"], "Reward 'brightness'.*glow"),
    ],
)
def test_train_refuses(rlr, here, tiny_sd_folder, arguments, says):
    out = [] if "--resume" in arguments else ["--out", "run"]
    refused(rlr, here, *train(tiny_sd_folder), "--steps", 2, *out, *arguments, says=says)


def test_train_refuses_an_empty_prompt_file(rlr, here, tiny_sd_folder):
    (here / "prompts.txt").write_text("\n  \n")
    refused(rlr, here, *train(tiny_sd_folder), "--out", "run", says="prompt file 'prompts.txt' is empty")


def test_train_refuses_to_go_without_prompts(rlr, here, tiny_sd_folder):
    refused(
        rlr, here, "train", "--model", tiny_sd_folder, "--reward", "brightness", says="prompts must be a list"
    )


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["diagnose"]])
def test_a_config_whose_reward_was_a_python_function_is_refused(rlr, here, command):
    config = TrainConfig(prompts=["a cat"], reward="python:warmth")
    (here / "run.yaml").write_text(save_config(config))
    says = r"reward is 'python:warmth', which a Python program handed over as an object"
    refused(rlr, here, *command, "run.yaml", says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("out: 2024-13-45", "'run.yaml' is not YAML: month must be in"),
        ("prompts: &a [*a]", "'run.yaml' is not a config: it is nested too deeply"),
        ("[" * 3000, "'run.yaml' is not"),
    ],
)
def test_train_refuses_hostile_yaml(rlr, here, text, says):
    (here / "run.yaml").write_text(text)
    refused(rlr, here, "train", "run.yaml", says=says)


def test_train_refuses_a_config_with_a_misspelt_key(rlr, here):
    (here / "run.yaml").write_text("model: demo\nsampler: {guidanse: 3}\n")
    refused(rlr, here, "train", "run.yaml", says=r"'sampler\.guidanse'.*Did you mean 'sampler\.guidance'")


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_train_refuses_a_model_with_a_truncated_file(rlr, here, tiny_sd_folder, name):
    shutil.copytree(tiny_sd_folder, here / "broken")
    whole = (here / "broken" / name).read_bytes()
    (here / "broken" / name).write_bytes(whole[: len(whole) // 2])
    refused(
        rlr, here, *train("broken"), "--out", "run", says="broken.*(truncated|damaged|incomplete|cut off)"
    )


def test_train_refuses_a_truncated_checkpoint(rlr, here, tiny_sd_folder):
    whole = (tiny_sd_folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(rlr, here, *train("cut.safetensors"), "--out", "run", says=r"cut\.safetensors")


def test_train_refuses_to_overwrite_a_run(rlr, run_folder, here, tiny_sd_folder):
    refused(
        rlr,
        here,
        *train(tiny_sd_folder),
        "--out",
        "run",
        says="'run' already holds a run: go on with --resume run",
    )


def test_train_refuses_to_overwrite_a_folder_of_something_else(rlr, here, tiny_sd_folder):
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter1.txt").write_text("the only copy")
    refused(rlr, here, *train(tiny_sd_folder), "--out", "thesis", says="'thesis' exists and is not empty")
    refused(rlr, here, *train(tiny_sd_folder), "--out", "prompts.txt", says="'prompts.txt' is a file")


def test_train_refuses_the_state_of_another_config(rlr, run_folder, here):
    refused(
        rlr, here, "train", "--resume", "run", "--method", "full", "lora.rank=2", "steps=5",
        says=r"'run' was run with other settings: method\.name, lora\.rank\.",
    )  # fmt: skip
    other = load_config(run_folder / "config.yaml")
    other.sampler.eta = 0.25
    (here / "other.yaml").write_text(save_config(other))
    refused(rlr, here, "train", "other.yaml", "--resume", "run", says=r"other settings: sampler\.eta\.")


@pytest.mark.slow
def test_train_on_a_full_disk_says_so_and_the_disk_keeps_what_it_had(rlr, here, tiny_sd_folder):
    disk = here / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    try:
        code, _, err = rlr(*train(tiny_sd_folder), "--steps", 30, "--out", "disk/run", "lora.rank=1")
        assert code == 2
        assert re.search(r"^rlr: The disk is full: 'disk/run/[^\n]+$", err, re.MULTILINE)
        assert "Traceback" not in err
        folder = RunFolder.open(disk / "run")
        state = folder.load_state()
        assert state is None or state[1]["step"] <= folder.metrics()[-1]["step"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["list", "modles"], "invalid choice: 'modles'"),
        (["list", "models", "more"], "does not know 'more'"),
        (["score", "prompts.txt", "--reward", "brightness"], r"prompts\.txt"),
        (["score", "nothing*.png", "--reward", "brightness"], r"nothing\*\.png leads to no picture"),
        (["score", ".", "--reward", "brightness"], "leads to no picture"),
        (["score", "a.png"], "required: --reward"),
        (["score", "a.png", "--reward", "brightness", "--option", "x"], "'x' is not an option"),
        (["sample", "--model", "nowhere", "--prompt", "x"], "There is no model 'nowhere'"),
        (
            ["sample", "--model", "demo", "--prompt", "x", "--lora", "no.safetensors"],
            "no LoRA file 'no.safet",
        ),
        (["evaluate", "--model", "nowhere", "--reward", "brightness"], "Which prompts"),
        (["demo", "--sede", "3"], "does not know '--sede'.*'--seed'"),
    ],
)
def test_other_commands_refuse(rlr, here, arguments, says):
    refused(rlr, here, *arguments, says=says)


@pytest.mark.parametrize("arguments", [["--seeds", "-1"], ["--out", "full"], ["--lora", "prompts.txt"]])
def test_sample_refuses(rlr, here, tiny_sd_folder, arguments):
    (here / "full").mkdir()
    (here / "full" / "a.png").write_text("mine")
    command = ["sample", "--model", tiny_sd_folder, "--prompt", "a cat", "sampler.steps=2", *arguments]
    refused(rlr, here, *command, says="Seeds start at 0|'full' exists and is not empty|prompts.txt")


def test_debug_shows_where_it_happened(here):
    with pytest.raises(UserError, match="There is no run folder"):
        cli.main(["train", "--resume", "nowhere", "--debug"])


def test_an_error_of_ours_is_not_dressed_up_as_theirs(monkeypatch):
    monkeypatch.setattr("rlr_core.cli.listing.LISTS", {"models": lambda: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", "models"])


@pytest.mark.slow
def test_an_old_key_in_a_config_is_named_on_stderr(here):
    (here / "run.yaml").write_text("method: {kl: 0.1}\nreward: python:warmth\n")
    command = [sys.executable, "-m", "rlr_core", "train", "run.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    first, second = done.stderr.splitlines()
    assert first == "Setting 'method.kl' is called 'method.kl_weight' now."
    assert done.returncode == 2 and second.startswith("rlr: reward is 'python:warmth'")
