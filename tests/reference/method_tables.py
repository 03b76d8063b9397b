"""Write the tables of methods in the README and in the help page of RLR Method, from the methods themselves.

    python tests/reference/method_tables.py

After a new method, or a changed line about one. tests/test_readme.py checks that both are as written here.
"""

from __future__ import annotations

import re
from pathlib import Path

from rlr_core.methods import METHODS, method_class

ROOT = Path(__file__).resolve().parents[2]
GRADIENT = {"needed": "yes", "used": "no, but uses it", "no": "no"}
HEAD = "How it learns | Reward needs a gradient | When to take it |\n|---|---|---|---|"


def for_readme(page: str) -> str:
    """README.md with its table as it should be."""
    return _with_table(page, "`--method`", "`", "method.")


def for_help(page: str) -> str:
    """nodes/web/docs/RLR_Method.md with its table as it should be."""
    return _with_table(page, "Method", "*", "")


def _with_table(page: str, first: str, mark: str, group: str) -> str:
    """mark: what stands around the names of methods and settings; group: what before those of settings."""
    rows = [f"| {first} | {HEAD}"]
    for name, method in ((name, method_class(name)) for name in METHODS):
        when = re.sub(r"method\.([a-z_]+(=\w+)?)", rf"{mark}{group}\1{mark}", method.when)
        rows.append(f"| {mark}{name}{mark} | {method.summary} | {GRADIENT[method.needs_gradient]} | {when} |")
    start = page.index(f"| {first} | ")
    return page[:start] + "\n".join(rows) + page[page.index("\n\n", start) :]


def main() -> None:
    """Write both."""
    for path, table in ((ROOT / "README.md", for_readme), (ROOT / "nodes/web/docs/RLR_Method.md", for_help)):
        path.write_text(table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
