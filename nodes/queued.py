"""The workflow that is being queued, for checks that concern more than one node.

ComfyUI shows a node's validation only what its own widgets say. What the page has sent is kept here for the
time of the request, so that RLR Train can be told of a batch that does not fit RLR Train Settings when Run is
pressed, and not after the models were loaded.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

_workflow: ContextVar[dict[str, Any]] = ContextVar("rlr_queued", default={})  # noqa: B039 - never changed


def keep(request: dict[str, Any]) -> dict[str, Any]:
    """A handler of ComfyUI's queue requests: keeps the API workflow and passes the request on as it is."""
    prompt = request.get("prompt")
    _workflow.set(prompt if isinstance(prompt, dict) else {})
    return request


def inputs_of(node: str) -> dict[str, Any]:
    """The inputs of a node of the workflow that is being queued; empty where it is not known."""
    found = _workflow.get().get(node)
    inputs = found.get("inputs") if isinstance(found, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def behind(node: str, name: str) -> tuple[str, dict[str, Any]]:
    """What an input of a node is connected to: the class and the inputs of that node, or ('', {})."""
    link = inputs_of(node).get(name)
    if not isinstance(link, list) or len(link) != 2:
        return "", {}
    source = _workflow.get().get(str(link[0]))
    if not isinstance(source, dict):
        return "", {}
    return str(source.get("class_type", "")), inputs_of(str(link[0]))
