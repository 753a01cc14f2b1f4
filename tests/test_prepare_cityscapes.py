"""prepare_cityscapes.py on the command line, on small trees laid out like the download."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_line, run_command, run_ok, save_png, thorough
from PIL import Image

from data.files import scene_key
from prepare_cityscapes import find_jobs
from util.files import lock_folder

COMMAND = ROOT / "prepare_cityscapes.py"
SIZE = (24, 12)
TREES = {
    "img": ("leftImg8bit", "leftImg8bit"),
    "label": ("gtFine", "gtFine_labelIds"),
    "inst": ("gtFine", "gtFine_instanceIds"),
}
STEMS = {
    "train": ["aachen/aachen_000000_000019", "bochum/bochum_000001_000019"],
    "val": ["ulm/ulm_000002_000019"],
}


def ok(*flags: object, cwd: Path = ROOT) -> str:
    return run_ok(COMMAND, *flags, cwd=cwd)


def refused(*flags: object) -> str:
    return one_line(run_command(COMMAND, *flags))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A download with two scenes to train on and one to validate, without lists."""
    rng = np.random.default_rng(0)
    pixels = {
        "img": lambda: rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8),
        "label": lambda: rng.integers(0, 34, SIZE[::-1], np.uint8),
        "inst": lambda: rng.integers(0, 33100, SIZE[::-1], np.uint16),
    }
    for split, stems in STEMS.items():
        for stem in stems:
            for kind in TREES:
                path = source(tmp_path / "raw", split, stem, kind)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[kind]()).save(path)
    return tmp_path / "raw"


def source(raw: Path, split: str, stem: str, kind: str) -> Path:
    tree, ending = TREES[kind]
    return raw / tree / split / f"{stem}_{ending}.png"


def target(out: Path, split: str, stem: str, kind: str) -> Path:
    phase = {"train": "train", "val": "test"}[split]
    return out / f"{phase}_{kind}" / f"{Path(stem).name}_{TREES[kind][1]}.png"


def every_file(raw: Path, out: Path) -> list[tuple[str, Path, Path]]:
    return [
        (kind, source(raw, split, stem, kind), target(out, split, stem, kind))
        for split, stems in STEMS.items()
        for stem in stems
        for kind in TREES
    ]


def names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [[], ["--link"], ["--workers", "1"]])
def test_walk_copies_or_links_everything(raw, tmp_path, flags):
    out = tmp_path / "out"
    output = ok("--raw", raw, "--out", out, *flags)
    pairs = every_file(raw, out)
    assert names(out) == {path.relative_to(out).as_posix() for _, _, path in pairs}
    for _, before, after in pairs:
        assert after.read_bytes() == before.read_bytes()
        assert after.samefile(before) == ("--link" in flags)
    assert "train: 2 scenes" in output and "val: 1 scenes" in output
    last = output.splitlines()[-1]
    assert "python train.py" in last and str(out) in last


def test_linked_cities_are_included(raw, tmp_path):
    for tree, _ in TREES.values():
        city = raw / tree / "train" / "bochum"
        if not city.is_symlink():
            city.rename(tmp_path / f"{tree}_bochum")
            city.symlink_to(tmp_path / f"{tree}_bochum")
            (raw / tree / "train" / "circle").symlink_to(raw / tree)
    out = tmp_path / "out"
    ok("--raw", raw, "--out", out)
    assert names(out) == {path.relative_to(out).as_posix() for _, _, path in every_file(raw, out)}


def test_default_out_and_one_split(raw, tmp_path):
    ok("--raw", raw, "--splits", "val", cwd=tmp_path)
    folders = {path.name for path in (tmp_path / "datasets/cityscapes").iterdir()}
    assert folders == {"test_img", "test_label", "test_inst"}


def test_list_chooses_scenes_and_counts_names_up_to_the_last_underscore(raw, tmp_path):
    stem = STEMS["train"][1]
    (raw / "train.list").write_text(
        f"leftImg8bit/train/{stem}_leftImg8bit.png gtFine/train/{stem}_gtFine_labelTrainIds.png\n\n"
    )
    out = tmp_path / "out"
    ok("--raw", raw, "--out", out, "--splits", "train")
    assert names(out) == {target(out, "train", stem, k).relative_to(out).as_posix() for k in TREES}


