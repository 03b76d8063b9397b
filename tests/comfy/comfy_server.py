"""A real ComfyUI server for a test: started, asked, cancelled, stopped; standard library only."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACK = "ComfyUI-RLR"
TRAIN_INPUTS = ("steps", "batch", "size", "sampler_steps", "guidance", "seed", "run_name", "mode")
"""The widgets of RLR Train."""
NOT_COPIED = (".git", "tests", "runs", "*.pyc", "__pycache__", ".pytest_cache", ".ruff_cache", "*.egg-info")


def make_base(folder: Path) -> Path:
    """A base directory with a copy of this repository in custom_nodes, as a person would make one."""
    for name in ("custom_nodes", "models/checkpoints", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(ROOT, folder / "custom_nodes" / PACK, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


class ComfyServer:
    """Runs main.py of a ComfyUI on the CPU with its own base directory, from `with` to its end."""

    def __init__(self, comfyui: Path, base: Path, *options: str):
        self.comfyui, self.base, self.options = comfyui, base, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
                    "--base-directory", str(self.base), "--disable-auto-launch",
                    "--database-url", f"sqlite:///{self.base}/user/comfyui.db", *self.options,
                ],
                cwd=self.comfyui, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at once:\n{self.text()[-4000:]}")
            try:
                self.get("/system_stats")
                return self
            except (OSError, ValueError):
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI does not answer:\n{self.text()[-4000:]}")

    def __exit__(self, *raised: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def text(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    # --- requests ---

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """POST of JSON: status and the answer, JSON or text."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode(errors="replace")

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue an API workflow; its prompt id. Raises RuntimeError if it is refused."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        if status != 200 or answer.get("node_errors"):
            raise RuntimeError(f"refused: {json.dumps(answer)[:3000]}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a prompt once it is over."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.get(f"/history/{prompt_id}").get(prompt_id)
            if found is not None:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"not over after {timeout} s:\n{self.text()[-3000:]}")

    def run(self, prompt: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        """Queue, wait, and return the outputs by node id. Raises RuntimeError if it failed."""
        entry = self.wait(self.queue(prompt), timeout)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"failed: {json.dumps(entry['status'])[:4000]}")
        return entry["outputs"]

    def interrupt(self) -> None:
        """Press Cancel."""
        self.post("/interrupt", {})

    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        queue = self.get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]


def changed(prompt: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """A copy of an API workflow with inputs of RLR Train replaced, in each of them.

    Those that are RLR Train Settings' are replaced there, in such a node of its own where there is none.
    """
    copy = json.loads(json.dumps(prompt))
    for number, node in list(copy.items()):
        if node["class_type"] != "RLR_Train":
            continue
        node["inputs"] |= {name: value for name, value in inputs.items() if name in TRAIN_INPUTS}
        further = {name: value for name, value in inputs.items() if name not in TRAIN_INPUTS}
        if further:
            own, _ = node["inputs"].setdefault("settings", [f"{number}0", 0])
            copy.setdefault(own, {"class_type": "RLR_TrainSettings", "inputs": {}})["inputs"] |= further
    return copy
