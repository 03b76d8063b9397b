"""The README is true: its examples run, its commands exist, its tables are complete."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from reference import method_tables

from rlr_core.benchmarks.comparison import ARMS
from rlr_core.benchmarks.peers import PEERS
from rlr_core.cli import main as cli
from rlr_core.cli.configs import build_config
from rlr_core.config.prompts import read_prompts
from rlr_core.methods import METHODS, method_class
from rlr_core.rewards import REWARDS, reward_class
from rlr_core.rewards.files import FOLDERS_VARIABLE
from rlr_core.rewards.text_in_image import wanted_texts

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SETTINGS = (ROOT / "rlr_core" / "config" / "settings.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", SETTINGS, re.DOTALL)
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


def test_a_reward_is_a_class_and_a_line_where_the_text_says():
    assert "[pixels.py](rlr_core/rewards/pixels.py)" in README and "`REWARDS`" in README
    assert REWARDS["brightness"].target == "rlr_core.rewards.pixels:Brightness"
    assert f"`{FOLDERS_VARIABLE}`" in README


def test_the_table_of_rewards_has_each_once_and_says_what_it_needs():
    (table,) = re.findall(r"\| Reward \| High for .*?\n\n", README, re.DOTALL)
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    listed = [name for row in rows for name in row[0].split(", ")]
    assert sorted(listed) == sorted(set(REWARDS) - {"demo", "judge"})
    for names, _, gradient, needs in rows:
        for kind in map(reward_class, names.split(", ")):
            assert kind.extra is None or " ".join(kind.extra.packages) in needs
            if gradient in ("yes", "no") and kind.name != "scores":
                assert kind.differentiable == (gradient == "yes"), kind.name


def test_the_prompt_with_metadata_is_one_that_a_file_may_hold(tmp_path):
    (line,) = re.findall(r'^`({"prompt".*})`', README, re.MULTILINE)
    (tmp_path / "prompts.jsonl").write_text(line)
    (prompt,) = read_prompts(tmp_path / "prompts.jsonl")
    assert wanted_texts(prompt.text) == ["open"]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("rlr ")])
def test_every_command_is_one_that_the_command_line_knows(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat")
    args = cli._parse(shlex.split(command)[1:])
    for name in ("reward", "evaluation.judge"):
        chosen = getattr(args, name, None) or []
        assert set([chosen] if isinstance(chosen, str) else chosen) <= set(REWARDS)
    if args.command == "train" and args.resume is None and not args.help_settings:
        assert build_config(args).prompts == ["a cat"]


def test_settings_named_in_the_text_exist():
    from rlr_core.config import TrainConfig, override

    for key, value in re.findall(r"`([a-z_.]+)=([^`\s]+)`", README):
        if key != "key":
            override(TrainConfig(), [f"{key}={value}"])
    for key in re.findall(
        r"`((?:method|sampler|lora|evaluation|optimizer)\.(?!safetensors)[a-z_]+|save_every)`", README
    ):
        config = TrainConfig()
        for name in key.split("."):
            config = getattr(config, name)


def test_the_tables_of_methods_say_what_the_methods_say_of_themselves():
    page = (ROOT / "nodes" / "web" / "docs" / "RLR_Method.md").read_text(encoding="utf-8")
    assert method_tables.for_readme(README) == README, "run tests/reference/method_tables.py"
    assert method_tables.for_help(page) == page, "run tests/reference/method_tables.py"
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|", README, re.MULTILINE)
    assert [name for name, *_ in rows] == list(METHODS)
    for name, gradient, when in rows:
        assert when and (gradient == "yes") == (method_class(name).needs_gradient == "needed"), name


def test_every_node_and_workflow_is_named_once():
    texts = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    (table,) = re.findall(r"\| Node \|.*?\n\n", README, re.DOTALL)
    firsts = [row.split(" | ")[0] for row in table.strip().splitlines()[2:]]
    listed = [name.strip("| ") for first in firsts for name in first.split(", ")]
    assert sorted(listed) == sorted(text["display_name"] for text in texts.values())
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(re.findall(r"`(rlr-[a-z0-9-]+)`", README)) == workflows


def test_the_comparison_says_of_us_what_is_so():
    from rlr_core.config import EvaluationConfig

    (table,) = re.findall(r"^\| \| ComfyUI-RLR \|.*?\n\n", README, re.DOTALL | re.MULTILINE)
    ours = {row.split(" | ")[0].strip("| "): row.split(" | ")[1] for row in table.strip().splitlines()[2:]}
    assert all(len(row.split(" | ")) == 7 for row in table.strip().splitlines() if "---" not in row)
    assert (ours["Reward from a server of your own"] == "yes") == ("http" in REWARDS)
    assert ours["Learns from finished pictures"].startswith("DiffusionNFT") == ("nft" in METHODS)
    assert "stop_when_judge_drops" in EvaluationConfig.model_fields


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
        assert f"`{name}`" in README, name


def test_the_figures_of_the_methods_lie_beside_the_bench_that_makes_them():
    page = (ROOT / "rlr_core" / "benchmarks" / "results.md").read_text(encoding="utf-8")
    for command in re.findall(r"^    rlr (.*)$", page.replace("\\\n", " "), re.MULTILINE):
        cli._parse(shlex.split(command))
    tables = re.findall(r"\| method \|.*?\n\n", page, re.DOTALL)
    rows = [row.split(" | ")[0].strip("| ") for table in tables for row in table.strip().splitlines()[2:]]
    assert len(tables) == 2 and len(rows) > 10 and set(rows) <= {*ARMS, *PEERS}


def test_the_memory_of_stable_diffusion_is_what_the_help_page_says():
    page = (ROOT / "nodes" / "web" / "docs" / "RLR_Train.md").read_text(encoding="utf-8")
    figures = {float(row) for row in re.findall(r"^\| 512 x 512 \|.* ([\d.]+) \|$", page, re.MULTILINE)}
    low, high = re.findall(r"takes ([\d.]+) to ([\d.]+) GiB", README)[0]
    assert (float(low), float(high)) == (min(figures), max(figures))
    for script in re.findall(r"`python ([\w/.]+)`", README + page):
        assert (ROOT / script).is_file(), script


def test_ci_installs_and_tests_as_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    section = README[README.index("\n## Tests\n") :]
    ((install, test),) = re.findall(r"^    (.*) && (.*)$", section, re.MULTILINE)
    assert re.search(rf"^step {re.escape(test)}$", script, re.MULTILINE)
    assert install.replace("pip install ", "") in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_it_fits_a_page_and_has_no_loose_ends():
    assert len(README.splitlines()) <= 200
    assert not re.search(r"TODO|TBD|XXX|FIXME|lorem", README)
    assert not re.search(r"colour|optimis|normalis|behaviour|climb|walk", README)
    assert max(map(len, (line for line in README.splitlines() if line[:1] not in ("|", " ")))) <= 120
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
