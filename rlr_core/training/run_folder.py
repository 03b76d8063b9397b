"""A run folder: what a run leaves behind, written so that a kill or a full disk never costs the last state.

    config.yaml           the settings that ran, defaults and all
    metrics.jsonl         a JSON object per update
    samples/              held-out pictures on the way: step_000010.png
    state/                all it takes to go on exactly: state.safetensors
    lora.safetensors, reward.png, before_after.png
    best_lora.safetensors the best by the judge, of a run that stops when the judge drops
    .lock, .owner         who writes here (run_lock.py)

Every file but metrics.jsonl is replaced in one go: written beside itself, flushed to the disk, renamed.
metrics.jsonl grows a flushed line at a time; a torn last line is ignored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlr_core.common.atomic import TEMPORARY, disk, remove_temporaries, replacing
from rlr_core.config import TrainConfig, load_config, save_config, state_differences
from rlr_core.errors import UserError, one_line
from rlr_core.training.run_lock import LOCK, OWNER, RunLock

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATE = "state/state.safetensors"
LORA = "lora.safetensors"
BEST_LORA = "best_lora.safetensors"


class RunFolder:
    """The folder of one run. Every write raises UserError where the disk is full or refuses."""

    def __init__(self, path: Path, config: TrainConfig):
        """Use `create`, `resume` or `open`."""
        self.path = path
        self.config = config
        self._lock: RunLock | None = None

    @classmethod
    def create(cls, path: str | Path, config: TrainConfig) -> RunFolder:
        """A new run folder that holds the config, locked until `close`.

        Raises UserError where there already is something, or somebody who writes.
        """
        path = Path(path).expanduser()
        require_free(path)
        with disk(path):
            path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, config)
        folder._take()
        try:
            require_free(path)  # once more: another run may have begun here meanwhile
            with disk(path):
                remove_temporaries(path, path / "state", path / "samples")
            folder.write_text(CONFIG, save_config(config))
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder, cleared of what a killed run was writing. Raises UserError if it is none.

        For whoever goes on writing; to look into a live run use `load_config` and `read_metrics`.
        """
        path = Path(path).expanduser()
        require_run(path)
        with disk(path):
            remove_temporaries(path, path / "state", path / "samples")
        return cls(path, load_config(path / CONFIG))

    @classmethod
    def resume(cls, path: str | Path, config: TrainConfig) -> RunFolder:
        """An existing run folder that goes on under `config`, which replaces the one it holds; locked.

        Raises UserError where the two differ in a setting that the saved state depends on, or where
        somebody else writes.
        """
        path = Path(path).expanduser()
        require_run(path)
        folder = cls(path, config)
        folder._take()
        try:
            theirs = cls.open(path).config
            differences = state_differences(config, theirs)
            if differences:
                raise UserError(
                    f"{str(path)!r} was run with other settings: {', '.join(differences)}. "
                    "Resume with the folder's own, or start anew with another --out."
                )
            if save_config(config) != save_config(theirs):
                folder.write_text(CONFIG, save_config(config))
        except BaseException:
            folder.close()
            raise
        return folder

    def close(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take(self) -> None:
        self._lock = RunLock(self.path)
        with disk(self.path):
            self._lock.acquire()

    # --- metrics ---

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row: numbers, strings, None, nested. JSON has no infinity and no NaN: they become null."""
        data = (json.dumps(_plain(row), allow_nan=False) + "\n").encode()
        path = self.path / METRICS
        with disk(path, self.way_out()), open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, size)
                raise

    def metrics(self) -> list[dict[str, Any]]:
        """All rows, in order."""
        return read_metrics(self.path)

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows after `step` and torn lines: what a run had written since its last state."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        self.write_text(METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    # --- state ---

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace the state. tensors: by name, any dtype and device; values: what JSON holds, exactly."""
        from safetensors.torch import save

        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        data = save(copies, metadata={"values": json.dumps(values)})
        with self.replacing(STATE) as path:
            path.write_bytes(data)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and values saved last, or None. Raises UserError if the file is damaged."""
        from safetensors import safe_open

        path = self.path / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()["values"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if not isinstance(values, dict):
                raise ValueError("its values are no mapping")
        except Exception as error:  # safetensors raises what it likes for a damaged header
            raise damaged_state(path, error) from error
        return tensors, values

    # --- pictures and other files ---

    def save_samples(self, step: int, images: Tensor, columns: int | None = None) -> Path:
        """samples/step_000010.png: a grid of images [N, 3, H, W] or [N, F, 3, H, W] in [0, 1].

        Of videos the picture shows the middle frames, and an animation, .webp, lies beside it.
        """
        from rlr_core.common.images import grid, grid_frames

        if images.ndim == 5:
            self.save_animation(f"samples/step_{step:06d}.webp", grid_frames(images, columns))
        return self.save_image(f"samples/step_{step:06d}.png", grid(images, columns))

    def save_image(self, name: str, image: Any) -> Path:
        """A picture as PNG: a PIL image, or a tensor [3, H, W] in [0, 1]. Returns its path."""
        from rlr_core.common.images import to_pil

        with self.replacing(name) as path:
            to_pil(image).save(path, format="PNG")
        return self.path / name

    def save_animation(self, name: str, frames: list[Any]) -> Path:
        """PIL images as an animated WebP. Returns its path."""
        from rlr_core.common.images import save_animation

        with self.replacing(name) as path:
            save_animation(frames, path)
        return self.path / name

    def write_text(self, name: str, text: str) -> Path:
        """A text file in UTF-8. Returns its path."""
        with self.replacing(name) as path:
            path.write_bytes(text.encode())
        return self.path / name

    def replacing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path to write `name` to; on leaving it takes the name's place, whole, or not at all.

        Raises UserError where the run folder is not there any more.
        """
        if not self.path.is_dir():
            raise UserError(
                f"The run folder {str(self.path)!r} was removed or moved while its run was writing; what had "
                "not been written is lost."
            )
        return replacing(self.path / name, self.way_out())

    def way_out(self) -> str:
        """What to do when the disk is full: the end of that sentence."""
        if (self.path / STATE).exists():
            return f"The last saved state is whole: make room and go on with --resume {self.path}."
        return "No state had been saved yet: make room and start again."


def damaged_state(path: Path, error: Exception) -> UserError:
    """What to say of a state that cannot be put back."""
    reason = one_line(f"{type(error).__name__}: {error}")
    return UserError(
        f"The state {str(path)!r} is damaged ({reason}). Delete it to run again from the beginning."
    )


def require_run(path: Path) -> None:
    """Raise UserError where `path` is not a run folder."""
    if not path.is_dir():
        raise UserError(f"There is no run folder {str(path)!r}.")
    if not (path / CONFIG).is_file():
        raise UserError(f"{str(path)!r} is not a run folder: it holds no {CONFIG}.")


def require_free(path: str | Path) -> None:
    """Raise UserError where `path` already holds something that a new run would overwrite."""
    path = Path(path).expanduser()
    with disk(path):
        if not path.exists():
            return
        if not path.is_dir():
            raise UserError(f"{str(path)!r} is a file; choose another --out.")
        if (path / CONFIG).is_file():
            raise UserError(
                f"{str(path)!r} already holds a run: go on with --resume {path}, or choose another --out."
            )
        left_behind = (TEMPORARY, LOCK, OWNER)  # by a run that was killed before it had written anything
        if any(not child.name.startswith(left_behind) for child in path.iterdir()):
            raise UserError(f"{str(path)!r} exists and is not empty: choose another --out.")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl, without torn lines; safe while the run is alive."""
    try:
        data = (Path(path).expanduser() / METRICS).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in data.split(b"\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """What JSON can hold: one-element tensors and arrays as numbers, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if not isinstance(value, str) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
