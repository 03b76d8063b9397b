"""Write workflows/*.json from the golden API files, through ComfyUI's own frontend.

definitions.json, locales/en and the tables of inputs in the help pages are written too, from what the server
says of the nodes.

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python tests/comfy/make_workflows.py [name ...]

The places, titles and notes are in LAYOUT; everything else is what the frontend makes of the API file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from browser import as_prompt, dump, load_api, page_on  # noqa: E402
from comfy_server import ROOT, ComfyServer, make_base  # noqa: E402

SD15_FILES = (
    "**Files for this workflow**\n\n"
    "| file | folder |\n|---|---|\n"
    "| [v1-5-pruned-emaonly-fp16.safetensors](https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/"
    "blob/main/v1-5-pruned-emaonly-fp16.safetensors) | models/checkpoints |\n"
)
AESTHETIC_FILES = (
    "| [sac+logos+ava1-l14-linearMSE.pth](https://github.com/christophschuhmann/improved-aesthetic-predictor/"
    "blob/main/sac%2Blogos%2Bava1-l14-linearMSE.pth) | models/reward_models |\n"
    "| [model.safetensors](https://huggingface.co/openai/clip-vit-large-patch14/blob/main/model.safetensors)"
    ", saved as clip-vit-large-patch14.safetensors | models/reward_models |\n\n"
    "Nothing is downloaded by itself. Press R after copying files."
)

GAP = 44
"""Between a node and the next in its column, whose title is 30 high."""
WIDE_GAP = 72
"""Where there is room: Vue nodes are higher than those of the canvas."""
COLOR = "#7a9cc6"
"""Of a group."""
PLAIN = "Everything else follows from the model; **RLR Train Settings**, connected to *settings*, changes it."


def note(text: str, height: int) -> dict[str, Any]:
    """A note in a column."""
    return {"note": text, "height": height}


# Columns from left to right: the group's title (None: of the group before), width, and from top to bottom
# node ids, (node id, height) and notes.
LAYOUT: dict[str, dict[str, Any]] = {
    "rlr-demo": {
        "gap": WIDE_GAP,
        "columns": [
            ("1  What to learn", 320, [
                "1", ("2", 150), "3", "4",
                note("**Press Run.** A tiny model that comes with RLR learns to draw what its captions say, "
                     "in a few minutes on a CPU.\n\nIt is trained for the *reward*; the *judge* only "
                     "watches, on captions that training never sees.\n\nCancel and Run again: it goes on. "
                     "Raise *steps* and it goes on, too.", 150),
            ]),
            ("2  Train", 460, ["5"]),
            ("3  What came out", 520, [("6", 360), ("7", 270)]),
        ],
        "titles": {"3": "Reward: what is trained for", "4": "Judge: only watches", "6": "Before and after",
                   "7": "Chart"},
    },
    "rlr-first-lora": {
        "gap": WIDE_GAP,
        "columns": [
            ("1  What to learn", 320, [
                "1", ("2", 220), "3",
                note("**Choose your checkpoint and press Run.** Stable Diffusion 1, 2 or XL; no other file "
                     "is needed.\n\n*auto* trains for saturated colors, which is soon seen. Then choose what "
                     f"you want in *Reward*: some need a file and say which.\n\n{PLAIN}", 210),
            ]),
            ("2  Train", 460, ["4"]),
            ("3  What came out", 480, [("6", 480), "5"]),
        ],
        "titles": {"3": "Reward: what is trained for", "6": "Before and after"},
    },
    "rlr-readable-text": {
        "columns": [
            ("1  What to learn", 280, [
                "1", ("2", 150), "3",
                note("**Words that can be read.** The prompts quote words; the *reward* is the share of "
                     "their letters that an OCR finds right.\n\nIt needs two packages in ComfyUI's own "
                     "Python:\n\n`pip install rapidocr onnxruntime`\n\nChoose your checkpoint and press Run. "
                     f"SDXL and newer models write better from the start.\n\n{PLAIN}", 290),
            ]),
            ("2  Train", 400, ["4"]),
            ("3  Keep and compare", 310, ["5", "6"]),
            ("4  Look", 420, [("7", 640)]),
        ],
        "titles": {"3": "Reward: readable words", "6": "Compare: held-out prompts",
                   "7": "Without and with the LoRA"},
    },
    "rlr-rate": {
        "columns": [
            ("1  What to learn", 300, [
                "1", ("2", 150), "4",
                note("**Press Run.** Sixteen pictures appear in *Rate*. Mark those you like with a click and "
                     "those you do not with two: on the left, large. Press **Next**: the model learns your "
                     "taste, makes new pictures and asks again.\n\nTwo or three rounds are enough to see it. "
                     "Clicks are stored at once: nothing is lost by a reload, a restart or Cancel.\n\n"
                     "*steps* is the number of rounds. If the pictures fall apart, connect RLR Train "
                     "Settings and set *learning rate* to 0.001.", 290),
            ]),
            ("2  You rate", 470, [("3", 760)]),
            ("3  Train", 400, ["5"]),
            ("4  What came out", 330, [("6", 330), "7"]),
        ],
        "titles": {"3": "Rate: you are the reward", "4": "Judge: only watches", "6": "Before and after",
                   "7": "Method: many steps on each round"},
    },
    "rlr-sd15-aesthetic": {
        "columns": [
            ("1  What to learn", 270, ["1", ("2", 170), "3", "4"]),
            ("2  Train", 380, ["5", "6"]),
            ("3  Use it", 260, ["7", "8", ("9", 90), ("10", 80), "11"]),
            (None, 260, ["12", "14", "13", "15"]),
            ("4  Look", 300, [
                ("16", 250), ("17", 250), note(SD15_FILES + AESTHETIC_FILES + f"\n\n{PLAIN}", 220),
            ]),
        ],
        "titles": {"3": "Reward: aesthetic", "4": "Judge: CLIP score", "12": "KSampler, without the LoRA",
                   "13": "KSampler, with the LoRA", "16": "Without", "17": "With the LoRA",
                   "9": "Prompt", "10": "Negative prompt"},
    },
    "rlr-score-and-pick": {
        "columns": [
            ("1  Make pictures", 300, [
                "1", ("2", 100), ("3", 90), "4", note(SD15_FILES + AESTHETIC_FILES, 260),
            ]),
            (None, 280, ["5", "6"]),
            ("2  Score them", 360, ["7", ("8", 420)]),
            ("3  Pick", 420, [("9", 360), ("10", 360)]),
        ],
        "titles": {"2": "Prompt", "3": "Negative prompt", "9": "All, best first", "10": "The best is saved"},
    },
    "rlr-dcot": {
        "columns": [
            ("1  What to learn", 300, [
                "1", ("2", 320), "3", "4",
                note("**Prompts in stages.** The first fifth of the steps gets the *coarse* prompt, which "
                     "sets the layout; the rest gets the *fine* one.\n\nLines with the same number belong "
                     "together. *middle* makes a third stage.", 130),
            ]),
            ("2  Train", 440, ["5"]),
            ("3  What came out", 440, ["6", ("7", 210), ("8", 210)]),
        ],
        "titles": {"3": "Reward: sees the fine prompt", "4": "Judge: only watches",
                   "7": "Samples with the LoRA", "8": "Before and after"},
    },
    "rlr-compare-methods": {
        "columns": [
            ("1  The same for both", 270, [
                "1", ("2", 150), "3", "4",
                note("**Two methods, everything else equal.** Compare the *judge*, and the seconds in the "
                     "reports: methods differ in what an update costs.", 150),
            ]),
            ("2  Two methods", 240, ["5", "6"]),
            ("3  Train with both", 330, ["7"]),
            (None, 330, ["8"]),
            ("4  Compare", 310, [("9", 330), ("10", 330)]),
        ],
        "titles": {"5": "Method: adaptive", "6": "Method: rlr (the paper)", "7": "Train with adaptive",
                   "8": "Train with rlr", "9": "Report: adaptive", "10": "Report: rlr",
                   "3": "Reward: what is trained for", "4": "Judge: only watches"},
    },
}  # fmt: skip

MODEL_FOLDERS = {
    "checkpoint": "checkpoints",
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
}
"""Input of a loader -> the folder that its files lie in."""


def _files(repository: str, files: dict[str, str], prefix: str = "split_files/") -> str:
    """A note's table of files: name -> folder, from one repository."""
    place = f"https://huggingface.co/{repository}/blob/main/{prefix}"
    rows = []
    for file, folder in files.items():
        inside = f"{folder}/" if prefix else ""
        rows.append(f"| [{file}]({place}{inside}{file}) | models/{folder} |\n")
    return "".join(rows)


