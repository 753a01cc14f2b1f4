"""test.py --input: images from files anywhere, as from a data set."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_command, run_ok, save_png
from PIL import Image
from tiny_run import write_run

import test as command  # test.py
from data.files import image_names
from data.input_files import find_inputs, partners
from options.test_options import TestOptions
from util.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The flags that name a run with features; it scales, so that files must be scaled alike."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_run(folder, "run", loadSize=48, resize_or_crop="scale_width")
    return ["--name", "run", "--checkpoints_dir", folder, "--gpu_ids", -1, "--nThreads", 0]


@pytest.fixture(scope="module")
def expected(
    run: list[object], toy_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """The images of the data set's training scenes, by the label map's stem."""
    results = tmp_path_factory.mktemp("results")
    flags = ["--dataroot", toy_data, "--phase", "train", "--results_dir", results]
    run_ok("test.py", *run, *flags, "--style", "car=2")
    ending = "_synthesized_image"
    paths = sorted(results.rglob(f"*{ending}.png"))
    assert len(paths) == 4
    return {path.stem.removesuffix(ending): read(path) for path in paths}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def inputs(toy_data: Path, kind: str, tmp_path: Path) -> list[object]:
    """--input and --input_inst for the same files, named in several ways."""
    folders = toy_data / "train_label", toy_data / "train_inst"
    if kind == "folder":
        return ["--input", folders[0], "--input_inst", folders[1]]
    if kind == "glob":
        return ["--input", folders[0] / "*.png", "--input_inst", folders[1] / "*_instanceIds.png"]
    for folder in folders:
        lines = [str(path) for path in sorted(folder.iterdir(), reverse=True)]
        (tmp_path / f"{folder.name}.txt").write_text("\n".join(["", *lines, ""]))
    return ["--input", tmp_path / "train_label.txt", "--input_inst", tmp_path / "train_inst.txt"]


@pytest.mark.parametrize("kind", ["folder", "glob", "list"])
def test_images_equal_those_of_the_data_set(
    kind: str, run: list, expected: dict, toy_data: Path, tmp_path: Path, call
) -> None:
    flags = inputs(toy_data, kind, tmp_path)
    call(command.main, *run, *flags, "--output", tmp_path / "out", "--style", "car=2")
    found = {path.stem: read(path) for path in (tmp_path / "out").iterdir()}
    assert found.keys() == expected.keys()
    for stem, image in found.items():
        np.testing.assert_array_equal(image, expected[stem])


def test_one_file_and_worker_processes(
    run: list, expected: dict, toy_data: Path, tmp_path: Path
) -> None:
    """Two files belong together, whatever their names."""
    stem = sorted(expected)[0]
    shutil.copy(toy_data / "train_label" / f"{stem}.png", tmp_path / f"{stem}.png")
    inst = stem.replace("labelIds", "instanceIds")
    shutil.copy(toy_data / "train_inst" / f"{inst}.png", tmp_path / "other.png")
    output = run_ok(
        *("test.py", *run, "--nThreads", 1, "--input", tmp_path / f"{stem}.png"),
        *("--input_inst", tmp_path / "other.png", "--output", tmp_path / "out"),
        *("--style", "car=2"),
    )
    assert "1 label maps: their images" in output
    np.testing.assert_array_equal(read(tmp_path / "out" / f"{stem}.png"), expected[stem])


def test_bad_files_are_named_and_the_rest_is_generated(
    run: list, toy_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_data / "train_label", tmp_path / "label")
    shutil.copytree(toy_data / "train_inst", tmp_path / "inst")
    labels = sorted((tmp_path / "label").iterdir())
    labels[0].write_bytes(labels[0].read_bytes()[:60])
    label = read(labels[1]).copy()
    label[3, 4] = 77
    save_png(labels[1], label)
    save_png(tmp_path / "label" / "alone.png", label)
    flags = ["--input", tmp_path / "label", "--input_inst", tmp_path / "inst"]
    done = run_command("test.py", *run, *flags, "--output", tmp_path / "out")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and all(line.startswith("error: ") for line in lines)
    assert "alone.png: --input_inst has no map" in done.stderr
    assert f"{labels[0]}: cannot be read" in done.stderr
    assert f"{labels[1]}: label 77" in done.stderr
    assert lines[-1] == "error: 3 of 5 label maps were left out, see above"
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [path.name for path in labels[2:]]


def test_the_first_label_map_takes_no_instances_of_another_scene(
    run: list, toy_data: Path, tmp_path: Path
) -> None:
    for folder, names in {"label": ["s0", "s1"], "inst": ["s1"]}.items():
        (tmp_path / folder).mkdir()
        for name, file in zip(names, sorted((toy_data / f"train_{folder}").iterdir())):
            shutil.copy(file, tmp_path / folder / f"{name}.png")
    flags = ["--input_inst", tmp_path / "inst", "--how_many", 1, "--output", tmp_path / "out"]
    done = run_command("test.py", *run, "--input", tmp_path / "label", *flags)
    assert done.returncode == 2 and "s0.png: --input_inst has no map" in done.stderr
    absent = [f"{tmp_path / 'label' / name}.png\n" for name in ("absent", "s1")]
    (tmp_path / "list.txt").write_text("".join(absent))
    done = run_command("test.py", *run, "--input", tmp_path / "list.txt", *flags)
    assert done.returncode == 2 and "absent.png: cannot be read as an image ([E" in done.stderr


def test_images_never_share_a_name(tmp_path: Path) -> None:
    files = {key: tmp_path / f"{key}.png" for key in ("x/b", "y/b")}
    assert image_names(files) == {"x/b": "x__b", "y/b": "y__b"}
    files["x__b"] = tmp_path / "x__b.png"
    with pytest.raises(UserError, match=r"b\.png and .*x__b\.png.* would both be called x__b"):
        image_names(files)
    files = {key: tmp_path / f"{key}.png" for key in ("x/a", "y/A")}  # one file on many disks
    assert image_names(files) == {"x/a": "x__a", "y/A": "y__A"}


def test_the_page_and_skip_existing(run: list, toy_data: Path, tmp_path: Path, call) -> None:
    flags = [*run, *inputs(toy_data, "folder", tmp_path), "--output", tmp_path / "out", "--page"]
    call(command.main, *flags, "--how_many", 2)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert len(first) == 4
    call(command.main, *flags, "--skip_existing")
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    page = (tmp_path / "out" / "index.html").read_text()
    assert (
        page.count("<img") == 8 and page.count("input_label.png") == 8
    )  # a link and an image each
    first[sorted(first)[0]] = 0
    sorted(first)[0].unlink()
    call(command.main, *flags, "--skip_existing")
    written = [path for path, time in first.items() if path.stat().st_mtime_ns != time]
    assert sorted(first)[0] in written and len(written) == 2  # all of that scene


def test_all_styles_and_tiles(run: list, toy_data: Path, tmp_path: Path, call) -> None:
    flags = [*run, *inputs(toy_data, "folder", tmp_path), "--output", tmp_path / "out"]
    call(command.main, *flags, "--all_styles", "car", "--how_many", 1, "--tile", 8)
    stem = sorted((toy_data / "train_label").iterdir())[0].stem
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{stem}_style_{k}.png" for k in range(5)]


def test_rgb_inputs(toy_data: Path, tmp_path: Path) -> None:
    write_run(tmp_path, "rgb", label_nc=0, no_instance=True, instance_feat=False)
    run_ok(
        *("test.py", "--name", "rgb", "--checkpoints_dir", tmp_path, "--gpu_ids", -1),
        *("--input", toy_data / "train_img", "--output", tmp_path / "out", "--nThreads", 0),
        *("--image_format", "jpg"),
    )
    stems = [path.stem for path in sorted((toy_data / "train_img").iterdir())]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        f"{stem}.jpg" for stem in stems
    ]


def test_inputs_are_never_overwritten(run: list, own_data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in own_data.rglob("*.png")}
    flags = inputs(own_data, "folder", tmp_path)
    done = run_command("test.py", *run, *flags, "--output", own_data / "train_label")
    assert "is an input and would be overwritten" in one_line(done)
    assert {path: path.read_bytes() for path in own_data.rglob("*.png")} == before


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--output", "out"], "--output needs --input"),
        (["--page"], "--page needs --input"),
        (["--input", "x"], "--input needs --output"),
        (["--input", ""], "--input is empty"),
        (["--input", "x", "--output", "y"], "trained with instance maps .*--input_inst"),
        (["--input", "x", "--output", "y", "--input_inst", "z", "--no_instance"], "leave it out"),
        (["--input", "x", "--output", "y", "--no_instance", "--batchSize", "2"], "--batchSize"),
    ],
)
def test_refused_flags(flags: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        TestOptions().parse(["--gpu_ids", "-1", "--checkpoints_dir", str(tmp_path), *flags])


@pytest.mark.parametrize("flag", ["--use_encoded_image", "--load_features"])
def test_photographs_and_features_need_a_data_set(flag: str, run: list, toy_data: Path) -> None:
    flags = ["--input", "x", "--input_inst", "y", "--output", "z", flag]
    with pytest.raises(UserError, match=f"{flag} needs a data set"):
        TestOptions().parse([*map(str, run), *flags])


def test_files_are_found_and_paired_by_name(tmp_path: Path) -> None:
    names = ["a/x_label.png", "b/x_label.png", "b/y_label.png", "inst/y.png", "inst/x.png"]
    for name in names:
        save_png(tmp_path / name, np.zeros((4, 4), np.uint8))
    labels = find_inputs("--input", str(tmp_path / "[ab]" / "*.png"))
    assert list(labels) == ["a/x", "b/x", "b/y"]
    found = partners(labels, find_inputs("--input_inst", str(tmp_path / "inst")))
    assert [path.name for path in found.values()] == ["x.png", "x.png", "y.png"]
    alone = {"a/x": save_png(tmp_path / "own" / "a" / "x.png", np.zeros((4, 4), np.uint8))}
    assert partners(labels, alone) == alone  # no other scene's map for b/x
    with pytest.raises(UserError, match="no such file or folder, and no file matches"):
        find_inputs("--input", str(tmp_path / "*.tif"))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a/x_label.png\n{tmp_path}/a/x_inst.png\n")
    with pytest.raises(UserError, match=r"x_label.png and .*x_inst.png would be the same image"):
        find_inputs("--input", str(tmp_path / "list.txt"))


def test_results_inside_the_folder_are_not_inputs(tmp_path: Path) -> None:
    path = save_png(tmp_path / "a.png", np.zeros((4, 8), np.uint8))
    save_png(tmp_path / "out" / "a.png", np.zeros((4, 8), np.uint8))
    found = find_inputs("--input", str(tmp_path), tmp_path / "out")
    assert list(found.values()) == [path]
    path.unlink()
    with pytest.raises(UserError, match="no images except those of --output"):
        find_inputs("--input", str(tmp_path), tmp_path / "out")


def test_lists_as_windows_writes_them(tmp_path: Path) -> None:
    path = save_png(tmp_path / "maps" / "a.png", np.zeros((4, 8), np.uint8))
    (tmp_path / "bom.txt").write_text(f"{path}\n", "utf-8-sig")
    assert list(find_inputs("--input", str(tmp_path / "bom.txt")).values()) == [path]
    (tmp_path / "wide.txt").write_text(f"{path}\n", "utf-16")
    with pytest.raises(UserError, match=r"wide\.txt: not a list of paths in UTF-8"):
        find_inputs("--input", str(tmp_path / "wide.txt"))
