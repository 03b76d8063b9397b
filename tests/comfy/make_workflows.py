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

# name -> {node id: (x, y, width, height)}, and notes (x, y, width, height, text)
LAYOUT: dict[str, dict[str, Any]] = {
    "rlr-demo": {
        "nodes": {
            "1": (40, 60, 320, 90), "2": (40, 210, 320, 190), "3": (40, 460, 320, 202),
            "4": (40, 722, 320, 202), "5": (420, 60, 460, 1290), "6": (940, 60, 720, 560),
            "7": (940, 680, 720, 670),
        },
        "titles": {"3": "Reward: trained for", "4": "Judge: not trained for", "6": "Before and after",
                   "7": "Chart"},
        "notes": [(40, 984, 320, 230,
                   "**Press Run.** A tiny model that comes with RLR learns to draw what its captions say, "
                   "in a few minutes on a CPU.\n\nIt is trained for the *reward*; the *judge* checks the "
                   "pictures of captions that training never sees.\n\nCancel and Run again: it goes on. "
                   "Raise *steps* and it goes on, too.")],
    },
    "rlr-sd15-aesthetic": {
        "nodes": {
            "1": (40, 60, 340, 90), "2": (40, 210, 340, 260), "3": (40, 530, 340, 202),
            "4": (40, 792, 340, 202), "5": (440, 60, 460, 1290), "6": (960, 60, 340, 90),
            "7": (960, 210, 340, 110), "8": (960, 380, 340, 200), "9": (960, 640, 340, 120),
            "10": (960, 820, 340, 100), "11": (960, 980, 340, 110), "12": (1360, 60, 300, 270),
            "13": (1360, 590, 300, 270), "14": (1360, 390, 300, 60), "15": (1360, 920, 300, 60),
            "16": (1720, 60, 420, 470), "17": (1720, 590, 420, 470), "18": (960, 1150, 1180, 420),
        },
        "titles": {"3": "Reward: aesthetic", "4": "Judge: CLIP score", "12": "KSampler, without the LoRA",
                   "13": "KSampler, with the LoRA", "16": "Without", "17": "With the LoRA",
                   "9": "Prompt", "10": "Negative prompt", "18": "Before and after, as training saw it"},
        "notes": [(40, 1054, 340, 300, SD15_FILES + AESTHETIC_FILES)],
    },
    "rlr-score-and-pick": {
        "nodes": {
            "1": (40, 60, 340, 110), "2": (440, 60, 340, 120), "3": (440, 240, 340, 100),
            "4": (440, 400, 340, 110), "5": (840, 60, 300, 270), "6": (840, 390, 300, 60),
            "7": (840, 510, 300, 202), "8": (1200, 60, 340, 340), "9": (1600, 60, 420, 470),
            "10": (1600, 590, 420, 470),
        },
        "titles": {"2": "Prompt", "3": "Negative prompt", "9": "All, best first", "10": "The best is saved"},
        "notes": [(40, 230, 340, 300, SD15_FILES + AESTHETIC_FILES)],
    },
    "rlr-dcot": {
        "nodes": {
            "1": (40, 60, 360, 90), "2": (40, 210, 360, 520), "3": (40, 790, 360, 202),
            "4": (40, 1052, 360, 202), "5": (460, 60, 460, 1290), "6": (980, 60, 340, 318),
            "7": (1380, 60, 640, 560), "8": (1380, 680, 640, 560),
        },
        "titles": {"3": "Reward: asked about the fine prompt", "4": "Judge", "7": "Samples with the LoRA",
                   "8": "Before and after"},
        "notes": [(980, 438, 340, 240,
                   "**Prompts in stages.** The first fifth of the steps gets the *coarse* prompt, "
                   "which sets the layout; the rest gets the *fine* one.\n\nLines with the same number "
                   "belong together. *middle* makes a third stage.")],
    },
    "rlr-compare-methods": {
        "nodes": {
            "1": (40, 60, 320, 90), "2": (40, 210, 320, 190), "3": (40, 460, 320, 202),
            "4": (40, 722, 320, 202), "5": (420, 60, 340, 394), "6": (420, 1410, 340, 394),
            "7": (820, 60, 460, 1290), "8": (820, 1410, 460, 1290), "9": (1340, 60, 340, 320),
            "10": (1340, 1410, 340, 320), "11": (1740, 60, 660, 760), "12": (1740, 1410, 660, 760),
        },
        "titles": {"5": "Method: adaptive", "6": "Method: rlr (the paper)", "7": "Train with adaptive",
                   "8": "Train with rlr", "11": "adaptive", "12": "rlr"},
        "notes": [(40, 984, 320, 160,
                   "**Two methods, everything else equal.** Compare the *judge*, and the seconds in the "
                   "reports: methods differ in what an update costs.")],
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
    "rlr-sdxl": "Pictures of 1024 x 1024; with *gradient_checkpointing* and *micro_batch* 1 as here.",
    "rlr-z-image-turbo": "A turbo model, as its file's name says: left at 0, *sampler_steps* is 8 and "
    "*guidance* 1.",
    "rlr-qwen-image": "The fp8 file is trained as it is; what does not fit on the GPU stays in RAM.",
    "rlr-flux2-klein": "The distilled 4B model: 4 steps; *guidance* left at 0 is 1.",
    "rlr-wan-video": "17 frames of 832 x 480. The reward sees frames; results are saved as animations.",
}


def _native(name: str) -> dict[str, Any]:
    """Where the nodes of a workflow on ComfyUI's own models lie."""
    nodes = {
        "1": (40, 60, 340, 110), "2": (40, 230, 340, 110), "3": (40, 400, 340, 60), "4": (40, 520, 340, 170),
        "18": (40, 750, 340, 60), "5": (440, 60, 340, 200), "6": (440, 320, 340, 260),
        "7": (440, 640, 340, 202), "8": (440, 902, 340, 202), "9": (840, 60, 460, 1290),
        "10": (1360, 60, 340, 90), "11": (1360, 210, 340, 120), "12": (1360, 390, 340, 100),
        "13": (1360, 550, 340, 290), "14": (1360, 900, 340, 290), "15": (1360, 1250, 340, 60),
        "16": (1360, 1370, 340, 60), "17": (1760, 60, 420, 470), "19": (1760, 590, 420, 470),
        "20": (1760, 1120, 420, 470),
    }  # fmt: skip
    golden = json.loads((HERE / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    text = f"{HEAD}{NATIVE_FILES[name]}{AESTHETIC_FILES}\n\n{NATIVE_REMARKS[name]}"
    return {
        "nodes": {number: place for number, place in nodes.items() if number in golden},
        "titles": {
            "7": "Reward: aesthetic", "8": "Judge: CLIP score", "11": "Prompt", "12": "Negative prompt",
            "13": "KSampler, without the LoRA", "14": "KSampler, with the LoRA", "17": "Without",
            "19": "With the LoRA", "20": "Before and after, as training saw it",
        },
        "notes": [(40, 870, 340, 480, text)],
    }  # fmt: skip


LAYOUT |= {name: _native(name) for name in NATIVE_FILES}

INPUTS = re.compile(r"(<!-- inputs -->\n).*?(<!-- end of inputs -->)", re.DOTALL)
"""The part of a help page that is written from the tooltips."""

ARRANGE = """([layout]) => {
  const graph = window.app.graph;
  for (const [id, [x, y, w, h]] of Object.entries(layout.nodes)) {
    const node = graph.getNodeById(Number(id)) ?? graph.getNodeById(id);
    node.pos = [x, y];
    const least = node.computeSize();
    node.setSize([Math.max(w, 10), Math.max(h, least[1])]);
    if (layout.titles[id]) node.title = layout.titles[id];
  }
  for (const [x, y, w, h, text] of layout.notes) {
    const note = LiteGraph.createNode("MarkdownNote");
    graph.add(note);
    note.pos = [x, y];
    note.setSize([w, h]);
    note.widgets[0].value = text;
  }
  for (const node of graph.nodes)
    for (const w of node.widgets ?? []) if (w.name === "control_after_generate") w.value = "fixed";
  const data = graph.serialize();
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
                workflow = page.evaluate(ARRANGE, [LAYOUT[name]])
                assert as_prompt(page) == prompt, name
                workflow["id"] = stable_id(name)
                dump(workflow, ROOT / "workflows" / f"{name}.json")
                print(f"{name}: {len(workflow['nodes'])} nodes")


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
                key: {"name": key, "tooltip": what[1]["tooltip"]}
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