HEAD = "**Files for this workflow**\n\n| file | folder |\n|---|---|\n"
NATIVE_FILES = {
    "rlr-sdxl": _files(
        "stabilityai/stable-diffusion-xl-base-1.0", {"sd_xl_base_1.0.safetensors": "checkpoints"}, prefix=""
    ),
    "rlr-z-image-turbo": _files(
        "Comfy-Org/z_image_turbo",
        {
            "z_image_turbo_bf16.safetensors": "diffusion_models",
            "qwen_3_4b.safetensors": "text_encoders",
            "ae.safetensors": "vae",
        },
    ),
    "rlr-qwen-image": _files(
        "Comfy-Org/Qwen-Image_ComfyUI",
        {
            "qwen_image_fp8_e4m3fn.safetensors": "diffusion_models",
            "qwen_2.5_vl_7b_fp8_scaled.safetensors": "text_encoders",
            "qwen_image_vae.safetensors": "vae",
        },
    ),
    "rlr-flux2-klein": _files(
        "Comfy-Org/flux2-klein",
        {"flux-2-klein-4b.safetensors": "diffusion_models", "qwen_3_4b.safetensors": "text_encoders"},
    )
    + _files("Comfy-Org/flux2-dev", {"flux2-vae.safetensors": "vae"}),
    "rlr-wan-video": _files(
        "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
        {"wan2.2_ti2v_5B_fp16.safetensors": "diffusion_models", "wan2.2_vae.safetensors": "vae"},
    )
    + _files(
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged", {"umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoders"}
    ),
}
NATIVE_REMARKS = {
    "rlr-sdxl": "Pictures of 1024 x 1024, one at a time.",
    "rlr-z-image-turbo": "A turbo model, as its file's name says: left at 0, *sampler_steps* is 8 and "
    "*guidance* 1.",
    "rlr-qwen-image": "The fp8 file is trained as it is; what does not fit on the GPU stays in RAM.",
    "rlr-flux2-klein": "The distilled 4B model: 4 steps; *guidance* left at 0 is 1.",
    "rlr-wan-video": "17 frames of 832 x 480. The reward sees frames; results are saved as animations.",
}


