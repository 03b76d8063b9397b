"""The reward `http` against a server in the test: what is sent, what is understood, and what goes wrong."""

import base64
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image
from reference.rewards_tiny import pictures

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward


class Server(ThreadingHTTPServer):
    """Answers from a list: a text, a choice, a number (an HTTP state), or a function of the handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.headers = [], [], []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        self.server.headers.append(dict(self.headers))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if callable(answer):
            return answer(self)
        if isinstance(answer, int):
            return self.reply(answer, b'{"error": "not today"}')
        choice = {"message": {"role": "assistant", "content": answer}} if isinstance(answer, str) else answer
        return self.reply(200, json.dumps({"choices": [choice]}).encode())

    def reply(self, code, body, **headers):
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that the reward would have slept."""
    slept = []
    monkeypatch.setattr("rlr_core.rewards.http.time.sleep", slept.append)
    return slept


def ask(server, *answers, **options):
    server.answers[:] = answers
    return load_reward("http", address=server.address, **options)(pictures(1), ["a cat"]).item()


def yes_no(yes, no, token="Yes"):
    tops = [{"token": "Yes", "logprob": math.log(yes)}, {"token": " no", "logprob": math.log(no)}]
    first = {"token": token, "logprob": math.log(yes), "top_logprobs": tops}
    return {"message": {"content": "Yes."}, "logprobs": {"content": [first]}}


@pytest.mark.parametrize(
    "answer, score",
    [
        ("0.73", 0.73),
        ("Score: .5", 0.5),
        ("7/10", 0.7),
        ("8 / 10.", 0.8),
        ("85%", 0.85),
        ("1", 1.0),
        ("1e-1", 0.1),
        ("Yes.", 1.0),
        ("no", 0.0),
        (yes_no(0.6, 0.2), 0.75),
        (yes_no(0.6, 0.2, token="0.4"), 1.0),
    ],
)
def test_numbers_shares_and_yes_or_no_are_understood(server, answer, score):
    assert ask(server, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    "answer, message",
    [
        ("I cannot say.", "no number, no yes and no no in the server's answer 'I cannot say.'"),
        ("7", "answered '7', which is not from 0 to 1"),
        ("-0.5", "not from 0 to 1"),
        ({"message": {"content": None}}, "nothing like a chat completion"),
        ({}, "nothing like a chat completion"),
    ],
)
def test_another_answer_is_refused_with_what_was_said(server, answer, message):
    with pytest.raises(UserError, match=message):
        ask(server, answer)


def test_the_server_gets_the_question_and_the_exact_pixels(server):
    server.answers[:] = ["0.5"]
    images = (pictures(2) * 255).round() / 255
    reward = load_reward("http", address=server.address + "/", model="judge", instruction="Is it {prompt}?")
    assert reward(images, ["a cat", "a dog"]).tolist() == [0.5, 0.5]
    path, body = server.requests[1]
    assert path == "/v1/chat/completions" and body["model"] == "judge"
    text, picture = body["messages"][0]["content"]
    assert text["text"] == "Is it a dog?"
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    sent = Image.open(io.BytesIO(data)).convert("RGB")
    assert list(sent.getdata()) == [tuple(p) for p in (images[1] * 255).round().int().flatten(1).T.tolist()]


def test_a_busy_server_is_asked_again_with_longer_waits(server, waits):
    assert ask(server, 503, 429, "0.25") == 0.25
    assert waits == [1.0, 2.0] and len(server.requests) == 3


def test_a_server_that_stays_away_is_named_after_the_last_try(server, waits):
    with pytest.raises(UserError, match=r"says 503 .*not today.*, after 3 tries; is the server running"):
        ask(server, 503, tries=3)
    assert len(server.requests) == 3
    gone = server.address
    server.server_close()
    with pytest.raises(UserError, match=r"127.0.0.1.* cannot be reached .*after 2 tries"):
        load_reward("http", address=gone, tries=2)(pictures(1), ["a cat"])


def test_a_silent_server_times_out(server):
    release = threading.Event()
    server.answers[:] = [lambda handler: release.wait(30)]
    with pytest.raises(UserError, match="cannot be reached .*timed out.*, after 1 try;"):
        load_reward("http", address=server.address, timeout=0.2, tries=1)(pictures(1), ["a cat"])
    release.set()


def test_a_key_is_read_from_the_environment_and_missed_in_a_sentence(server, monkeypatch, waits):
    monkeypatch.delenv("RLR_HTTP_REWARD_KEY", raising=False)
    with pytest.raises(UserError, match="says 401 .*RLR_HTTP_REWARD_KEY"):
        ask(server, 401)
    assert waits == [] and "Authorization" not in server.headers[0]  # asking again would not help
    monkeypatch.setenv("RLR_HTTP_REWARD_KEY", "secret")
    assert ask(server, "1") == 1.0
    assert server.headers[1]["Authorization"] == "Bearer secret"


def test_pictures_do_not_follow_a_redirect_or_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answers[:] = [lambda handler: handler.reply(307, b"", Location=server.address + "/elsewhere")]
    with pytest.raises(UserError, match="says 307"):
        load_reward("http", address=server.address)(pictures(1), ["a cat"])
    assert len(server.requests) == 1


def test_an_answer_without_end_is_cut_off(server):
    server.answers[:] = [lambda handler: handler.reply(200, b" " * (2**20 + 10))]
    with pytest.raises(UserError, match="answered more than 1048576 bytes"):
        load_reward("http", address=server.address)(pictures(1), ["a cat"])


def test_without_an_address_nothing_is_sent_anywhere():
    with pytest.raises(UserError, match="'http' needs the option 'address'"):
        load_reward("http")
    for address in ("", "localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(UserError, match="address must be http://"):
            load_reward("http", address=address)
    with pytest.raises(UserError, match=r"timeout \(0\)"):
        load_reward("http", address="http://127.0.0.1/v1", timeout=0)


def test_it_is_a_black_box_between_0_and_1(server):
    reward = load_reward("http", address=server.address)
    assert not reward.differentiable and reward.range == (0.0, 1.0) and reward.needs_prompt
    server.answers[:] = ["0.5"]
    assert reward(torch.rand(1, 4, 3, 8, 8), ["a cat"]).tolist() == [0.5]  # a video: the mean of its frames
