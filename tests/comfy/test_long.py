"""Twenty cancels of the demo, and checkpoints of the real sizes (both with -m big); and of wrong files."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import pytest
from comfy_process import comfyui
from comfy_server import ComfyServer, changed, make_base
from test_server import golden, lora_of, same

TRIES = 20


@pytest.mark.big
def test_twenty_cancels_of_the_demo_each_followed_by_a_bit_equal_resume(tmp_path):
    prompt = changed(
        golden("rlr-demo"), steps=5, evaluate_every=2, evaluation_samples=16, batch=8, micro_batch=8,
        stop_when_judge_drops="off",
    )  # fmt: skip
    moments, waits = random.Random(1), []
    base = make_base(tmp_path / "base")
    with ComfyServer(comfyui(), base) as server:
        server.run(changed(prompt, run_name="warm"))  # imports and the first reading of files
        started = time.monotonic()
        server.run(changed(prompt, run_name="whole"))
        whole, length = lora_of(base, "whole"), time.monotonic() - started
        for trial in range(TRIES):
            name = f"stopped_{trial}"
            prompt_id = server.queue(changed(prompt, run_name=name))
            time.sleep(0.8 * length * moments.random())
            pressed = time.monotonic()
            server.interrupt()
            entry = server.wait(prompt_id)
            while not server.idle():
                time.sleep(0.01)
            if entry["status"]["status_str"] != "success":
                waits.append(time.monotonic() - pressed)
            server.run(changed(prompt, run_name=name))
            assert same(lora_of(base, name), whole), name
    waits.sort()
    print(
        f"{len(waits)} of {TRIES} were stopped in time (a run takes {length:.1f} s); cancel to idle: "
        f"median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.2f} s"
    )
    assert len(waits) >= TRIES // 2


@pytest.fixture
def no_network(monkeypatch):
    """Connections are refused."""

    def refuse(*arguments, **keywords):
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.big
@pytest.mark.parametrize("version", ["sd1", "sd2 v-prediction"])
def test_a_full_size_checkpoint_trains_a_step_and_saves(run, base, no_network, version):
    from full_checkpoint import write_full_checkpoint

    path = base / "models/checkpoints" / f"{version.replace(' ', '_')}.safetensors"
    size = write_full_checkpoint(path, version)
    started = time.monotonic()
    (model,) = run("RLR_LoadCheckpoint", checkpoint=path.name, dtype="bf16")
    (prompts,) = run("RLR_Prompts", text="a dog\na cat")
    (reward,) = run("RLR_Reward", reward="brightness")
    lora, *_, folder, _ = run(
        "RLR_Train", model=model, prompts=prompts, reward=reward, run_name=path.stem, steps=1, batch=2,
        samples_per_prompt=2, micro_batch=1, sampler_steps=2, guidance=2.0, width=64, height=64, rank=4,
        evaluation_samples=2,
    )  # fmt: skip
    (saved,) = run("RLR_SaveLoRA", lora=lora, name=path.stem)
    seconds = time.monotonic() - started
    print(f"{version}: {size / 2**30:.1f} GiB, one update in {seconds:.0f} s, {len(lora)} tensors in {saved}")
    assert Path(saved).stat().st_size > 1_000_000
    path.unlink()


def test_wrong_files_are_one_sentence_each(run, base):
    import torch
    from safetensors.torch import save_file

    from rlr_core.errors import UserError

    folder = base / "models/checkpoints"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, folder / "lora.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, folder / "vae.safetensors")
    save_file({"x": torch.zeros(1000)}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:500])
    (folder / "text.safetensors").write_text("this is not a checkpoint")
    for name, said in (
        ("lora", "a LoRA"),
        ("vae", "a VAE alone"),
        ("cut", "cut off"),
        ("text", "not a .saf"),
    ):
        started = time.monotonic()
        with pytest.raises(UserError, match=said) as caught:
            run("RLR_LoadCheckpoint", checkpoint=f"{name}.safetensors")
        print(f"{name}: {time.monotonic() - started:.3f} s, {caught.value}")
        assert len(str(caught.value).splitlines()) == 1
