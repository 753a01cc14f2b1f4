"""From files to tensors: transforms against plain computations, pairing, exact ids, bad files."""

import argparse
import multiprocessing
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from conftest import save_png
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.create import count_labels, create_dataset, resolve_data_flags
from data.files import pairing_problems
from data.loader import EpochSampler, Loader, own_batches
from data.values import bytes_to_float
from options.train_options import TrainOptions
from util.errors import UserError

WIDTH, HEIGHT = 48, 30
FINE = 16
FOLDERS = {
    **{"label": "train_label", "inst": "train_inst", "image": "train_img", "feat": "train_feat"},
}


def write_scene(root: Path, stem: str, size: tuple = (WIDTH, HEIGHT), seed: int = 0) -> None:
    """A scene in which every pixel encodes its position: label column, inst 1000*row + column."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    photo = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    save_png(root / "train_label" / f"{stem}_gtFine_labelIds.png", (columns % 35).astype(np.uint8))
    inst = (1000 * rows + columns).astype(np.uint16)
    save_png(root / "train_inst" / f"{stem}_gtFine_instanceIds.png", inst)
    save_png(root / "train_img" / f"{stem}_leftImg8bit.png", photo)
    feat = np.stack([rows % 256, columns % 256, (rows + columns) % 256], 2).astype(np.uint8)
    save_png(root / "train_feat" / f"{stem}_gtFine_labelIds.png", feat)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for i in range(4):
        write_scene(root, f"aachen_{i:06d}_000019", seed=i)
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two scenes that a test may damage."""
    write_scene(tmp_path, "a")
    write_scene(tmp_path, "b", seed=1)
    return tmp_path


def read(root: Path, mode: str = "none", load_size: int = 32, flip: bool = False, **options):
    return AlignedDataset(root, "train", 35, Geometry(mode, load_size, FINE, flip), **options)


def bad_item(root: Path, **options) -> str:
    """The one line about the first item that cannot be read."""
    dataset = read(root, **options)
    errors = [item for item in map(dataset.__getitem__, range(len(dataset))) if item is not None]
    errors = [str(item) for item in errors if isinstance(item, UserError)]
    assert errors and "\n" not in errors[0]
    return errors[0]


