"""Makes the engine that comes with this pack importable as rlr_core, and touches sys.path in no way.

(The pack's folder on sys.path would put its nodes/ in front of ComfyUI's own `nodes` module.)
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "rlr_core"


def make_importable() -> None:
    """Register the bundled rlr_core. Raises ImportError where another one has been imported already."""
    known = sys.modules.get("rlr_core")
    if known is not None:
        where = Path(known.__file__).resolve().parent
        if where != FOLDER and not _same_version(known):
            raise ImportError(
                f"ComfyUI-RLR in {FOLDER.parent} cannot use the other rlr_core that {where} has brought in: "
                "keep one copy of ComfyUI-RLR in custom_nodes, or uninstall rlr-core from this Python."
            )
        return
    spec = importlib.util.spec_from_file_location(
        "rlr_core", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["rlr_core"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["rlr_core"]
        raise


def _same_version(other) -> bool:
    line = next(
        line for line in (FOLDER / "__init__.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    )  # fmt: skip
    return line.split('"')[1] == getattr(other, "__version__", None)
