"""What a person clicks, through the routes of a real server that is killed in between."""

from __future__ import annotations

import pytest
from comfy_process import comfyui
from comfy_server import ComfyServer, changed, make_base
from test_server import golden

SHORT = {
    "steps": 2, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "rank": 2, "evaluate_every": 9,
    "evaluation_samples": 4, "micro_batch": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    comfyui()
    from tiny_sd import write_tiny_sd

    folder = make_base(tmp_path_factory.mktemp("rating") / "base")
    write_tiny_sd(folder / "models/diffusers/tiny")
    return folder


def short_prompt() -> dict:
    prompt = changed(golden("rlr-rate"), **SHORT)
    prompt["1"]["inputs"]["checkpoint"] = "diffusers: tiny"
    prompt["3"]["inputs"]["updates_per_round"] = 1
    prompt["4"]["inputs"]["reward"] = "brightness"
    return prompt


def question(server) -> dict:
    (found,) = server.get("/rlr/questions")["questions"]
    return found


def test_clicks_outlive_the_server_and_the_run_goes_on_with_them(base):
    prompt = short_prompt()
    with ComfyServer(comfyui(), base) as server:
        outputs = server.run(prompt)
        assert "6" not in outputs, "nothing behind RLR Train runs while it waits"
        assert "4 pictures wait for your ratings" in outputs["5"]["rlr"][0]["message"]
        assert question(server)["node"] == "3" and len(question(server)["pictures"]) == 4
        place = {"run": "rlr-rate", "number": 1}
        assert server.post("/rlr/questions/marks", place | {"marks": [1, -1, None, None]}) == (200, {})
        server.process.kill()
    with ComfyServer(comfyui(), base) as server:
        assert question(server)["marks"] == [1, -1, None, None]
        assert server.post("/rlr/questions/next", place)[0] == 200
        server.run(prompt)
        assert question(server)["round"] == 2, "ComfyUI ran it again, and did not answer from its cache"
        server.run(prompt)
        assert question(server)["round"] == 2
        place = {"run": "rlr-rate", "number": 2}
        server.post("/rlr/questions/marks", place | {"marks": [1, -1, 1, -1]})
        server.post("/rlr/questions/next", place)
        outputs = server.run(prompt)
        assert outputs["6"]["images"] and outputs["5"]["rlr"][0]["state"] == "finished"
        assert server.get("/rlr/questions")["questions"] == []


@pytest.fixture(scope="module")
def server(base):
    with ComfyServer(comfyui(), base) as running:
        yield running


@pytest.mark.parametrize(
    ("route", "data", "sentence"),
    [
        ("questions/marks", {"run": "../x", "number": 1, "marks": [1]}, "cannot be used as a name"),
        ("questions/marks", {"run": "rlr-rate", "number": 1}, "Send JSON with run, number, marks"),
        ("questions/marks", {"run": 3, "number": 1, "marks": []}, "Send JSON with"),
        ("questions/next", {"run": "rlr-rate", "number": 7}, "does not ask about round 7"),
        ("questions/next", ["rlr-rate", 7], "Send JSON with"),
        ("pairs/choose", {"name": "/etc", "pair": "x", "choice": "left"}, "cannot be used as a name"),
        ("pairs/choose", {"name": "none", "pair": "x", "choice": "left"}, "no pair 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(server, base, route, data, sentence):
    before = sorted(base.glob("output/**/*"))
    status, answer = server.post(f"/rlr/{route}", data)
    assert status == 400 and sentence in answer["error"]
    assert sorted(base.glob("output/**/*")) == before


def test_a_form_of_another_site_is_refused(server):
    import urllib.error
    import urllib.request

    body = b'{"run": "rlr-rate", "number": 1}'
    request = urllib.request.Request(f"{server.url}/rlr/questions/next", body, {"Content-Type": "text/plain"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=30)


def test_the_page_learns_which_inputs_a_method_reads(server):
    asked = server.get("/rlr/inputs")["RLR_Method"]
    assert asked["widget"] == "method"
    methods = asked["inputs"]
    node = server.get("/object_info")["RLR_Method"]
    kind, *extra = node["input"]["required"]["method"]
    assert list(methods) == (kind if isinstance(kind, list) else extra[0]["options"])
    shown = set(node["input_order"]["required"]) - {"method"}
    assert {name for names in methods.values() for name in names} == shown
