"""The toy scenes: maps that agree, distinct colours, files laid out as in the download."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_command
from PIL import Image

from data.toy.scene import draw_scene, read_styles
from data.toy.shapes import PALETTES
from data.toy_cityscapes import scene_rng, write_dataset
from prepare_cityscapes import find_jobs
from util.errors import UserError

ROAD, BUILDING, SKY, CAR = 7, 11, 23, 26


def toy(*flags: object) -> subprocess.CompletedProcess:
    return run_command("-m", "data.toy_cityscapes", *flags)


def scenes(count: int, width: int = 256, height: int = 128) -> list:
    return [draw_scene(scene_rng(5, "train", i), width, height) for i in range(count)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_scenes_are_those_that_the_documented_figures_were_measured_on():
    pixels = [(s.photo.tobytes(), s.label.tobytes(), s.instance.tobytes()) for s in scenes(2)]
    digest = hashlib.sha256(b"".join(map(b"".join, pixels))).hexdigest()
    assert digest == "58b24fd1b6ffddd3a61e290d44e5da7dccac2d123b7deef8b71322fabba30f22"


@pytest.mark.parametrize("size", [(256, 128), (32, 32), (97, 61), (64, 128)])
def test_maps_agree_and_have_the_requested_size(size):
    width, height = size
    for scene in scenes(4, *size):
        assert scene.photo.shape == (height, width, 3) and scene.photo.dtype == np.uint8
        assert scene.label.shape == (height, width) and scene.label.dtype == np.uint8
        assert scene.instance.shape == (height, width) and scene.instance.dtype == np.uint16
        for id in np.unique(scene.instance):
            labels = set(scene.label[scene.instance == id].tolist())
            assert labels == {id // 1000 if id >= 1000 else id}
        assert {i for i in scene.instance.flat if i >= 1000} == set(scene.styles)


def test_every_class_appears_and_bicycles_exceed_int16():
    drawn = scenes(20)
    labels = set(np.concatenate([np.unique(scene.label) for scene in drawn]).tolist())
    assert labels == {7, 8, 11, 17, 21, 23, 24, 25, 26, 28, 33}
    assert max(int(scene.instance.max()) for scene in drawn) >= 33000


def test_every_thing_shows_its_own_palette_colour():
    for scene in scenes(25):
        for id, style in scene.styles.items():
            mean = scene.photo[scene.instance == id].astype(float).mean(axis=0)
            distances = [np.linalg.norm(mean - colour) for colour in PALETTES[id // 1000]]
            assert int(np.argmin(distances)) == style, f"thing {id} looks like another style"
        assert read_styles(scene.photo, scene.instance) == scene.styles


@pytest.mark.thorough
def test_palettes_are_well_separated_and_all_used():
    for colours in PALETTES.values():
        assert 5 <= len(colours) <= 6
        for i, colour in enumerate(colours):
            for other in colours[:i]:
                assert np.linalg.norm(np.subtract(colour, other)) > 75
    used = {(id // 1000, style) for scene in scenes(40) for id, style in scene.styles.items()}
    assert len([style for label, style in used if label == CAR]) == len(PALETTES[CAR])


@pytest.mark.parametrize("size", [(256, 128), (512, 256), (96, 96)])
def test_two_cars_are_large_enough_to_be_clustered(size):
    for scene in scenes(6, *size):
        areas = [np.mean(scene.instance == id) for id in scene.styles if id // 1000 == CAR]
        assert sum(area > 1 / 64 for area in areas) >= 2


def test_layouts_differ_and_things_cover_a_minor_part():
    drawn = scenes(10)
    for i, scene in enumerate(drawn):
        assert np.mean(scene.instance >= 1000) < 0.35
        for other in drawn[:i]:
            assert np.mean(scene.label != other.label) > 0.05


def test_background_follows_from_the_label_map():
    """Even one fixed colour per class comes close to the photographs of unseen scenes."""
    train, test = scenes(12), [draw_scene(scene_rng(5, "val", i), 256, 128) for i in range(6)]
    for label in (BUILDING, ROAD, SKY):
        colour = np.median(np.concatenate([s.photo[s.label == label] for s in train]), axis=0)
        rest = np.concatenate([s.photo[s.label == label] for s in test])
        assert np.abs(rest - colour).mean() < 9


def test_command_lays_out_the_download(tmp_path):
    tmp_path = tmp_path / "toy scenes_raw"
    done = toy("--out", tmp_path, "--train", 3, "--val", 2, "--size", "75x47", "--seed", 4)
    assert done.returncode == 0, done.stderr
    suggested = shlex.split(done.stdout.split("next: python ")[1])  # as a shell parses it
    out = str(tmp_path).removesuffix("_raw")
    assert suggested == ["prepare_cityscapes.py", "--raw", str(tmp_path), "--out", out]
    assert done.stderr == ""  # no progress bar without a terminal
    styles = json.loads((tmp_path / "toy_styles.json").read_text())
    assert len(styles) == 5
    for split, city, count in (("train", "toytown", 3), ("val", "toyville", 2)):
        lines = (tmp_path / f"{split}.list").read_text().splitlines()
        assert len(lines) == count
        for i, line in enumerate(lines):
            stem = f"{city}_{i:06d}_000019"
            photo, label = line.split(" ")
            assert photo == f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png"
            assert label == f"gtFine/{split}/{city}/{stem}_gtFine_labelIds.png"
            instance = label.replace("labelIds", "instanceIds")
            assert Image.open(tmp_path / photo).mode == "RGB"
            assert Image.open(tmp_path / label).mode == "L"
            assert (tmp_path / instance).read_bytes()[24] == 16  # the PNG header's bit depth
            ids = np.asarray(Image.open(tmp_path / instance)).astype(int)
            assert ids.shape == (47, 75)
            labels = np.asarray(Image.open(tmp_path / label))
            assert (np.where(ids < 1000, ids, ids // 1000) == labels).all()
            assert {int(id) for id in styles[stem]} == {id for id in ids.flat if id >= 1000}


def test_same_seed_same_bytes_whatever_the_count(tmp_path):
    for name, count, seed in (("few", 2, 1), ("many", 4, 1), ("other", 2, 2)):
        write_dataset(tmp_path / name, train=count, val=1, size=(64, 32), seed=seed)
    few, many, other = (files_of(tmp_path / name) for name in ("few", "many", "other"))
    images = [name for name in few if name.endswith(".png")]
    assert len(images) == 9
    assert all(few[name] == many[name] for name in images)
    assert all(few[name] != other[name] for name in images)
    assert (
        few["leftImg8bit/train/toytown/toytown_000000_000019_leftImg8bit.png"]
        != (few["leftImg8bit/val/toyville/toyville_000000_000019_leftImg8bit.png"])
    )


def test_an_interrupted_command_leaves_no_half_image_and_nothing_listed(tmp_path, monkeypatch):
    def half(_image, path, *_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    write_dataset(tmp_path / "again", 2, 1, (64, 32))
    monkeypatch.setattr(Image.Image, "save", half)
    for folder in tmp_path / "new", tmp_path / "again":
        with pytest.raises(KeyboardInterrupt):
            write_dataset(folder, 1, 0)
        # the quickstart and prepare_cityscapes.py would take the set for complete
        assert [path.read_text() for path in folder.glob("*.list")] == ["", ""]
        assert not (folder / "toy_styles.json").exists()
        with pytest.raises(UserError, match=r"train\.list: no images .* run data\.toy_city"):
            find_jobs(folder, tmp_path, "train")
    assert not [*(tmp_path / "new").rglob("*.png")]


def test_a_smaller_set_replaces_a_larger_one(tmp_path):
    write_dataset(tmp_path / "a", train=4, val=2, size=(64, 32))
    write_dataset(tmp_path / "a", train=2, val=1, size=(64, 32))
    write_dataset(tmp_path / "b", train=2, val=1, size=(64, 32))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--size", "31x64"], "31x64"),
        (["--size", "64"], "--size: '64'"),
        (["--size", "99999x64"], "99999x64"),
        (["--train", "-1"], "--train: '-1'"),
        (["--train", "0", "--val", "0"], "no scenes"),
        (["--seed", "-3"], "--seed: '-3'"),
        (["--train", "many"], "--train"),
        (["--wrong"], "--wrong"),
    ],
)
def test_bad_usage_ends_in_one_line(tmp_path, flags, word):
    assert word in one_line(toy("--out", tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_single_split(tmp_path, split):
    counts = {"train": 0, "val": 0, split: 1}
    write_dataset(tmp_path / "out", **counts, size=(64, 32))
    lines = {name: (tmp_path / "out" / f"{name}.list").read_text() for name in counts}
    assert {name: text.count("\n") for name, text in lines.items()} == counts


def test_real_photographs_are_left_alone(tmp_path):
    (tmp_path / "leftImg8bit/train/aachen").mkdir(parents=True)
    (tmp_path / "train.list").write_text("mine")
    with pytest.raises(UserError, match="aachen"):
        write_dataset(tmp_path, train=1, val=1)
    assert (tmp_path / "train.list").read_text() == "mine"
