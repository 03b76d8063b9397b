"""The README is true: its examples run, its commands exist, its tables are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlr_core.cli import main as cli
from rlr_core.cli.configs import build_config
from rlr_core.methods import METHODS, method_class
from rlr_core.rewards import REWARDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    ((?:rlr|pip|pytest)\b.*)$", README, re.MULTILINE)
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder, *arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=QUIET, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_python_example_runs_and_leaves_what_it_promises(tmp_path, number):
    (tmp_path / "example.py").write_text(PYTHON[number])
    done = run(tmp_path, "example.py")
    assert done.returncode == 0, done.stderr
    for name in re.findall(r'\.save\("(.+)"\)', PYTHON[number]):
        assert (tmp_path / name).stat().st_size > 0
    if "rlr.train(" in PYTHON[number]:
        assert re.fullmatch(r"-?\d\.\d+ \[.*\] -> -?\d\.\d+ \[.*\]\n", done.stdout)


@pytest.mark.slow
def test_the_yaml_example_runs(tmp_path):
    (example,) = YAML
    (tmp_path / "run.yaml").write_text(example)
    done = run(tmp_path, "-m", "rlr_core", "train", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "yaml" / "lora.safetensors").stat().st_size > 0


def test_the_reward_example_is_a_reward_that_the_line_under_it_would_list(tmp_path):
    import torch

    (example,) = [text for text in PYTHON if "(Reward)" in text]
    space = {}
    exec(example, space)  # noqa: S102 - our own README
    reward = space["Warmth"]()
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0], images[1, 2] = 1, 1
    assert reward(images, ["a", "b"]).tolist() == [1, -1]
    assert '"warmth": Entry("rlr_core.rewards.warmth:Warmth", ' in README
    assert (ROOT / "rlr_core" / "rewards" / "__init__.py").exists()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("rlr ")])
def test_every_command_is_one_that_the_command_line_knows(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat")
    args = cli._parse(shlex.split(command)[1:])
    for name in ("reward", "evaluation.judge"):
        chosen = getattr(args, name, None) or []
        assert set([chosen] if isinstance(chosen, str) else chosen) <= set(REWARDS)
    if args.command == "train" and args.resume is None:
        assert build_config(args).prompts == ["a cat"]


def test_settings_named_in_the_text_exist():
    from rlr_core.config import TrainConfig, override

    for key, value in re.findall(r"`([a-z_.]+)=([^`\s]+)`", README):
        if key != "key":
            override(TrainConfig(), [f"{key}={value}"])
    for key in re.findall(r"`((?:method|sampler|lora|evaluation|optimizer)\.[a-z_]+|save_every)`", README):
        config = TrainConfig()
        for name in key.split("."):
            config = getattr(config, name)


def test_the_table_of_methods_is_complete_and_right():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", README, re.MULTILINE))
    assert list(rows) == list(METHODS)
    for name, gradient in rows.items():
        needs = {"needed": "yes", "used": "no", "no": "no"}[method_class(name).needs_gradient]
        assert gradient.split(",")[0] == needs, name


def test_flags_named_in_the_text_exist():
    commands = cli.make_parser()._subparsers._group_actions[0].choices.values()
    known = {flag for command in commands for flag in command._option_string_actions}
    assert set(re.findall(r"(?<=`)--[a-z-]+", README)) <= known


def test_files_of_the_run_folder_are_those_that_are_written():
    from rlr_core.training import run_folder

    for name in (
        run_folder.CONFIG,
        run_folder.METRICS,
        run_folder.LORA,
        run_folder.STATE.split("/")[0] + "/",
    ):
        assert re.search(rf"^    {re.escape(name)} ", README, re.MULTILINE), name


def test_ci_installs_and_tests_as_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    section = README[README.index("\n## Tests\n") :]
    ((install, test),) = re.findall(r"^    (.*) && (.*)$", section, re.MULTILINE)
    assert re.search(rf"^step {re.escape(test)}$", script, re.MULTILINE)
    assert install.replace("pip install ", "") in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_it_fits_a_page_and_has_no_loose_ends():
    assert not re.search(r"TODO|TBD|XXX|FIXME|lorem", README)
    assert max(map(len, (line for line in README.splitlines() if line[:1] not in ("|", " ")))) <= 120
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