def _id(item: str | tuple[str, int]) -> str:
    """The node of a place in a column."""
    return item if isinstance(item, str) else item[0]


def _native(name: str) -> dict[str, Any]:
    """Where the nodes of a workflow on ComfyUI's own models lie."""
    golden = json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    text = f"{HEAD}{NATIVE_FILES[name]}{AESTHETIC_FILES}\n\n{NATIVE_REMARKS[name]} {PLAIN}"
    columns = [
        ("1  Your model", 270, ["1", "2", "3", "4", "18", "5"]),
        ("2  What to learn", 270, [("6", 170), "7", "8", note(text, 230)]),
        ("3  Train", 380, ["9", "10"]),
        ("4  Use it", 270, [("11", 80), ("12", 80), "13", "14"]),
        (None, 270, ["15", ("17", 300), "16", ("19", 300)]),
    ]
    return {
        "columns": [
            (title, width, [item for item in items if isinstance(item, dict) or _id(item) in golden])
            for title, width, items in columns
        ],
        "titles": {
            "7": "Reward: aesthetic", "8": "Judge: CLIP score", "11": "Prompt", "12": "Negative prompt",
            "13": "KSampler, without the LoRA", "14": "KSampler, with the LoRA", "17": "Without",
            "19": "With the LoRA",
        },
    }  # fmt: skip


LAYOUT |= {name: _native(name) for name in NATIVE_FILES}

INPUTS = re.compile(r"(<!-- inputs -->\n).*?(<!-- end of inputs -->)", re.DOTALL)
"""The part of a help page that is written from the tooltips."""

ARRANGE = """([{ columns, titles, gap }, color]) => {
  const graph = window.app.graph, groups = [];
  const [margin, head, between] = [14, 76, 42];  // of a group: around it, above its nodes; between columns
  let x = 40;
  for (const [title, width, items] of columns) {
    let y = head;
    for (const item of items) {
      const [id, high] = Array.isArray(item) ? item : [item, item.height ?? 0];
      let node = graph.getNodeById(Number(id)) ?? graph.getNodeById(id);
      if (item.note) {
        node = LiteGraph.createNode("MarkdownNote");
        graph.add(node);
        node.widgets[0].value = item.note;
      }
      node.pos = [x, y];
      node.setSize([width, item.note ? high : Math.max(high, Math.round(node.computeSize()[1]))]);
      if (titles[id]) node.title = titles[id];
      y += node.size[1] + gap;
    }
    const bounding = [x - margin, 0, width + 2 * margin, y - gap + margin];
    if (title !== null) {
      groups.push({ id: groups.length + 1, title, bounding, color, font_size: 22, flags: {} });
    } else {
      const own = groups.at(-1).bounding;
      own[2] = x + width + margin - own[0];
      own[3] = Math.max(own[3], bounding[3]);
    }
    x += width + between;
  }
  for (const node of graph.nodes)
    for (const w of node.widgets ?? []) if (w.name === "control_after_generate") w.value = "fixed";
  const high = Math.max(...groups.map((group) => group.bounding[3]));
  for (const group of groups) group.bounding[3] = high;
  const data = graph.serialize();
  data.groups = groups;
  data.extra = {};
  return JSON.parse(JSON.stringify(data));  // without what is undefined, which would arrive as null
}"""


