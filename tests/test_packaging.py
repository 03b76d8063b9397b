"""What is installed is what is needed, no more and no less."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_TO_COMFYUI = {"torch", "torchvision", "comfyui-frontend-package"}


def declared():
    """The dependencies of pyproject.toml, as they are written there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE).group(1)
    return re.findall(r'^    "([^"]+)",$', block, re.MULTILINE)


def name_of(requirement):
    return re.match(r"[\w-]+", requirement).group()


def test_requirements_are_the_dependencies_that_comfyui_does_not_bring():
    wanted = [requirement for requirement in declared() if name_of(requirement) not in LEFT_TO_COMFYUI]
    assert (ROOT / "requirements.txt").read_text().splitlines() == wanted
    assert {name_of(requirement) for requirement in declared()} >= LEFT_TO_COMFYUI


def test_bounds_are_lower_bounds():
    for requirement in declared():
        assert re.fullmatch(r"[\w-]+(>=[\d.]+)?", requirement), requirement


def test_everything_that_is_imported_is_declared():
    modules = {"pillow": "PIL", "pyyaml": "yaml", "open_clip_torch": "open_clip"}
    known = {modules.get(name_of(requirement), name_of(requirement)) for requirement in declared()}
    known |= {"bitsandbytes", "torch_fidelity"}  # used where they are installed
    for brought_by in ("open_clip_torch", "transformers", "pydantic"):  # timm, tokenizers, typing_extensions
        needed = [name_of(needed) for needed in requires(brought_by) if "extra ==" not in needed]
        known |= {name.replace("-", "_") for name in needed}
    known |= {*sys.stdlib_module_names, "rlr_core"}
    peers = ROOT / "rlr_core" / "benchmarks" / "peers.py"  # runs in the environment that it describes
    for path in {*(ROOT / "rlr_core").rglob("*.py")} - {peers}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            unknown = {name.split(".")[0] for name in names} - known
            assert not unknown, f"{path.relative_to(ROOT)} imports {', '.join(unknown)}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel, built from a copy so that the tree stays clean."""
    pytest.importorskip("setuptools", minversion="69")
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rlr_core", folder / "source" / "rlr_core", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=folder / "source", check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_the_whole_package_weights_and_all(wheel):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "rlr_core").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert files - wheel == set()


def test_a_wheel_holds_nothing_else(wheel):
    extra = {name for name in wheel if not name.startswith("rlr_core/") and ".dist-info/" not in name}
    assert extra == set()


def test_the_program_is_called_rlr(wheel):
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
    text = (ROOT / "pyproject.toml").read_text()
    assert 'rlr = "rlr_core.cli.main:main"' in text


def test_the_versions_agree():
    import rlr_core

    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1) == rlr_core.__version__


def test_weights_of_the_demo_are_small():
    weights = ROOT / "rlr_core" / "demo" / "weights"
    assert sum(path.stat().st_size for path in weights.rglob("*")) <= 15 * 2**20


@pytest.mark.skipif(not (ROOT / "__init__.py").exists(), reason="the ComfyUI nodes are not in this tree yet")
def test_tests_are_collected_where_there_is_no_comfyui(tmp_path):
    shutil.copy(ROOT / "__init__.py", tmp_path / "__init__.py")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert True\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
