"""ComfyUI's runtime that the nodes touch: folders, progress, cancel, memory, events.

Names come from workflows, and a workflow may come from a stranger: every path that is made here lies inside
one of ComfyUI's own folders, whatever the name says.
"""

from __future__ import annotations

import gc
import logging
import os
import traceback
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from server import PromptServer

from rlr_core.errors import UserError
from rlr_core.rewards.files import FOLDERS_VARIABLE

from . import names, sockets

DEMO = "demo (built in)"
DIFFUSERS = "diffusers: "
REWARD_FOLDERS = ("reward_models", "clip_vision", "checkpoints")
"""Where a reward's files may lie; the first one's names go without a prefix."""


# --- folders and names ---


def register_folders() -> None:
    """models/reward_models, beside what extra_model_paths.yaml may have named so already."""
    kind = REWARD_FOLDERS[0]
    usual = os.path.join(folder_paths.models_dir, kind)
    folder_paths.add_model_folder_path(kind, usual, is_default=True)
    paths, _ = folder_paths.folder_names_and_paths[kind]
    endings = {".safetensors", ".pt", ".pth", ".bin", ".json", ".txt"}
    folder_paths.folder_names_and_paths[kind] = (paths, endings)
    with suppress(OSError):
        os.makedirs(usual, exist_ok=True)
    searched = [path for name in REWARD_FOLDERS[:2] for path in folder_paths.get_folder_paths(name)]
    own = [path for path in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if path]
    os.environ[FOLDERS_VARIABLE] = os.pathsep.join(dict.fromkeys([*searched, *own]))


def model_names() -> list[str]:
    """The built-in model, checkpoint files, and folders in diffusers' layout."""
    files = [name for name in folder_paths.get_filename_list("checkpoints") if name.endswith(".safetensors")]
    return [DEMO, *files, *(DIFFUSERS + name for name in _diffusers_folders())]


def model_path(name: str) -> str:
    """'demo', a checkpoint's path, or a folder's. Raises UserError for a name that is none of the list."""
    if name == DEMO:
        return "demo"
    if name.startswith(DIFFUSERS):
        path = _diffusers_folders().get(name.removeprefix(DIFFUSERS))
    else:
        path = folder_paths.get_full_path("checkpoints", name)
    if path is None:
        raise UserError(
            f"There is no model {name[:200]!r} in ComfyUI's models folders; press R to reload the list."
        )
    return str(path)


def _diffusers_folders() -> dict[str, Path]:
    """Name -> folder with a model_index.json, at most two levels down."""
    folders: dict[str, Path] = {}
    for base in map(Path, folder_paths.get_folder_paths("diffusers")):
        for pattern in ("*/model_index.json", "*/*/model_index.json"):
            for index in sorted(base.glob(pattern)):
                folders.setdefault(index.parent.relative_to(base).as_posix(), index.parent)
    return folders


def reward_files() -> list[str]:
    """Files that a reward may need: of models/reward_models, then 'clip_vision/...', 'checkpoints/...'."""
    listed = list(folder_paths.get_filename_list(REWARD_FOLDERS[0]))
    for kind in REWARD_FOLDERS[1:]:
        listed += [f"{kind}/{name}" for name in folder_paths.get_filename_list(kind)]
    return listed


def reward_path(name: str) -> str:
    """The path of a name of `reward_files`. Raises UserError for any other."""
    prefix, _, rest = name.partition("/")
    tries = [(REWARD_FOLDERS[0], name)]
    if prefix in REWARD_FOLDERS[1:]:
        tries.append((prefix, rest))
    for kind, file in tries:
        path = folder_paths.get_full_path(kind, file)
        if path is not None:
            return path
    raise UserError(f"There is no file {name[:200]!r} in ComfyUI's {', '.join(REWARD_FOLDERS)} folders.")


def prompt_files() -> list[str]:
    """Text files in the input folder, at most two levels down."""
    base = Path(folder_paths.get_input_directory())
    files = [path for pattern in ("*.txt", "*/*.txt") for path in base.glob(pattern) if path.is_file()]
    return sorted(path.relative_to(base).as_posix() for path in files)


def prompt_path(name: str) -> Path:
    """A text file in the input folder."""
    path = names.inside(folder_paths.get_input_directory(), name)
    if path.suffix.lower() != ".txt" or not path.is_file():
        raise UserError(f"There is no text file {name[:200]!r} in ComfyUI's input folder.")
    return path


