"""A server that speaks OpenAI's chat completions as the reward: it is shown pictures and answers numbers."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlr_core.common.images import to_pil
from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward

INSTRUCTION = (
    'How well does this picture show "{prompt}"? '
    "Answer with one number from 0 (not at all) to 1 (perfectly) and nothing else."
)
KEY_VARIABLE = "RLR_HTTP_REWARD_KEY"
LARGEST_ANSWER = 2**20  # bytes
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP states after which the same request may work."""
NUMBER = re.compile(r"(?<![\w.])-?\d*\.?\d+(?:[eE][-+]?\d+)?(?:\s*(%)|\s*/\s*(\d+(?:\.\d+)?))?(?![\w])")


class Http(Reward):
    """What a server says of a picture, between 0 and 1; any that has /chat/completions with pictures.

    Nothing is sent anywhere but to `address`, which has no default. The answer is a number in [0, 1] (also
    7/10, or 70 %), or yes or no; where it has log probabilities, p(yes) / (p(yes) + p(no)) of its first
    token. A key, where the server asks for one, is read from the environment variable RLR_HTTP_REWARD_KEY,
    so that none is written into a config.
    """

    name = "http"
    differentiable = False
    range = (0.0, 1.0)

    def __init__(
        self,
        address: str,
        model: str = "default",
        instruction: str = INSTRUCTION,
        timeout: float = 60.0,
        tries: int = 4,
    ):
        """address: of the server, such as http://127.0.0.1:11434/v1; model: its name there; instruction: what
        is asked, with the prompt in the place of {prompt}; timeout: seconds to wait for an answer; tries: how
        often to ask before giving up, with 1, 2, 4, ... seconds between. Raises UserError."""
        parts = urllib.parse.urlsplit(address.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"Reward 'http': address must be http://... or https://..., such as "
                f"http://127.0.0.1:11434/v1, not {address!r:.200}."
            )
        if timeout <= 0 or tries < 1:
            raise UserError(f"Reward 'http': timeout ({timeout}) and tries ({tries}) must be above 0.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.address = parts._replace(path=f"{path}/chat/completions", fragment="").geturl()
        self.model, self.instruction = model, instruction
        self.timeout, self.tries = timeout, tries
        self.needs_prompt = "{prompt}" in instruction

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        answers = [self._ask(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        return torch.tensor([score_of(answer) for answer in answers], device=images.device)

    def _ask(self, image: Tensor, prompt: str) -> dict[str, Any]:
        """The first choice of the server's answer about one picture."""
        file = io.BytesIO()
        to_pil(image).save(file, format="PNG")
        picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
        question = self.instruction.replace("{prompt}", str(prompt))
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": picture}}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 16,
            "logprobs": True,
            "top_logprobs": 20,
        }
        answer = self._post(json.dumps(body).encode("utf-8"))
        try:
            choice = json.loads(answer)["choices"][0]
            if not isinstance(choice["message"]["content"], str):
                raise TypeError
            return choice
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"Reward 'http': {self.address} answered nothing like a chat completion: {answer[:200]!r}."
            ) from error

    def _post(self, body: bytes) -> bytes:
        """The server's answer to a request, tried again where that may help."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, data=body, headers=headers, method="POST")
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                with _DIRECT.open(request, timeout=self.timeout) as answer:
                    return _read(answer, self.address)
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(300).decode("utf-8", "replace").strip()
                reason = f"says {error.code} {error.reason}" + (f": {said}" if said else "")
                if error.code not in PASSING:
                    raise UserError(
                        f"Reward 'http': {self.address} {reason}.{self._hint(error.code)}"
                    ) from error
            except (OSError, ValueError) as error:  # refused, timed out, cut off, or no HTTP
                reason = f"cannot be reached ({getattr(error, 'reason', None) or error})"
        tries = "1 try" if self.tries == 1 else f"{self.tries} tries"
        raise UserError(
            f"Reward 'http': {self.address} {reason}, after {tries}; is the server running, and is "
            f"its address right?"
        )

    def _hint(self, code: int) -> str:
        hints = {
            401: f" Put its key into the environment variable {KEY_VARIABLE}.",
            403: f" Put its key into the environment variable {KEY_VARIABLE}.",
            404: f" Is {self.model!r} the model's name there, and the address right?",
        }
        return hints.get(code, "")


class _NoDetour(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: pictures go to the address that was written down and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_DIRECT = urllib.request.build_opener(_NoDetour(), urllib.request.ProxyHandler({}))


def _read(answer: Any, address: str) -> bytes:
    body = answer.read(LARGEST_ANSWER + 1)
    if len(body) > LARGEST_ANSWER:
        raise UserError(f"Reward 'http': {address} answered more than {LARGEST_ANSWER} bytes.")
    return body


def score_of(choice: dict[str, Any]) -> float:
    """The score in [0, 1] that a choice of a chat completion stands for.

    By the log probabilities of yes and no at the first token where it has them, else by a number in the text
    (0.7, 7/10, 70 %), else by the word yes or no. Raises UserError where there is none of them.
    """
    text = choice["message"]["content"].strip()
    by_token = _yes_share(choice)
    if by_token is not None:
        return by_token
    said = re.findall(r"[a-z]+", text.lower())
    if said and said[0] in ("yes", "no"):
        return float(said[0] == "yes")
    match = NUMBER.search(text)
    if match is None:
        raise UserError(f"Reward 'http': no number, no yes and no no in the server's answer {text!r:.200}.")
    value = float(re.split(r"[\s%/]", match.group())[0])
    value /= 100 if match.group(1) else float(match.group(2) or 1)
    if not 0 <= value <= 1:  # also for NaN
        raise UserError(f"Reward 'http': the server answered {text!r:.200}, which is not from 0 to 1.")
    return value


def _yes_share(choice: dict[str, Any]) -> float | None:
    """p(yes) / (p(yes) + p(no)) of the first token; None where that token is neither or nothing is given."""
    try:
        first = choice["logprobs"]["content"][0]
        chances = {"yes": 0.0, "no": 0.0}
        if first["token"].strip().lower() not in chances:
            return None
        for other in first.get("top_logprobs") or [first]:
            word = other["token"].strip().lower()
            if word in chances:
                chances[word] += math.exp(float(other["logprob"]))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    total = chances["yes"] + chances["no"]
    return chances["yes"] / total if total > 0 else None