def bad_dataset(root: Path, **options) -> str:
    """The one line in which a whole data set is refused."""
    with pytest.raises(UserError) as error:
        read(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Transforms ------------------------------------------------------------------------------------

SCALED = {
    "none": (WIDTH, HEIGHT),
    "crop": (WIDTH, HEIGHT),
    "resize_and_crop": (32, 32),
    "scale_width": (32, 32 * HEIGHT // WIDTH),
    "scale_width_and_crop": (32, 32 * HEIGHT // WIDTH),
}


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixel whose area holds the centre of the new one."""
    height, width = array.shape[:2]
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    return array[rows][:, columns]


def cubic(array: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Bicubic scaling of one axis, a = -0.5, the kernel widened where images shrink."""
    old = array.shape[axis]
    stretch = max(1.0, old / size)
    weights = np.zeros((size, old))
    for i in range(size):
        centre = (i + 0.5) * old / size
        x = np.abs((np.arange(old) + 0.5 - centre) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights[i] = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, array.astype(float), (1, axis)), 0, axis)


def smooth(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    for axis, length in ((1, size[0]), (0, size[1])):
        if array.shape[axis] != length:  # an axis that keeps its size is not filtered
            array = np.clip(np.round(cubic(array, length, axis)), 0, 255)
    return array


def as_image(tensor: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) in grey levels."""
    assert tensor.dtype == torch.float32
    return (tensor.numpy().transpose(1, 2, 0) + 1) * 127.5


def placements(item: dict, whole: dict[str, np.ndarray]) -> list[tuple[int, int, bool]]:
    """All (x, y, flip) at which all of an item's maps match the whole ones."""
    maps = {kind: item[kind][0].numpy() for kind in ("label", "inst")}
    maps |= {kind: as_image(item[kind]) for kind in ("image", "feat")}
    height, width = maps["label"].shape
    found = []
    for y in range(whole["label"].shape[0] - height + 1):
        for x in range(whole["label"].shape[1] - width + 1):
            for flip in (False, True):
                across = slice(None, None, -1 if flip else 1)
                cuts = {k: m[y : y + height, x : x + width][:, across] for k, m in whole.items()}
                exact = all(np.array_equal(cuts[k], maps[k]) for k in ("label", "inst"))
                # 8-bit fixed point may differ from ours by a grey level
                if exact and all(np.abs(cuts[k] - maps[k]).max() < 1.01 for k in maps):
                    found.append((x, y, flip))
    return found


@pytest.mark.parametrize("mode", SCALED)
def test_every_mode_equals_plain_computations(scenes: Path, mode: str) -> None:
    size = SCALED[mode]
    whole = {
        kind: np.asarray(Image.open(sorted((scenes / folder).iterdir())[0]))
        for kind, folder in FOLDERS.items()
    }
    whole = {k: (smooth if k == "image" else nearest)(m, size) for k, m in whole.items()}
    dataset = read(scenes, mode, 32, flip=True, load_features=True)
    draws = [placements(dataset[epoch, 0], whole) for epoch in range(12)]
    assert all(len(places) == 1 for places in draws)
    places = {place for (place,) in draws}
    assert {flip for _, _, flip in places} == {False, True}
    corners = {(x, y) for x, y, _ in places}
    final = (FINE, FINE) if "crop" in mode else size
    assert dataset[0]["label"].shape == (1, *final[::-1])
    assert len(corners) > 3 if "crop" in mode else corners == {(0, 0)}
    item = dataset[0]
    assert (item["label"].dtype, item["inst"].dtype) == (torch.uint8, torch.int32)
    assert item["image"].min() >= -1 and item["image"].max() <= 1
    assert item["path"].endswith("train_label/aachen_000000_000019_gtFine_labelIds.png")


def test_maps_of_one_scene_agree_where_scaling_is_a_tie(tmp_path: Path) -> None:
    """At 4:3 every third centre lies between two pixels; Pillow's choice there depends on the
    image's mode, and an instance would end a pixel away from its class."""
    write_scene(tmp_path, "a", size=(64, 40))
    item = read(tmp_path, "scale_width", load_size=48, load_features=True)[0]
    rows, columns = item["inst"][0] // 1000, item["inst"][0] % 1000
    assert torch.equal(item["label"][0].int(), columns % 35)
    levels = ((item["feat"] + 1) * 127.5).round().int()
    assert torch.equal(levels[:2], torch.stack([rows, columns]))


def test_enlarging_equals_plain_computations(scenes: Path) -> None:
    item = read(scenes, "scale_width", 96)[1]
    photo, label, inst = (
        np.asarray(Image.open(sorted((scenes / FOLDERS[kind]).iterdir())[1]))
        for kind in ("image", "label", "inst")
    )
    np.testing.assert_allclose(as_image(item["image"]), smooth(photo, (96, 60)), atol=1.01)
    np.testing.assert_array_equal(item["label"][0], nearest(label, (96, 60)))
    np.testing.assert_array_equal(item["inst"][0], nearest(inst, (96, 60)))


def test_unscaled_photographs_are_exact(scenes: Path) -> None:
    photo = np.asarray(Image.open(sorted((scenes / "train_img").iterdir())[0]))
    item = read(scenes)[0]
    expected = photo.transpose(2, 0, 1).astype(np.float64) / 255 * 2 - 1
    np.testing.assert_allclose(item["image"], expected, atol=1e-6)


def test_no_flip_by_default(scenes: Path) -> None:
    dataset = read(scenes)
    assert all(torch.equal(dataset[e, 0]["label"], dataset[0]["label"]) for e in range(10))


@pytest.mark.parametrize("size", [(2048, 1024), (1000, 333), (7, 5)])
def test_scaled_sizes(size: tuple[int, int]) -> None:
    width, height = size
    assert Geometry("scale_width", 512).scaled(size) == (512, int(512 * height / width))
    assert Geometry("resize_and_crop", 512, 256).final(size) == (256, 256)
    assert Geometry("none", 512).final(size) == size
    assert Geometry("scale_width", 1).scaled((100, 3)) == (1, 1)


def test_crops_reach_every_border() -> None:
    geometry = Geometry("crop", fine_size=4)
    corners = {geometry.sample((6, 5), random.Random(seed))[0] for seed in range(100)}
    assert corners == {(x, y) for x in range(3) for y in range(2)}


def test_has_one_size(own: Path) -> None:
    assert read(own).has_one_size
    write_scene(own, "c", (WIDTH, HEIGHT + 2))
    assert not read(own).has_one_size
    assert read(own, "crop").has_one_size


# Randomness ------------------------------------------------------------------------------------


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_randomness_depends_only_on_seed_epoch_and_index(scenes: Path) -> None:
    def make(seed: int) -> AlignedDataset:
        return read(scenes, "crop", flip=True, seed=seed)

    first, again, other = make(0), make(0), make(1)
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    items = {key: first[key] for key in keys}
    torch.manual_seed(99)
    np.random.seed(99)
    assert all(same(again[key], items[key]) for key in reversed(keys))  # in any order
    assert not all(same(other[key], items[key]) for key in keys)
    assert len({items[epoch, 0]["inst"][0, 0, 0].item() for epoch in range(3)}) > 1


def batches(dataset: AlignedDataset, workers: int, **options) -> list[dict]:
    loader = Loader(dataset, 2, shuffle=True, workers=workers, **options)
    return [batch for epoch in (1, 2) for batch in loader.epoch(epoch)]


def test_workers_make_no_difference(scenes: Path) -> None:
    dataset = read(scenes, "crop", flip=True)
    alone, helped = batches(dataset, 0), batches(dataset, 2)
    assert len(alone) == 4 and all(same(a, b) for a, b in zip(alone, helped))
    assert [a["path"] for a in alone[:2]] != [a["path"] for a in alone[2:]]  # epochs are shuffled


def test_there_are_no_more_workers_than_batches(scenes: Path) -> None:
    """--nThreads 1024 on a small data set would take minutes to start them."""
    before = multiprocessing.active_children()
    loader = Loader(read(scenes), 2, workers=5)
    next(loader.epoch(1))
    started = [one for one in multiprocessing.active_children() if one not in before]
    assert len(started) == len(loader) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_workers_are_forked_by_every_version_of_python(scenes: Path) -> None:
    """Those of a server, Python 3.14's default, would end with it on a scheduler's SIGTERM."""
    default, before = multiprocessing.get_start_method(True), multiprocessing.active_children()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loader = Loader(read(scenes), 2, workers=1)
        next(loader.epoch(1))
        started = [one for one in multiprocessing.active_children() if one not in before]
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert [type(one).__name__ for one in started] == ["ForkProcess"]


def test_an_epoch_may_begin_at_any_batch(scenes: Path) -> None:
    dataset = read(scenes, "crop", flip=True)
    loader = Loader(dataset, 1, shuffle=True)
    whole = list(loader.epoch(3))
    assert len(whole) == 4 and all(same(a, b) for a, b in zip(whole[2:], loader.epoch(3, 2)))
    assert sorted(path for batch in whole for path in batch["path"]) == [
        str(dataset.files["label"][scene]) for scene in dataset.scenes
    ]


def test_no_two_seeds_and_epochs_share_an_order() -> None:
    places = [(seed, epoch) for seed in (1, 2) for epoch in (1, 2)]
    samplers = [EpochSampler(32, 32, True, seed, 0, 1, epoch) for seed, epoch in places]
    assert len({tuple(order) for one in samplers for order in one.whole_batches()}) == 4


def test_name_order_and_partial_batches(scenes: Path) -> None:
    loader = Loader(read(scenes, max_size=3), 2)
    found = list(loader)
    assert len(loader) == 2
    assert [batch["pictures"] for batch in found] == [2, 1]
    assert [batch["label"].shape[0] for batch in found] == [2, 1]
    paths = [Path(path).name for batch in found for path in batch["path"]]
    assert paths == [f"aachen_{i:06d}_000019_gtFine_labelIds.png" for i in range(3)]


def test_scenes_are_in_the_order_of_their_file_names(tmp_path: Path) -> None:
    """As in the 2018 code: "a-1.png" before "a.png"."""
    for name in ("a.png", "a-1.png", "b.png"):
        save_png(tmp_path / "train_label" / name, np.zeros((4, 4), np.uint8))
        save_png(tmp_path / "train_img" / name, np.zeros((4, 4, 3), np.uint8))
    for folder in (".ipynb_checkpoints", "sub/.backup"):  # hidden: no scenes
        save_png(tmp_path / "train_label" / folder / "c.png", np.zeros((4, 4), np.uint8))
    dataset = read(tmp_path, use_instances=False)
    assert dataset.scenes == ["a-1", "a", "b"]


def test_without_workers_threads_read_ahead_a_little(scenes: Path) -> None:
    dataset = read(scenes)
    together, started, before = threading.Barrier(2), [], set(threading.enumerate())

    def maps(index: int) -> dict:
        started.append(index)
        if index < 2:
            together.wait(20)  # in vain if they are read one after the other
        return dataset.scaled_maps(index)

    dataset.read_maps = maps
    batches = Loader(dataset, 1).epoch(1)
    next(batches)
    batches.close()
    assert sorted(started)[:2] == [0, 1] and len(started) < 4
    assert set(threading.enumerate()) <= before


# Exact integers --------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_instance_ids_equal_those_of_the_file(own: Path, depth: type) -> None:
    ids = [0, 7, 128, 255] if depth == np.uint8 else [7, 26001, 32767, 32768, 33017, 65535]
    inst = np.random.default_rng(0).choice(ids, (HEIGHT, WIDTH)).astype(depth)
    save_png(own / "train_inst" / "a_gtFine_instanceIds.png", inst)
    for mode, expected in (("none", inst), ("scale_width", nearest(inst, (32, 20)))):
        item = read(own, mode)[0]
        assert item["inst"].dtype == torch.int32
        np.testing.assert_array_equal(item["inst"][0], expected)


def test_palette_indices_are_the_labels(own: Path) -> None:
    label = np.random.default_rng(0).integers(0, 35, (HEIGHT, WIDTH), np.uint8)
    image = Image.fromarray(label)
    image.putpalette(list(range(255, -1, -1)) * 3)
    assert image.mode == "P"
    image.save(own / "train_label" / "a_gtFine_labelIds.png")
    np.testing.assert_array_equal(read(own)[0]["label"][0], label)


def test_labels_above_255(own: Path) -> None:
    label = np.full((HEIGHT, WIDTH), 999, np.uint16)
    save_png(own / "train_label" / "a_gtFine_labelIds.png", label)
    item = AlignedDataset(own, "train", 1000, Geometry("none"))[0]
    assert item["label"].dtype == torch.int32 and (item["label"] == 999).all()


@pytest.mark.parametrize(
    "value, depth", [(255, np.uint8), (256, np.uint16), (300, np.uint16), (65535, np.uint16)]
)
def test_ignored_label_keeps_its_value(own: Path, value: int, depth: type) -> None:
    label = np.zeros((HEIGHT, WIDTH), depth)
    label[3:5, 7] = value
    save_png(own / "train_label" / "a_gtFine_labelIds.png", label)
    item = read(own, ignore_label=value)[0]
    np.testing.assert_array_equal(item["label"][0], label)
    assert f"label {value} (2 pixels)" in bad_item(own)


def test_automatic_label_count(own: Path) -> None:
    assert count_labels(own, "train") == 35
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[0, 0], label[1, 1] = 255, 40
    save_png(own / "train_label" / "b_gtFine_labelIds.png", label)
    assert count_labels(own, "train") == 256
    assert count_labels(own, "train", ignore_label=255) == 41


# Folders and pairs -----------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [("train_A", "train_B"), ("trainA", "trainB")])
def test_images_to_images(tmp_path: Path, folders: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    drawing, photo = rng.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    save_png(tmp_path / folders[0] / "cat_A.png", drawing)
    save_png(tmp_path / folders[1] / "cat_B.png", photo)
    geometry = Geometry("scale_width", 32)
    item = AlignedDataset(tmp_path, "train", 0, geometry, use_instances=False)[0]
    assert set(item) == {"label", "image", "path"}
    assert item["label"].shape == (3, 20, 32)
    np.testing.assert_allclose(as_image(item["label"]), smooth(drawing, (32, 20)), atol=1.01)
    np.testing.assert_allclose(as_image(item["image"]), smooth(photo, (32, 20)), atol=1.01)


@pytest.mark.parametrize("mode", ["scale_width_and_crop", "none"])
def test_photographs_as_bytes(mode: str, own: Path) -> None:
    """They are sent to GPUs as bytes, all else being equal; with --augment they are floats."""
    floats, as_bytes = read(own, mode=mode)[0], read(own, mode=mode, image_bytes=True)[0]
    assert as_bytes["image"].dtype == torch.uint8
    as_bytes["image"] = bytes_to_float(as_bytes["image"])
    assert all(torch.equal(as_bytes[kind], floats[kind]) for kind in ("label", "inst", "image"))
    flags = f"--dataroot {own} --label_nc 35".split()
    for more, dtype in (([], torch.uint8), (["--augment", "flip_v"], torch.float32)):
        opt = TrainOptions().parse([*flags, *more, "--gpu_ids", "-1"])
        opt.gpu_ids = [0]
        resolve_data_flags(opt)
        assert create_dataset(opt, training=True)[0]["image"].dtype == dtype
        assert create_dataset(opt, training=False)[0]["image"].dtype == torch.float32


def test_instances_of_input_images_are_not_interpolated(tmp_path: Path) -> None:
    inst = np.random.default_rng(0).choice([1, 26001], (HEIGHT, WIDTH)).astype(np.uint16)
    for folder in ("train_A", "train_B"):
        save_png(tmp_path / folder / "cat.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    save_png(tmp_path / "train_inst" / "cat.png", inst)
    item = AlignedDataset(tmp_path, "train", 0, Geometry("scale_width", 32))[0]
    np.testing.assert_array_equal(item["inst"][0], nearest(inst, (32, 20)))


def test_only_what_is_asked_for_is_read(scenes: Path) -> None:
    assert set(read(scenes)[0]) == {"label", "inst", "image", "path"}
    assert set(read(scenes, use_instances=False)[0]) == {"label", "image", "path"}
    assert set(read(scenes, load_photos=False)[0]) == {"label", "inst", "path"}


def test_max_size_takes_the_first_by_name(scenes: Path) -> None:
    assert read(scenes, max_size=2).scenes == ["aachen_000000_000019", "aachen_000001_000019"]
    assert len(read(scenes, max_size=99)) == 4


def test_files_are_paired_by_name_not_by_order(tmp_path: Path) -> None:
    for stem in ("x", "x_1", "y"):  # sorted positions would pair x_img with x_1_label
        for ending in ("label", "inst", "img"):
            shape = (4, 8, 3) if ending == "img" else (4, 8)
            save_png(tmp_path / f"train_{ending}" / f"{stem}_{ending}.png", np.zeros(shape, "u1"))
    dataset = read(tmp_path)
    assert dataset.scenes == ["x_1", "x", "y"]  # as the 2018 code sorts the files
    for kind, ending in (("label", "label"), ("inst", "inst"), ("image", "img")):
        names = [dataset.files[kind][scene].name for scene in dataset.scenes]
        assert names == [f"x_1_{ending}.png", f"x_{ending}.png", f"y_{ending}.png"]


def test_names_are_paired_in_any_unicode_form(tmp_path: Path) -> None:
    """As one character, or as macOS does: a letter and its accent."""
    write_scene(tmp_path, "z\u00fcrich_000001_000019")
    for path in (tmp_path / "train_label").iterdir():
        path.rename(path.with_name(path.name.replace("\u00fc", "u\u0308")))
    assert read(tmp_path).scenes == ["z\u00fcrich_000001_000019"]


def test_subfolders_and_other_files(tmp_path: Path) -> None:
    write_scene(tmp_path, "ulm/ulm_000001_000019")
    write_scene(tmp_path, "bonn/ulm_000001_000019")
    (tmp_path / "train_img" / "readme.txt").write_text("notes")
    (tmp_path / "train_img" / ".hidden.png").write_text("")
    assert read(tmp_path).scenes == ["bonn/ulm_000001_000019", "ulm/ulm_000001_000019"]


@pytest.mark.parametrize("kind", ["label", "inst", "img"])
def test_missing_partners_are_all_named(own: Path, kind: str) -> None:
    for path in (own / f"train_{kind}").iterdir():
        if path.name.startswith("b"):
            path.rename(path.with_name(path.name.replace("b", "c", 1)))
    line = bad_dataset(own)
    missing = {"img": "image"}.get(kind, kind)
    others = {"label": "inst"}.get(kind, "label")
    assert f"no {missing} for the {others} {own / f'train_{others}'}" in line  # of b
    assert f"for the {missing} {own / f'train_{kind}'}" in line  # of c


def test_every_mismatch_is_listed() -> None:
    label = {"a": Path("a_label.png"), "b": Path("b_label.png")}
    image = {"b": Path("b.jpg"), "c": Path("c.jpg")}
    assert pairing_problems({"label": label, "image": image}, label_nc=35) == [
        "no image for the label a_label.png",
        "no label for the image c.jpg",
    ]


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def twice(folder: Path) -> None:
    path = next(folder.iterdir())
    Image.open(path).save(folder / (path.name.split("_")[0] + "_label.png"))


FOLDER_ERRORS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no root": (lambda root: root.rename(root.with_name("x")), ["--dataroot", "no such folder"]),
    "no folder": (lambda root: (root / "train_inst").rename(root / "inst"), ["train_inst"]),
    "no folder of this phase": (
        lambda root: (root / "train_label").rename(root / "val_label"),
        ["no folder train_label", "it holds val_label (chosen by --phase)"],
    ),
    "no images": (lambda root: remove(root / "train_label"), ["train_label", "no images"]),
    "two files of a scene": (
        lambda root: twice(root / "train_label"),
        ["_label.png", "remove one"],
    ),
    "folder named like an image": (
        lambda root: (root / "train_img" / "d.png").mkdir(),
        ["d.png", "not a file"],
    ),
}


@pytest.mark.parametrize("damage, named", FOLDER_ERRORS.values(), ids=FOLDER_ERRORS)
def test_wrong_folders(own: Path, damage: Callable, named: list[str]) -> None:
    damage(own)
    line = bad_dataset(own)
    assert all(word in line for word in named)


# Wrong files -----------------------------------------------------------------------------------


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def as_rgb(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def as_jpeg(path: Path) -> None:
    Image.open(path).convert("L").save(path.with_suffix(".jpg"), quality=60)
    path.unlink()


FILE_ERRORS = {
    "truncated label": ("label", cut_off, ["cannot be read"]),
    "truncated instances": ("inst", cut_off, ["cannot be read"]),
    "truncated photograph": ("img", cut_off, ["cannot be read"]),
    "RGB label": ("label", as_rgb, ["RGB", "one integer"]),
    "RGB instances": ("inst", as_rgb, ["RGB", "one integer"]),
    "JPEG label": ("label", as_jpeg, ["JPEG", "PNG"]),
}


@pytest.mark.parametrize("kind, damage, named", FILE_ERRORS.values(), ids=FILE_ERRORS)
def test_wrong_files(own: Path, kind: str, damage: Callable, named: list[str]) -> None:
    path = next(p for p in (own / f"train_{kind}").iterdir() if p.name.startswith("b"))
    damage(path)
    line = bad_item(own)
    assert str(path.with_suffix("")) in line and all(word in line for word in named)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_raises_what_a_worker_found(own: Path, workers: int) -> None:
    path = own / "train_img" / "b_leftImg8bit.png"
    cut_off(path)
    line = ""
    try:
        list(Loader(read(own), 2, workers=workers))
    except UserError as error:  # pytest.raises would keep the loader and its worker alive
        line = str(error)
    assert str(path) in line and "\n" not in line


def test_ctrl_c_at_the_end_of_reading_is_obeyed(own: Path, monkeypatch) -> None:
    """An interrupt in a generator that is dropped before its end would be ignored."""

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **how: bool) -> NoReturn:
            super().shutdown(**how)
            raise KeyboardInterrupt

    monkeypatch.setattr("data.loader.thread_pool", Pool)
    flags = argparse.Namespace(nThreads=0, gpu_ids=[])
    with pytest.raises(KeyboardInterrupt):
        list(own_batches(read(own), flags, "reading"))


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_files_without_a_header_are_refused_at_once(own: Path, content: bytes) -> None:
    path = own / "train_img" / "b_leftImg8bit.png"
    path.write_bytes(content)
    assert str(path) in bad_dataset(own)


@pytest.mark.parametrize("mode", ["none", "scale_width"])
def test_labels_without_a_class_are_counted(own: Path, mode: str) -> None:
    path = own / "train_label" / "b_gtFine_labelIds.png"
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[:2, :3], label[9, 9] = 35, 255  # a lone pixel, which scaling may lose
    save_png(path, label)
    line = bad_item(own, mode=mode, load_size=8)
    assert str(path) in line and "35 (6 pixels)" in line and "255 (1 pixels)" in line
    assert "--label_nc 35" in line and "--label_nc 256" in line and "--ignore_label" in line


@pytest.mark.parametrize("kind", ["label", "inst", "img"])
def test_sizes_that_differ_in_a_scene(own: Path, kind: str) -> None:
    path = next(p for p in (own / f"train_{kind}").iterdir() if p.name.startswith("b"))
    with Image.open(path) as image:
        image.crop((0, 0, WIDTH, HEIGHT - 1)).save(path)
    line = bad_dataset(own)
    assert f"{path} is {WIDTH}x{HEIGHT - 1}" in line and f"is {WIDTH}x{HEIGHT}," in line + ","


def test_sizes_that_differ_in_a_batch(own: Path) -> None:
    write_scene(own, "c", (WIDTH, HEIGHT + 2))
    write_scene(own, "d", (WIDTH, HEIGHT + 2))
    assert len(list(Loader(read(own), 1))) == 4
    assert len(list(Loader(read(own), 2))) == 2  # a and b, then c and d
    with pytest.raises(UserError, match=f"{WIDTH}x{HEIGHT}.*{WIDTH}x{HEIGHT + 2}") as error:
        list(Loader(read(own), 3))
    assert "--batchSize 1" in str(error.value)
    assert len(list(Loader(read(own, "scale_width_and_crop", 32), 3))) == 2


def test_crop_larger_than_the_image(own: Path) -> None:
    write_scene(own, "c", (WIDTH, FINE - 1))
    line = bad_dataset(own, mode="crop")
    assert (
        "c_gtFine_labelIds.png" in line and f"{WIDTH}x{FINE - 1}" in line and "--fineSize" in line
    )


@pytest.mark.parametrize("mode", ["crop", "scale_width_and_crop"])
def test_an_image_no_larger_than_the_crop_stays_whole(own: Path, mode: str) -> None:
    """As in the reference."""
    geometry = Geometry(mode, load_size=WIDTH, fine_size=WIDTH)
    cropped = AlignedDataset(own, "train", 35, geometry)
    whole = read(own)[0]
    assert cropped.has_one_size and geometry.final((WIDTH, HEIGHT)) == (WIDTH, HEIGHT)
    assert all(torch.equal(cropped[0][kind], whole[kind]) for kind in ("label", "inst", "image"))


def test_feature_maps_of_another_feat_num(own: Path) -> None:
    line = bad_item(own, load_features=True, feat_num=1)
    assert "train_feat" in line and "--feat_num" in line
