"""data.check and data.convert_labels by their command lines, and what they build on."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, TINY, needs, one_line, run_command, run_ok, save_png
from PIL import Image

from data.check import check, summary
from data.convert_labels import main as convert_main
from data.convert_labels import read_palette, to_labels
from data.create import create_dataset
from data.files import read_integers
from options.train_options import TrainOptions
from scripts.check_data import main as check_main
from util.errors import UserError
from util.pages.colours import colour_label

FLAGS = TINY


def options(data: Path, *flags: object) -> argparse.Namespace:
    return TrainOptions().parse([*FLAGS, "--dataroot", str(data), *map(str, flags)])


def problems(data: Path, *flags: object) -> list[str]:
    return check(options(data, *flags)).problems


def notes(data: Path, *flags: object) -> list[str]:
    return check(options(data, *flags)).notes


def files(data: Path, kind: str) -> list[Path]:
    return sorted((data / f"train_{kind}").glob("*.png"))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_good_set_has_no_problems_and_a_true_summary(toy_data, call, capsys):
    assert call(check_main, *FLAGS, "--dataroot", toy_data) == 0
    output = capsys.readouterr().out
    labels = np.stack([read(path) for path in files(toy_data, "label")])
    insts = [read(path) for path in files(toy_data, "inst")]
    for value in np.unique(labels):
        share = f"{(labels == value).mean():.3%}"
        scenes = sum((label == value).any() for label in labels)
        ids = np.concatenate([np.unique(inst) for inst in insts])
        instances = np.isin(ids, value).sum() + (ids // 1000 == value).sum()
        line = next(line for line in output.splitlines() if line.split()[:1] == [str(value)])
        assert line.split()[-3:] == [share, str(scenes), str(instances)]
    assert "sizes: 64x32 (4)" in output and "no problems found" in output
    assert f"--label_nc {labels.max() + 1} or more" in output


def test_a_validation_phase_that_is_missing_is_a_problem(toy_data, call, capsys):
    for more in [], ["--label_nc", "auto"]:
        flags = [*FLAGS, "--dataroot", toy_data, *more, "--val_phase"]
        assert call(check_main, *flags, "test") == 0
        assert call(check_main, *flags, "nope") == 1
        assert "--val_phase: " in capsys.readouterr().out


def test_every_problem_is_reported_not_only_the_first(own_data):
    label, inst, image = (files(own_data, kind) for kind in ("label", "inst", "img"))
    bad = read(label[0]).copy()
    bad[:2, :3] = 200
    save_png(label[0], bad)
    save_png(inst[1], np.full((32, 64), 7, np.uint16))
    image[2].write_bytes(image[2].read_bytes()[:200])
    save_png(image[3], np.zeros((16, 64, 3), np.uint8))
    save_png(own_data / "train_img" / "extra.png", np.zeros((32, 64, 3), np.uint8))
    found = problems(own_data)
    expected = [
        f"no label for the image {own_data / 'train_img' / 'extra.png'}",
        f"no inst for the image {own_data / 'train_img' / 'extra.png'}",
        f"{label[0]}: label 200 (6 pixels)",
        f"{inst[1]}: every pixel is instance 7",
        f"{image[2]}: cannot be read",
        f"{label[3]} is 64x32, {inst[3]} is 64x32, {image[3]} is 64x16",
    ]
    for text in expected:
        assert any(text in problem for problem in found), (text, found)
    # the ids of the damaged label and of the constant map disagree as well
    assert sum("another class" in problem for problem in found) == 2
    assert len(found) == len(expected) + 2


def test_colours_palettes_and_jpeg_are_wrong_for_label_maps(own_data):
    label = files(own_data, "label")
    save_png(label[0], colour_label(read(label[0]), 35))
    indexed = Image.fromarray(read(label[1]))
    indexed.putpalette([i // 3 for i in range(768)])
    indexed.save(label[1])
    Image.open(label[2]).save(label[2].with_suffix(".jpg"))
    label[2].unlink()
    found = "\n".join(problems(own_data))
    assert f"{label[0]}: label maps must have one integer" in found and "RGB" in found
    assert f"{label[1]}: a label map with a palette" in found
    assert f"{label[2].with_suffix('.jpg')}: the label map is a JPEG" in found
    assert found.count("\n") == 2


def test_swapped_instance_maps_are_found(own_data):
    a, b, *_ = files(own_data, "inst")
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second), b.write_bytes(first)
    found = problems(own_data)
    assert len(found) == 2 and all("another class" in problem for problem in found)
    wrong = np.where(read(a) < 1000, read(a), read(a) // 1000) != read(files(own_data, "label")[0])
    assert f"{a}: {wrong.sum()} pixels" in found[0]


def test_ids_of_another_scheme_are_a_note(own_data):
    for path, label in zip(files(own_data, "inst"), files(own_data, "label")):
        ids = np.unique(read(path), return_inverse=True)[1].reshape(32, 64).astype(np.uint16)
        ids[0, 0] = 1000 * int(read(label)[0, 0])  # a number of Cityscapes' scheme by chance
        save_png(path, ids)
    report = check(options(own_data))
    assert report.problems == [] and "scheme of their own" in report.notes[0]
    assert sum(report.scenes[0].instances.values()) == len(
        np.unique(read(files(own_data, "inst")[0]))
    )


def test_a_background_of_zeros_is_not_taken_for_a_scheme(own_data):
    """0 around objects that are numbered from 1 on, in both maps."""
    for number, path in enumerate(files(own_data, "label")):
        label, inst = (np.zeros((32, 64), kind) for kind in (np.uint8, np.uint16))
        label[4:12, 4:12], inst[4:12, 4:12] = 2 + number % 2, number + 1
        save_png(path, label)
        save_png(files(own_data, "inst")[number], inst)
    report = check(options(own_data))
    assert report.problems == [] and "scheme of their own" in report.notes[0]


def test_numbered_objects_of_one_class_are_not_taken_for_a_scheme(own_data):
    """Number 1 is class 1 by chance, and a scene without objects has only zeros."""
    for scene, path in enumerate(files(own_data, "label")):
        label, inst = (np.zeros((32, 64), kind) for kind in (np.uint8, np.uint16))
        label[:4] = 2  # another class of stuff
        for number in range(1, (0, 1, 1, 3)[scene] + 1):
            box = np.s_[8:16, 12 * number : 12 * number + 8]
            label[box], inst[box] = 1, number
        save_png(path, label)
        save_png(files(own_data, "inst")[scene], inst)
    report = check(options(own_data))
    assert report.problems == [] and "scheme of their own" in report.notes[0]
    for path in files(own_data, "inst"):
        save_png(path, np.zeros((32, 64), np.uint16))
    assert len([p for p in problems(own_data) if "every pixel is instance 0" in p]) == 4
    some = problems(own_data, "--max_dataset_size", 2)
    assert len([p for p in some if "every pixel is instance 0" in p]) == 2


@needs("imagecodecs", "requirements-images.txt")
def test_a_damaged_first_file_causes_no_other_problems(own_data, call, capsys):
    for number, path in enumerate(files(own_data, "img")):
        save_png(path, np.full((32, 64), 1000 * number, np.uint16))
        (own_data / "train_cond").mkdir(exist_ok=True)
        np.save(own_data / "train_cond" / f"{path.stem}.npy", np.zeros((32, 64), np.float32))
    bad = files(own_data, "img")[0]
    bad.write_bytes(bad.read_bytes()[:60])
    flags = [*FLAGS, "--dataroot", own_data, "--output_nc", 1, "--cond_nc", 1]
    assert call(check_main, *flags, "--cond_range", "0,80") == 1
    output = capsys.readouterr().out
    assert f"problem: {bad}" in output and output.endswith("1 problems\n")


def test_a_missing_range_causes_no_other_problems(own_data, call, capsys):
    for name in ("A", "B", "cond"):
        (own_data / f"train_{name}").mkdir()
        np.save(own_data / f"train_{name}" / "x.npy", np.zeros((32, 64, 2), np.float32))
    flags = [*FLAGS, "--dataroot", own_data, "--label_nc", 0, "--no_instance", "--cond_nc", 2]
    flags += ["--input_nc", 2, "--output_nc", 2, "--output_range", "-1,1"]
    assert call(check_main, *flags) == 1
    output = capsys.readouterr().out
    assert "give --input_range" in output and "give --cond_range" in output
    assert output.endswith("2 problems\n")


@needs("tifffile", "requirements-images.txt")
def test_rotated_photographs_of_any_channels(own_data):
    rotated = Image.Exif()
    rotated[274] = 3
    grey, tiff, *_ = files(own_data, "img")
    turned = tiff.with_suffix(".tif")
    Image.open(tiff).save(turned, exif=rotated)  # Pillow would rotate it, tifffile not
    tiff.unlink()
    for flags in ([], ["--output_nc", 1, "--output_type", "uint8"]):
        (found,) = (line for line in problems(own_data, *flags) if turned.stem in line)
        assert "Orientation tag" in found
    Image.open(turned).save(turned)
    for path in (own_data / "train_img").iterdir():
        exif = {"exif": rotated} if path == grey else {}
        Image.open(path).convert("L").save(path.with_suffix(".jpg"), **exif)
        path.unlink()
    (found,) = problems(own_data, "--output_nc", 1, "--output_type", "uint8")
    assert "EXIF" in found and grey.stem in found


def test_weights_in_a_tiff_that_pillow_does_not_open(own_data):
    """They train, and the check finds no problem."""
    tifffile = pytest.importorskip("tifffile", reason="needs requirements-images.txt")
    pytest.importorskip("imagecodecs", reason="needs requirements-images.txt")
    (own_data / "train_weight").mkdir()
    for path in files(own_data, "img"):
        weights = np.ones((32, 64), np.float32)
        path = own_data / "train_weight" / f"{path.stem}.tif"
        tifffile.imwrite(path, weights, compression="lerc")
    (own_data / "train_weight").rename(own_data / "weights")
    assert "--loss_weights reads its maps there" in problems(own_data, "--loss_weights")[0]
    (own_data / "weights").rename(own_data / "train_weight")
    assert problems(own_data, "--loss_weights") == []
    assert create_dataset(options(own_data, "--loss_weights"), training=True)[0][
        "loss_weight"
    ].all()


def test_one_name_of_two_photographs_is_reported_once(own_data, call, capsys):
    first = files(own_data, "img")[0]
    shown = first.with_name(first.name.replace("_leftImg8bit", "_A"))
    shown.write_bytes(first.read_bytes())
    assert call(check_main, *FLAGS, "--dataroot", own_data) == 1
    output = capsys.readouterr().out
    assert "endings like _A, _label and .png do" in output and output.endswith("1 problems\n")


def test_small_images_features_folders_and_rotated_photographs(own_data, tmp_path):
    assert "64x32 when scaled and cropped" in check(options(own_data), 33).problems[0]
    assert not check(options(own_data), 32).problems
    assert any("train_feat" in p for p in problems(own_data, "--load_features", "--label_feat"))
    for path in files(own_data, "label"):
        save_png(own_data / "train_feat" / path.name, np.zeros((16, 16, 3), np.uint8))
    found = problems(own_data, "--load_features", "--label_feat")
    assert len(found) == 4 and all("is 16x16" in problem for problem in found)
    image = files(own_data, "img")[0]
    rotated = Image.Exif()
    rotated[274] = 6
    Image.open(image).save(image.with_suffix(".jpg"), exif=rotated)
    image.unlink()
    assert [p for p in problems(own_data) if "EXIF" in p and str(image.with_suffix(".jpg")) in p]
    image.with_suffix(".jpg").unlink()
    save_png(image, np.zeros((32, 64, 3), np.uint8))
    Image.open(image).save(image, exif=b"Exif\0\0damaged")
    assert problems(own_data) == []  # which nothing reads


def test_linked_folders_are_read(own_data):
    for kind in ("label", "inst", "img"):
        folder = own_data / f"train_{kind}"
        (own_data / f"elsewhere_{kind}").mkdir()
        first = files(own_data, kind)[0]
        first.rename(own_data / f"elsewhere_{kind}" / first.name)
        (folder / "city").symlink_to(own_data / f"elsewhere_{kind}")
        (folder / "circle").symlink_to(folder)
    report = check(options(own_data))
    assert report.problems == [] and len(report.scenes) == 4


def test_the_first_scenes_are_those_that_training_takes(own_data):
    """By file name, where "a1_label" comes before "a_label": not by scene, "a" before "a1"."""
    for kind in ("label", "inst", "img"):
        for path, name in zip(files(own_data, kind), ("a_label.png", "a1_label.png")):
            path.rename(path.with_name(name))
    save_png(own_data / "train_label" / "a1_label.png", np.full((32, 64), 200, np.uint8))
    assert "a1_label.png: label 200" in problems(own_data, "--max_dataset_size", 1)[0]


def test_images_of_several_sizes_cannot_share_a_batch(own_data):
    for kind in ("label", "inst", "img"):
        path = files(own_data, kind)[0]
        Image.open(path).crop((0, 0, 64, 20)).save(path)
    report = check(options(own_data))
    assert report.problems == [] and "2 sizes" in report.notes[0]
    assert "2 sizes" in problems(own_data, "--batchSize", 2)[0]
    assert "only 4 scenes" in problems(own_data, "--batchSize", 5)[0]
    crop = ["--resize_or_crop", "crop", "--fineSize", 16]
    assert problems(own_data, "--batchSize", 2, *crop) == []


def test_images_to_images(tmp_path):
    for kind in "AB":
        save_png(tmp_path / f"train_{kind}" / "x.png", np.zeros((32, 64, 3), np.uint8))
    assert problems(tmp_path, "--label_nc", 0, "--no_instance") == []
    save_png(tmp_path / "train_B" / "y.png", np.zeros((32, 64, 3), np.uint8))
    assert "no input for the image" in problems(tmp_path, "--label_nc", 0, "--no_instance")[0]


def test_the_command_and_its_exit_status(own_data, refused):
    flags = [*FLAGS, "--nThreads", 2, "--dataroot", own_data]
    run_ok("-m", "data.check", *flags)
    files(own_data, "inst")[0].unlink()
    done = run_command("-m", "data.check", *flags)
    assert done.returncode == 1 and "1 problems" in done.stdout and not done.stderr
    assert "no such folder" in refused(check_main, "--dataroot", "nowhere")
    assert "did you mean" in refused(check_main, "--datarot", "nowhere")
    output = one_line(run_command("-m", "data.check", "--ngf", "many"))
    assert "python -m data.check --help lists the flags" in output


@pytest.mark.skipif(not (SHARED / "cityscapes_sample").is_dir(), reason="no sample of Cityscapes")
def test_real_cityscapes_has_no_problems():
    report = check(options(SHARED / "cityscapes_sample", "--loadSize", 1024))
    assert report.problems == report.notes == []
    assert summary(report, options(SHARED / "cityscapes_sample"))[1] == "sizes: 2048x1024 (8)"


# convert_labels -----------------------------------------------------------------------------------


@pytest.fixture
def convert(call):
    """convert(source, out, flags): the command in this process."""

    def converted(source: Path, out: Path, *flags: object) -> object:
        return call(convert_main, "--input", source, "--output", out, "--workers", 0, *flags)

    return converted


def test_convert_leaves_no_maps_of_two_palettes(convert, tmp_path):
    """Of the same colours in another order, ended by a colour that is not among them."""
    for k, colour in enumerate(((9, 0, 0), (0, 9, 0), (0, 0, 9))):
        save_png(tmp_path / "in" / f"{k}.png", np.full((2, 2, 3), colour, np.uint8))
    convert(tmp_path / "in", tmp_path / "out", "--palette", "auto")
    (tmp_path / "palette.txt").write_text("0 9 0\n9 0 0\n")
    with pytest.raises(UserError, match="colours that are not in the palette"):
        convert(tmp_path / "in", tmp_path / "out", "--palette", tmp_path / "palette.txt")
    left = {path.name: int(read(path)[0, 0]) for path in (tmp_path / "out").glob("*.png")}
    assert left in ({"0.png": 1, "1.png": 0}, {"0.png": 1}, {})


def test_255_is_counted_as_a_class(own_data):
    """No class, or a mask of 0 and 255: with auto either would make 256 classes, mostly unused."""
    auto = ["--label_nc", "auto"]
    assert not any("255" in line for line in notes(own_data, *auto))
    for path in files(own_data, "label"):
        save_png(path, np.where(read(path) > 20, 255, read(path)).astype(np.uint8))
    (note,) = [line for line in notes(own_data, *auto) if "255" in line]
    assert "--ignore_label 255" in note and "data.convert_labels" in note
    assert not any("255" in line for line in notes(own_data, *auto, "--ignore_label", 255))


def test_instance_ids_in_colours(own_data):
    """As in COCO's panoptic maps: data.convert_labels would number the colours of all files."""
    path = files(own_data, "inst")[0]
    ids = read(path).astype(int)
    save_png(path, np.stack([ids % 256, ids // 256, ids // 65536], 2).astype(np.uint8))
    (found,) = problems(own_data)
    assert f"{path}: instance maps must have one integer" in found
    assert "number its colours" in found and "convert_labels" not in found


def test_classes_in_three_equal_channels(own_data, convert, tmp_path, capsys):
    """They are not colours: neither the check nor the conversion takes them for some."""
    path = files(own_data, "label")[0]
    image = Image.open(path).convert("RGB")
    image.save(path)
    (found,) = problems(own_data)
    assert str(path) in found and "its channels are equal: save one of them" in found
    save_png(tmp_path / "in" / "1.png", np.asarray(image))
    with pytest.raises(UserError, match="if they are the classes themselves"):
        convert(tmp_path / "in", tmp_path / "out")
    convert(tmp_path / "in", tmp_path / "out", "--palette", "auto")
    assert "all of them are grey: if they are the classes" in capsys.readouterr().out


def test_convert_cityscapes_colours(tmp_path):
    label = np.random.default_rng(0).integers(7, 34, (8, 9), np.uint8)
    save_png(tmp_path / "in" / "a b" / "é'.png", colour_label(label, 35))
    done = run_command(
        *("-m", "data.convert_labels", "--input", tmp_path / "in", "--output", tmp_path / "out")
    )
    assert done.returncode == 0 and "--label_nc 35" in done.stdout, done.stderr
    made = read_integers(tmp_path / "out" / "a b" / "é'.png", "label")
    label[label == 18] = 17  # polegroup has the colour of pole
    assert made.mode == "L" and np.array_equal(np.asarray(made), label)


@pytest.mark.parametrize(
    "flags", [("--palette", "auto", "--nearest"), ("--from_indexed", "--palette", "voc")]
)
def test_convert_refuses_flags_that_would_be_ignored(flags, convert, tmp_path):
    save_png(tmp_path / "in" / "1.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"--nearest needs|--from_indexed takes"):
        convert(tmp_path / "in", tmp_path / "out", *flags)


def test_convert_to_the_parent_folder(convert, tmp_path):
    save_png(tmp_path / "in" / "1.png", np.zeros((2, 2, 3), np.uint8))
    assert convert(tmp_path / "in", tmp_path, "--palette", "auto") == 0
    assert read(tmp_path / "1.png").tolist() == [[0, 0], [0, 0]]


def test_convert_where_a_file_has_the_name_of_a_folder(refused, tmp_path):
    save_png(tmp_path / "in" / "city" / "1.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "city").write_text("")
    flags = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 0]
    assert f"{tmp_path / 'out' / 'city'}: File exists" in refused(convert_main, *flags)


def test_convert_auto_lists_colours_in_order(convert, tmp_path, capsys):
    first = np.array([[[9, 9, 9], [0, 0, 0]], [[9, 9, 9], [255, 0, 1]]], np.uint8)
    second = np.array([[[4, 5, 6], [0, 0, 0]]], np.uint8)
    save_png(tmp_path / "in" / "1.png", first)
    save_png(tmp_path / "in" / "2.png", second)
    assert convert(tmp_path / "in", tmp_path / "out", "--palette", "auto") == 0
    assert "--label_nc 4" in capsys.readouterr().out
    assert read(tmp_path / "out" / "1.png").tolist() == [[0, 1], [0, 2]]
    assert read(tmp_path / "out" / "2.png").tolist() == [[3, 1]]
    listing = tmp_path / "out" / "palette.txt"
    assert listing.read_text() == "9 9 9\n0 0 0\n255 0 1\n4 5 6\n"
    convert(tmp_path / "in", tmp_path / "again", "--palette", listing)
    assert np.array_equal(read(tmp_path / "again" / "2.png"), read(tmp_path / "out" / "2.png"))
    results = tmp_path / "in" / "labels"  # not taken as input the second time
    for _ in range(2):
        convert(tmp_path / "in", results, "--palette", listing)
        assert sorted(path.name for path in results.iterdir()) == ["1.png", "2.png"]


def test_convert_unknown_colours_and_jpeg(convert, refused, tmp_path):
    colours = tmp_path / "colours.txt"
    text = "10, 10, 10\n\n200 30 40  # a name\n"
    colours.write_text(text, encoding="utf-8-sig", newline="\r\n")  # as Windows writes it
    label = np.zeros((16, 16), np.uint8)
    label[:, 8:] = 1
    image = np.array([[10, 10, 10], [200, 30, 40]], np.uint8)[label]
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "x.jpg")
    flags = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 0]
    message = refused(convert_main, *flags, "--palette", colours)
    assert "x.jpg" in message and "--nearest" in message
    assert "JPEG" in refused(convert_main, *flags, "--palette", "auto")
    assert "nowhere" in refused(convert_main, *flags, "--palette", "nowhere.txt")
    assert convert(tmp_path / "in", tmp_path / "out", "--palette", colours, "--nearest") == 0
    assert np.array_equal(read(tmp_path / "out" / "x.png"), label)


def test_convert_indexed_keeps_the_indices(convert, refused, tmp_path, capsys):
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(label)
    image.putpalette([(7 * i) % 256 for i in range(768)])
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "x.png")
    assert convert(tmp_path / "in", tmp_path / "out", "--from_indexed") == 0
    assert "--label_nc 12" in capsys.readouterr().out
    made = Image.open(tmp_path / "out" / "x.png")
    assert made.mode == "L" and np.array_equal(np.asarray(made), label)
    flags = ["--input", tmp_path / "out", "--output", tmp_path / "b", "--workers", 0]
    assert "no palette" in refused(convert_main, *flags, "--from_indexed")


@pytest.mark.parametrize("flags", [["--palette", "voc"], ["--from_indexed"]])
def test_convert_reports_pixels_without_a_class(flags, convert, tmp_path, capsys):
    label = np.array([[0, 15], [3, 255]], np.uint8)
    image = Image.fromarray(label)
    image.putpalette(read_palette("voc").flatten().tolist())
    (tmp_path / "in").mkdir()
    (image if flags == ["--from_indexed"] else image.convert("RGB")).save(tmp_path / "in" / "x.png")
    assert convert(tmp_path / "in", tmp_path / "out", *flags) == 0
    assert "next: train with --label_nc 16 --ignore_label 255" in capsys.readouterr().out
    assert np.array_equal(read(tmp_path / "out" / "x.png"), label)


def test_to_labels_beyond_256_classes():
    colours = np.stack([np.arange(300) // 256, np.arange(300) % 256, np.zeros(300)], 1)
    labels = to_labels(colours.astype(np.uint8)[None], colours.astype(np.uint8), False, Path("x"))
    assert labels.dtype == np.uint16 and np.array_equal(labels[0], np.arange(300))


def test_convert_refuses_bad_requests(refused, tmp_path):
    flags = ["--input", tmp_path, "--output", tmp_path / "out"]
    assert "holds no images" in refused(convert_main, *flags)
    assert "--workers: '-1'" in refused(convert_main, *flags, "--workers", -1)
    assert "a folder other than" in refused(convert_main, "--input", tmp_path, "--output", tmp_path)