@pytest.mark.parametrize(
    "line, word",
    [
        ("../a_leftImg8bit.png gtFine/a_gtFine_labelIds.png", ".."),
        ("leftImg8bit/a_leftImg8bit.png /etc/a_gtFine_labelIds.png", "/etc"),
        ("leftImg8bit/a_leftImg8bit.png", "line 1"),
        ("a.png b.png", "line 1"),
        ("a b c_d.png", "line 1"),
        ("", "no images"),
    ],
)
def test_wrong_lists_are_refused(raw, tmp_path, line, word):
    (raw / "train.list").write_text(line + "\n")
    assert word in refused("--raw", raw, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("listed", [False, True])
def test_all_missing_partners_are_named_before_anything_is_written(raw, tmp_path, listed):
    if listed:
        for split, stems in STEMS.items():
            lines = [
                f"leftImg8bit/{split}/{s}_leftImg8bit.png gtFine/{split}/{s}_gtFine_labelIds.png"
                for s in stems
            ]
            (raw / f"{split}.list").write_text("\n".join(lines))
    gone = [
        source(raw, "train", STEMS["train"][0], "img"),
        source(raw, "train", STEMS["train"][1], "label"),
        source(raw, "val", STEMS["val"][0], "inst"),
    ]
    for path in gone:
        path.unlink()
    done = run_command(COMMAND, "--raw", raw, "--out", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("missing")] == [
        f"missing: {path}" for path in gone
    ]
    assert not (tmp_path / "out").exists()


def test_same_name_from_two_cities_is_refused(raw, tmp_path):
    for kind in TREES:
        path = source(raw, "train", "bochum/aachen_000000_000019", kind)
        path.write_bytes(b"another")
    assert "both become" in refused("--raw", raw, "--out", tmp_path / "out")


@pytest.mark.parametrize("width", [8, 10, 16, 50])
def test_size_scales_photographs_smoothly_and_maps_exactly(raw, tmp_path, width):
    out = tmp_path / "out"
    ok("--raw", raw, "--out", out, "--size", width)
    height = width // 2
    for kind, before, after in every_file(raw, out):
        old, new = Image.open(before), Image.open(after)
        assert new.size == (width, height)
        if kind == "img":
            expected = np.asarray(old.resize((width, height), Image.Resampling.BICUBIC))
        else:
            ids = np.asarray(old).astype(int)
            expected = np.array(
                [
                    [
                        ids[int((y + 0.5) * 12 / height), int((x + 0.5) * 24 / width)]
                        for x in range(width)
                    ]
                    for y in range(height)
                ]
            )
        assert (np.asarray(new).astype(int) == expected).all()
        assert after.read_bytes()[24] == (16 if kind == "inst" else 8)  # bits in the PNG header


@pytest.mark.parametrize("width", [640, *thorough(777)])
def test_maps_of_one_scene_agree_where_scaling_is_a_tie(width, tmp_path):
    """Pillow rounds 16-bit images differently there."""
    labels = np.random.default_rng(0).integers(0, 35, (1024, 2048))
    pixels = {
        "img": np.zeros((1024, 2048, 3), np.uint8),
        "label": labels.astype(np.uint8),
        "inst": (labels * 1000).astype(np.uint16),
    }
    stem = STEMS["train"][0]
    for kind, array in pixels.items():
        save_png(source(tmp_path / "raw", "train", stem, kind), array)
    ok("--raw", tmp_path / "raw", "--out", tmp_path, "--splits", "train", "--size", width)
    label, inst = (Image.open(target(tmp_path, "train", stem, kind)) for kind in ("label", "inst"))
    assert np.array_equal(np.asarray(inst), np.asarray(label).astype(int) * 1000)


@pytest.mark.skipif(os.name == "nt", reason="files cannot be locked there")
def test_two_commands_at_once_do_not_disturb_each_other(raw, tmp_path):
    lock = lock_folder(tmp_path / "out", "")
    assert "running there" in refused("--raw", raw, "--out", tmp_path / "out")
    lock.close()
    assert "6 files written" in ok("--raw", raw, "--out", tmp_path / "out")


@pytest.mark.parametrize("flags", [[], ["--size", "16"], ["--link"]])
def test_rerun_completes_what_is_missing(raw, tmp_path, flags):
    out = tmp_path / "out"
    ok("--raw", raw, "--out", out, *flags)
    files = [path for _, _, path in every_file(raw, out)]
    content = {path: path.read_bytes() for path in files}
    gone, kept = files[2], files[3]
    gone.unlink()
    half = gone.with_name(f".{gone.name}.tmp")
    half.write_bytes(b"half a file")  # as a kill leaves it
    inode = kept.stat().st_ino
    output = ok("--raw", raw, "--out", out, *flags)
    assert "1 files written, 5 there already" in output
    assert kept.stat().st_ino == inode
    assert {path: path.read_bytes() for path in files} == content
    assert not half.exists()


def test_a_kill_never_leaves_a_smaller_set_that_looks_complete(raw, tmp_path):
    jobs, kinds = find_jobs(raw, tmp_path, "train"), len(TREES)
    assert len(jobs) == kinds * len(STEMS["train"])
    for made in range(1, len(jobs)):
        scenes = Counter(scene_key(job.target, job.target.parent) for job in jobs[:made])
        assert min(scenes.values()) < kinds  # some scene lacks a map, so that training refuses it


def test_another_size_replaces_all_files(raw, tmp_path):
    out = tmp_path / "out"
    before = [path.read_bytes() for _, path, _ in every_file(raw, out)]
    for flags, size in (
        (["--link"], SIZE),
        (["--size", 16], (16, 8)),
        (["--size", 8], (8, 4)),
        ([], SIZE),
    ):
        ok("--raw", raw, "--out", out, *flags)
        assert {Image.open(path).size for _, _, path in every_file(raw, out)} == {size}
    # scaling replaced the links; it never wrote through them
    assert [path.read_bytes() for _, path, _ in every_file(raw, out)] == before
    assert [path.read_bytes() for _, _, path in every_file(raw, out)] == before


def test_changed_source_is_read_again(raw, tmp_path):
    out = tmp_path / "out"
    ok("--raw", raw, "--out", out, "--size", 16)
    path = source(raw, "val", STEMS["val"][0], "label")
    Image.new("L", SIZE, 7).save(path)
    os.utime(path, (1e9, 1e9))
    ok("--raw", raw, "--out", out, "--size", 16)
    assert set(np.asarray(Image.open(target(out, "val", STEMS["val"][0], "label"))).flat) == {7}


def test_damaged_source_is_named_and_leaves_no_partial_file(raw, tmp_path):
    out = tmp_path / "out"
    path = source(raw, "train", STEMS["train"][0], "img")
    path.write_bytes(path.read_bytes()[:-200])
    output = refused("--raw", raw, "--out", out, "--size", 16)
    assert str(path) in output
    assert not target(out, "train", STEMS["train"][0], "img").exists()
    assert not [name for name in names(out) if name.endswith(".tmp")]


def test_a_flipped_bit_is_not_hidden_in_a_scaled_map(raw, tmp_path):
    path = source(raw, "val", STEMS["val"][0], "label")
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # in the checksum of the pixels, before the 12 bytes of the end
    path.write_bytes(content)
    assert str(path) in refused("--raw", raw, "--out", tmp_path / "out", "--size", SIZE[0])


def test_other_files_in_the_folders_are_pointed_out(raw, tmp_path):
    out = tmp_path / "out"
    (out / "train_img").mkdir(parents=True)
    (out / "train_img" / "old.png").write_bytes(b"")
    output = ok("--raw", raw, "--out", out)
    assert "note: 1 other files" in output and "old.png" in output


def test_bad_usage_ends_in_one_line(raw, tmp_path):
    assert "--raw" in refused()
    assert "nowhere" in refused("--raw", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images" in refused("--raw", tmp_path / "empty")
    assert "--link with --size" in refused("--raw", raw, "--link", "--size", 8)
    assert "--size: '0'" in refused("--raw", raw, "--size", 0)
    assert "--workers: '0'" in refused("--raw", raw, "--workers", 0)
    assert "--splits" in refused("--raw", raw, "--splits", "test")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("--raw", raw, "--out", tmp_path / "file")
    assert "cannot make" in refused("--raw", raw, "--out", tmp_path / "file" / "out")