def runs_folder() -> Path:
    """output/rlr, where run folders lie."""
    return _output() / "rlr"


def run_folder(name: str) -> Path:
    """The run folder that a name, or the path that RLR Train gave, means; inside output/rlr."""
    base = runs_folder()
    path = Path(name.strip())
    if path.is_absolute():
        with suppress(ValueError):
            name = path.relative_to(base).as_posix()
    return names.inside(base, name.strip())


def loras_folder() -> Path:
    """output/loras, which ComfyUI's LoRA loaders search."""
    return _output() / "loras"


def _output() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def output_reference(path: Path) -> dict[str, str]:
    """How the frontend asks for a picture in the output folder."""
    place = path.resolve().relative_to(_output())
    return {"filename": place.name, "subfolder": place.parent.as_posix(), "type": "output"}


# --- memory ---


@contextmanager
def whole_device(advice: str = "Close other programs that use the GPU.") -> Iterator[torch.device]:
    """The device for us alone, out of inference mode and with gradients; on leaving everything is given back.

    ComfyUI runs nodes in inference mode, in which nothing can be trained and no parameter made.
    advice: what to say when memory runs out.
    """
    check_cancel()
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    gc.freeze()  # ComfyUI's many objects are none of the collection below, which Cancel waits for
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield comfy.model_management.get_torch_device()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what failed holds tensors in its frames
        if _out_of_memory(error):
            first_line = str(error).splitlines()[0][:200]
            raise UserError(f"Out of memory. {advice} (PyTorch: {first_line})") from error
        raise
    finally:
        gc.collect()
        gc.unfreeze()
        comfy.model_management.soft_empty_cache()


@contextmanager
def loaded(recipe: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The model of an RLR_MODEL socket, and the adapter of the LoRA that it wears or None, for the length of
    the `with`."""
    from rlr_core.diffusion.models.loading import load_model
    from rlr_core.lora.apply import apply_lora

    check_cancel()
    if isinstance(recipe, sockets.Native):
        from .native.model import running

        with running(recipe.family()) as model:
            yield model, None if recipe.lora is None else apply_lora(model, recipe.lora)
        return
    model = load_model(recipe.path, device, recipe.dtype)
    try:
        check_cancel()
        yield model, None if recipe.lora is None else apply_lora(model, recipe.lora)
    finally:
        for part in vars(model).values():
            if isinstance(part, torch.nn.Module):
                part.to("meta")  # frees the weights now, whoever still holds the model


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


# --- progress, cancel, events ---


def check_cancel() -> None:
    """Raise ComfyUI's own exception if Cancel was pressed."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def was_cancelled(error: BaseException) -> bool:
    """Whether it is ComfyUI's Cancel: an Exception in old versions, a BaseException in new ones."""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


PREVIEW_SIDE = 768
"""Pixels, at most."""
PARTS = 1000
"""Of a progress bar that shows a share."""


class Progress:
    """The node's progress bar; `show` may carry a preview picture."""

    def __init__(self, total: int):
        self.total = max(1, total)
        self.bar = comfy.utils.ProgressBar(self.total)

    def show(self, done: int, preview: Any = None) -> None:
        """done of total; preview: a PIL image. May raise Cancel."""
        picture = None if preview is None else ("JPEG", preview, PREVIEW_SIDE)
        self.bar.update_absolute(min(done, self.total), self.total, picture)

    def show_share(self, share: float, preview: Any = None) -> None:
        """A share of the whole, 0 to 1."""
        self.total = PARTS
        self.show(round(share * PARTS), preview)

    def counting(self) -> Callable[[int, int], None]:
        """For the engine: called with how many of how many; asks for Cancel too."""

        def report(done: int, total: int) -> None:
            check_cancel()
            self.total = max(1, total)
            self.show(done)

        return report


def send(event: str, data: dict[str, Any]) -> None:
    """An event to the page that queued the run; nothing where there is no server."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, data, server.client_id)


def page_is_one_of(pages: Container[str]) -> bool:
    """Whether the page that queued the run is one of these, by client id."""
    return getattr(getattr(PromptServer, "instance", None), "client_id", None) in pages


def say(node: str, text: str) -> None:
    """A text in a node, for the page that queued the run; nothing where there is no server.

    node: its execution id ('7:3' inside a subgraph).
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_progress_text(text, node, server.client_id)


def log(message: str) -> None:
    """A line in ComfyUI's log."""
    logging.info("[RLR] %s", message)
