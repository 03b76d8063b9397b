"""What `rlr list rewards` and `rlr score` show."""

import csv
import io

import pytest
import torch
from PIL import Image
from reference.rewards_tiny import aesthetic_head, hugging_face_clip, open_clip_model, save

from rlr_core.errors import UserError
from rlr_core.evaluation.score_files import find_pictures, score_csv, score_images, score_table
from rlr_core.rewards import REWARDS, load_reward
from rlr_core.rewards.catalog import list_rewards


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLR_REWARD_MODELS", str(tmp_path / "models"))
    return tmp_path


@pytest.fixture
def shades(folder):
    """Three gray pictures, dark to bright, and a text file."""
    where = folder / "shades"
    where.mkdir()
    for index, value in enumerate((0, 51, 255)):
        Image.new("RGB", (20, 30), (value,) * 3).save(where / f"{index}.png")
    (where / "notes.txt").write_text("no picture")
    return where


def test_the_list_says_what_is_ready_what_is_missing_and_where_it_goes(folder):
    rows = {row.name: row for row in list_rewards()}
    assert set(rows) == set(REWARDS)
    assert rows["brightness"].ready and rows["brightness"].missing == ""
    assert not rows["aesthetic"].ready
    assert "sac+logos+ava1-l14-linearMSE" in rows["aesthetic"].missing
    assert "clip-vit-large-patch14" in rows["aesthetic"].missing
    assert str(folder / "models") in rows["aesthetic"].where and "https://" in rows["aesthetic"].where
    assert rows["target_picture"].options.startswith("target, features=None")

    save(aesthetic_head(), folder / "models" / "sac+logos+ava1-l14-linearMSE.safetensors")
    save(hugging_face_clip(), folder / "models" / "clip_vision_l.safetensors")
    row = {row.name: row for row in list_rewards()}["aesthetic"]
    assert row.ready and row.missing == row.where == ""


def test_a_reward_that_is_listed_as_ready_loads(folder):
    save(open_clip_model(), folder / "models" / "HPS_v2.1_compressed.safetensors")
    ready = {row.name for row in list_rewards() if row.ready}
    assert "hpsv2" in ready and "pickscore" not in ready
    load_reward("hpsv2")


def test_files_folders_and_globs_lead_to_pictures_each_once(shades):
    names = [path.name for path in find_pictures([str(shades)])]
    assert names == ["0.png", "1.png", "2.png"]
    assert [
        p.name for p in find_pictures([str(shades / "[12].png"), str(shades / "*"), str(shades / "0.png")])
    ] == [
        "1.png",
        "2.png",
        "0.png",
    ]
    with pytest.raises(UserError, match=r"nowhere.* leads to no picture"):
        find_pictures([str(shades / "nowhere*")])


def test_scores_come_by_picture_and_reward(shades):
    rows = score_images([str(shades)], ["brightness", "contrast"])
    assert [row.scores["brightness"] for row in rows] == pytest.approx([0, 0.2, 1], abs=1e-6)
    assert [list(row.scores) for row in rows] == [["brightness", "contrast"]] * 3
    with pytest.raises(UserError, match="'motion' scores videos"):
        score_images([str(shades)], "motion")
    with pytest.raises(UserError, match=r"notes\.txt is not an image"):
        score_images([str(shades / "notes.txt")], "brightness")


def test_options_and_prompt_reach_the_reward(shades, folder):
    rows = score_images([str(shades / "2.png")], {"target_color": {"color": "white"}})
    assert rows[0].scores["target_color"] == pytest.approx(0)
    save(open_clip_model(), folder / "models" / "HPS_v2_compressed.safetensors")
    with pytest.raises(UserError, match="needs a prompt"):
        score_images([str(shades)], "hpsv2")
    rows = score_images([str(shades)], "hpsv2", prompt="a gray wall")
    assert len({round(row.scores["hpsv2"], 6) for row in rows}) == 3


def test_each_reward_has_options_of_its_own_even_one_that_comes_twice(shades):
    channels = [{"mean_color": {"channel": "red"}}, {"mean_color": {"channel": "blue"}}, "brightness"]
    Image.new("RGB", (8, 8), "blue").save(shades / "blue.png")
    (row,) = score_images([str(shades / "blue.png")], channels)
    expected = {"mean_color": -0.5, "mean_color_2": 1.0, "brightness": 0.114}
    assert row.scores == pytest.approx(expected, abs=1e-6)


def test_options_on_the_command_line_say_whose_they_are(shades, rlr):
    Image.new("RGB", (8, 8), "blue").save(shades / "blue.png")
    both = ["score", shades / "blue.png", "--reward", "mean_color", "--reward", "target_color"]
    of_each = ["--option", "target_color.color=blue", "--option", "mean_color.channel=blue"]
    code, out, _ = rlr(*both, *of_each)
    assert code == 0 and out.splitlines()[1].split()[1:] == ["1.0000", "-0.0000"]
    code, _, error = rlr(*both, "--option", "color=blue")
    assert code == 2 and "an option says whose it is: --option mean_color.color=blue" in error
    code, _, error = rlr(*both, "--option", "contrast.color=blue")
    assert code == 2 and "'contrast' is none of the rewards mean_color, target_color" in error


def test_the_table_lines_up_and_ends_in_the_mean(shades):
    lines = score_table(score_images([str(shades)], ["brightness", "contrast"])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["image", "brightness", "contrast"]
    assert lines[1].split()[1] == "0.0000" and lines[1].split()[0].endswith("0.png")
    assert lines[-1].split()[:2] == ["mean", "0.4000"]


def test_the_csv_reads_back_exactly(shades):
    rows = score_images([str(shades)], "brightness", prompt='a "gray", flat wall')
    read = list(csv.DictReader(io.StringIO(score_csv(rows))))
    assert [row["prompt"] for row in read] == ['a "gray", flat wall'] * 3
    assert [float(row["brightness"]) for row in read] == [row.scores["brightness"] for row in rows]


def test_scoring_keeps_no_gradient_and_any_reward_object_will_do(shades):
    seen = []

    def own(images, prompts):
        seen.append(torch.is_grad_enabled())
        return images.mean((1, 2, 3))

    reward = load_reward(own, differentiable=True)
    assert score_images([str(shades)], reward)[2].scores["own"] == pytest.approx(1)
    assert seen == [False] * 3
