"""The pack's routes on ComfyUI's server: what the page asks of it, and what a person clicks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server import PromptServer

from rlr_core.errors import UserError

from . import live, pair_questions, questions, queued


def register() -> None:
    """Add the routes, and ask to see what is queued; nothing where there is no server."""
    from aiohttp import web

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.add_on_prompt_handler(queued.keep)
    asked: dict[str, Callable[[], Any]] = {
        "/rlr/runs": lambda: {"runs": live.known_runs()},
        "/rlr/questions": lambda: {"questions": questions.known_questions()},
        "/rlr/pairs": lambda: {"questions": pair_questions.known_questions()},
        "/rlr/inputs": _inputs,
    }
    told: dict[str, tuple[Callable[..., None], dict[str, type]]] = {
        "/rlr/questions/marks": (questions.keep_marks, {"run": str, "number": int, "marks": list}),
        "/rlr/questions/next": (questions.finish, {"run": str, "number": int}),
        "/rlr/pairs/choose": (pair_questions.choose, {"name": str, "pair": str, "choice": str}),
    }

    def getting(answer: Callable[[], Any]) -> Callable:
        async def handler(request: Any) -> Any:
            live.seen(request.query.get("client"))
            return web.json_response(answer())

        return handler

    def posting(take: Callable[..., None], fields: dict[str, type]) -> Callable:
        async def handler(request: Any) -> Any:
            try:
                take(**await _fields(request, fields))
            except UserError as error:
                return web.json_response({"error": str(error)}, status=400)
            return web.json_response({})

        return handler

    for path, answer in asked.items():
        server.routes.get(path)(getting(answer))
    for path, (take, fields) in told.items():
        server.routes.post(path)(posting(take, fields))


async def _fields(request: Any, fields: dict[str, type]) -> dict[str, Any]:
    """The fields of a JSON body. Raises UserError where they are not these, of these types."""
    wrong = UserError(f"Send JSON with {', '.join(fields)}.")
    if request.content_type != "application/json":  # which a page of another site cannot send unasked
        raise wrong
    try:
        data = await request.json()
    except (ValueError, RecursionError) as error:
        raise wrong from error
    fits = isinstance(data, dict) and data.keys() == fields.keys()
    if not fits or any(not isinstance(data[name], kind) for name, kind in fields.items()):
        raise wrong
    return data


def _inputs() -> dict[str, Any]:
    """Node -> the widget that chooses, and choice -> the names of the inputs that it reads."""
    from . import method, rewards

    return {
        "RLR_Method": {"widget": "method", "inputs": method.inputs_of()},
        "RLR_Reward": {"widget": "reward", "inputs": rewards.inputs_of()},
    }