def main(names: list[str]) -> None:
    """Make these workflows, or all."""
    comfyui = Path(os.environ["COMFYUI_PATH"]).expanduser()
    front_end = os.environ.get("COMFYUI_FRONT_END")
    with tempfile.TemporaryDirectory() as scratch:
        base = make_base(Path(scratch) / "base")
        touch_models(base)
        options = ("--front-end-root", front_end) if front_end else ()
        with ComfyServer(comfyui, base, *options) as server, page_on(server, Path(scratch) / "p") as page:
            info = server.get("/object_info")
            dump(definitions(info), HERE / "definitions.json")
            texts = locale(info)
            dump(texts, ROOT / "locales/en/nodeDefs.json")
            for node in texts:
                path = ROOT / "nodes/web/docs" / f"{node}.md"
                path.write_text(with_inputs(path.read_text(encoding="utf-8"), texts[node]), encoding="utf-8")
            for name in names or LAYOUT:
                prompt = json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))
                load_api(page, prompt, name)
                workflow = page.evaluate(ARRANGE, [{"gap": GAP} | LAYOUT[name], COLOR])
                assert as_prompt(page) == prompt, name
                workflow["id"] = stable_id(name)
                dump(workflow, ROOT / "workflows" / f"{name}.json")
                x, y, wide, high = bounds(workflow)
                print(f"{name}: {len(workflow['nodes'])} nodes, {wide:.0f} x {high:.0f}")


def bounds(workflow: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width and height of what nodes and groups cover."""
    boxes = [
        (x, y - 30, x + w, y + h) for n in workflow["nodes"] for (x, y), (w, h) in [(n["pos"], n["size"])]
    ]
    boxes += [(x, y, x + w, y + h) for g in workflow["groups"] for x, y, w, h in [g["bounding"]]]
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
    return left, top, right - left, bottom - top


def touch_models(base: Path) -> None:
    """Empty files of all names that the workflows' loaders have in their lists."""
    for path in (HERE / "golden").glob("*.json"):
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            for name, folder in MODEL_FOLDERS.items():
                file = node["inputs"].get(name)
                if file and (name != "checkpoint" or file.endswith(".safetensors")):
                    (base / "models" / folder).mkdir(parents=True, exist_ok=True)
                    (base / "models" / folder / file).touch()


def definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """What the workflow tests need to know of the nodes: inputs in order, outputs; no lists of files."""
    used = {
        node["class_type"]
        for path in (HERE / "golden").glob("*.json")
        for node in json.loads(path.read_text(encoding="utf-8")).values()
    }
    used |= {name for name in object_info if name.startswith("RLR_")}
    found = {}
    for name in sorted(used):
        info = object_info[name]
        inputs, advanced = [], {}
        for group in ("required", "optional"):
            for key in info["input_order"].get(group, []):
                kind, *rest = info["input"][group][key]
                extra = rest[0] if rest else {}
                kept = {k: True for k in ("control_after_generate",) if extra.get(k)}
                inputs.append([key, "COMBO" if isinstance(kind, list) else kind, kept])
                if extra.get("advanced"):
                    advanced[key] = True
        found[name] = {
            "inputs": inputs,
            "required": info["input_order"].get("required", []),
            "outputs": info["output"],
            "advanced": advanced,
        }
    return found


def locale(object_info: dict[str, Any]) -> dict[str, Any]:
    """locales/en/nodeDefs.json: every text of our nodes, as a start for other languages."""
    texts = {}
    for name, info in object_info.items():
        if not name.startswith("RLR_"):
            continue
        inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
        texts[name] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                key: {"name": what[1].get("display_name", key), "tooltip": what[1]["tooltip"]}
                for group in ("required", "optional")
                for key in info["input_order"].get(group, [])
                for what in [inputs[key]]
            },
            "outputs": {
                str(place): {"name": output, "tooltip": tooltip}
                for place, (output, tooltip) in enumerate(
                    zip(info["output_name"], info["output_tooltips"], strict=True)
                )
            },
        }
    return texts


def with_inputs(page: str, texts: dict[str, Any]) -> str:
    """A help page with its table of inputs as the tooltips are now, where it has a place for one."""
    rows = [f"| {name} | {what['tooltip'].rstrip('.')} |" for name, what in texts["inputs"].items()]
    table = "\n".join(["| Input | |", "|---|---|", *rows])
    return INPUTS.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def stable_id(name: str) -> str:
    """The same id for the same workflow, whenever it is made."""
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-RLR/{name}"))


if __name__ == "__main__":
    main(sys.argv[1:])
