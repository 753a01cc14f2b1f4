"""--cache: the same arrays as without, read once, rebuilt when anything changes, hard to break."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line, run_command
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.cache import DiskCache, RamCache, create_cache
from data.create import create_dataset, create_loader
from data.loader import Loader
from data.shared_memory import TOKEN, SharedMemory
from options.train_options import TrainOptions
from util.errors import UserError
from util.files import ABANDONED

SIZE = (48, 24)  # width, height
HALF = Geometry("scale_width", load_size=24)
KINDS = ("ram", "disk")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three scenes of noise with every kind of map, 16-bit instance ids above int16 among them."""
    rng = np.random.default_rng(5)
    width, height = SIZE
    for scene in range(3):
        maps = {
            "train_label": rng.integers(0, 35, (height, width), dtype=np.uint8),
            "train_inst": rng.integers(0, 65536, (height, width), dtype=np.uint16),
            "train_img": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            "train_A": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            "train_B": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            "train_feat": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        }
        for folder, array in maps.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"scene{scene}.png")
    return tmp_path


def dataset(root: Path, kind: str = "none", geometry: Geometry = HALF, label_nc: int = 35, **flags):
    scenes = AlignedDataset(root, "train", label_nc, geometry, **flags)
    scenes.read_maps = create_cache(kind, scenes, root / ".cache")
    return scenes


def assert_same(got: dict, expected: dict) -> None:
    assert got.keys() == expected.keys()
    for kind, value in expected.items():
        if isinstance(value, str):
            assert got[kind] == value
        else:
            assert got[kind].dtype == value.dtype and got[kind].shape == value.shape
            assert torch.equal(got[kind], value), kind


def entries(root: Path) -> list[Path]:
    return sorted((root / ".cache").iterdir())


@pytest.fixture
def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once it is called, this process cannot read any image."""

    def refuse(scenes: AlignedDataset, index: int) -> None:
        raise UserError("read once more")

    return lambda: monkeypatch.setattr(AlignedDataset, "scaled_maps", refuse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"load_features": True},
        {"use_instances": False},
        {"label_nc": 300},
        {"label_nc": 0, "use_instances": False},
        {"geometry": Geometry("crop", fine_size=16, flip=True)},
        {"geometry": Geometry("resize_and_crop", 32, 16, flip=True)},
    ],
    ids=str,
)
def test_items_equal_those_without_a_cache(root: Path, kind: str, flags: dict) -> None:
    plain, cached = dataset(root, **flags), dataset(root, kind, **flags)
    for epoch in (1, 2):  # filled in the first, read in the second
        for index in range(3):
            assert_same(cached[epoch, index], plain[epoch, index])


def test_a_single_feature_is_a_float_map(root: Path) -> None:
    for scene in range(3):
        path = root / "train_feat" / f"scene{scene}.png"
        Image.open(path).convert("L").save(path)
    flags = {"load_features": True, "feat_num": 1}
    feat = dataset(root, **flags)[0]["feat"]
    assert feat.shape == (1, 12, 24) and feat.dtype == torch.float32 and feat.min() < 0
    cached = dataset(root, "disk", **flags)
    assert torch.equal(cached[0]["feat"], feat) and torch.equal(cached[0]["feat"], feat)


@pytest.mark.parametrize("kind", KINDS)
def test_sources_are_read_once(root: Path, kind: str, forbid_reading: Callable) -> None:
    plain = dataset(root)
    expected = [plain[index] for index in range(3)]
    cached = dataset(root, kind)
    for index in range(3):
        cached[index]
    forbid_reading()
    for index in range(3):
        assert_same(cached[index], expected[index])
    assert isinstance(dataset(root)[0], UserError)  # so only the cache can have known


def test_the_next_run_finds_the_files(root: Path, forbid_reading: Callable) -> None:
    expected = dataset(root, "disk")[1]
    scenes = dataset(root, "disk")
    forbid_reading()
    assert_same(scenes[1], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_fill_one_cache(root: Path, kind: str, forbid_reading: Callable) -> None:
    expected = [dataset(root)[index] for index in range(3)]
    scenes = dataset(root, kind)
    loader = Loader(scenes, 1, workers=2)
    for _ in range(2):
        for batch, item in zip(loader, expected, strict=True):
            assert torch.equal(batch["image"][0], item["image"])
            assert torch.equal(batch["inst"][0], item["inst"])
    forbid_reading()
    for index in range(3):  # in this process, which read nothing itself
        assert_same(scenes[index], expected[index])


def _fill(scenes: AlignedDataset) -> None:
    for index in range(len(scenes)):
        scenes[index]


@pytest.mark.thorough
def test_memory_is_shared_with_a_process_that_is_not_forked(
    root: Path, forbid_reading: Callable
) -> None:
    expected, scenes = dataset(root)[2], dataset(root, "ram")
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(scenes,))
    process.start()
    process.join()
    assert process.exitcode == 0
    forbid_reading()
    assert_same(scenes[2], expected)


def test_the_processes_of_a_machine_share_memory(monkeypatch) -> None:
    """The second opens what the first has made, or makes its own if it cannot see the first."""
    first = SharedMemory(10)
    first.array()[3] = 7
    offer = first._path, Path(first._path).read_bytes()[:TOKEN]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("util.distributed.rank", lambda: 1)
    for found, shared in ((offer, True), ((offer[0], b"x"), False), (("/proc/0/fd/9", b""), False)):
        monkeypatch.setattr("util.distributed.gather", lambda mine, found=found: [found, mine])
        second = SharedMemory(10)
        assert second.array().tolist() == ([0, 0, 0, 7] if shared else [0] * 4) + [0] * 6
        second.array()[4] = 5
        assert (first.array()[4] == 5) == shared
        first.array()[4] = 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["train_label", "train_inst", "train_img"])
def test_a_changed_source_is_read_again(root: Path, kind: str, folder: str) -> None:
    cached = dataset(root, kind)
    before = cached[0]
    path = root / folder / "scene0.png"
    array = np.asarray(Image.open(path))
    Image.fromarray(array[::-1].copy()).save(path)
    os.utime(path, ns=(1, 1))
    assert_same(cached[0], dataset(root)[0])
    name = {"train_label": "label", "train_inst": "inst", "train_img": "image"}[folder]
    assert not torch.equal(cached[0][name], before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_was_replaced_with_its_time_kept_is_read_again(root: Path, kind: str) -> None:
    """As by cp -p, with a file of the same size."""
    path, save = root / "train_label" / "scene0.png", {"compress_level": 0}
    array = np.asarray(Image.open(path))
    Image.fromarray(array).save(path, **save)
    old, cached = path.stat(), dataset(root, kind)
    before = cached[0]
    Image.fromarray(array[::-1].copy()).save(path, **save)
    while path.stat().st_ctime_ns == old.st_ctime_ns or path.stat().st_mtime_ns != old.st_mtime_ns:
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    assert_same(cached[0], dataset(root)[0])
    assert not torch.equal(cached[0]["label"], before["label"])


def test_other_flags_have_other_files(root: Path) -> None:
    variants = [
        {},
        {"geometry": Geometry("scale_width", load_size=32)},
        {"label_nc": 40},
        {"ignore_label": 255},
        {"load_photos": False},
    ]
    for count, flags in enumerate(variants, 1):
        assert_same(dataset(root, "disk", **flags)[0], dataset(root, **flags)[0])
        assert len(entries(root)) == count
    for flags in variants:  # and none replaced another
        assert_same(dataset(root, "disk", **flags)[0], dataset(root, **flags)[0])
    assert len(entries(root)) == len(variants)


def test_crops_and_flips_share_files(root: Path) -> None:
    dataset(root, "disk", Geometry("scale_width_and_crop", 24, 8, flip=True))[0]
    dataset(root, "disk", HALF)[0]
    assert len(entries(root)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_label_is_still_refused(root: Path, kind: str) -> None:
    scenes = dataset(root, kind, label_nc=20)
    for _ in range(2):
        assert isinstance(scenes[0], UserError) and "--label_nc 20" in str(scenes[0])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [_cut, _empty, _flip_a_bit, _zero])
def test_a_damaged_file_is_rebuilt(root: Path, damage) -> None:
    expected = dataset(root, "disk")[0]
    (path,) = entries(root)
    whole = path.read_bytes()
    damage(path)
    assert_same(dataset(root, "disk")[0], expected)
    assert path.read_bytes() == whole


def test_an_unfinished_file_is_not_an_entry(root: Path) -> None:
    assert_same(dataset(root, "disk")[0], expected := dataset(root)[0])
    (whole,) = entries(root)
    leftover = whole.rename(whole.with_name(".1.tmp"))  # as a kill leaves it
    assert_same(dataset(root, "disk")[0], expected)
    assert leftover.exists()  # another process may be writing it
    os.utime(leftover, (0, leftover.stat().st_mtime - ABANDONED - 1))
    dataset(root, "disk")
    assert not leftover.exists()


def test_a_full_disk_is_reported_with_the_flag(root: Path, monkeypatch) -> None:
    def full(*_paths):
        raise OSError(28, "No space left on device")

    scenes = dataset(root, "disk")
    monkeypatch.setattr("data.cache.os.replace", full)
    assert "No space left" in str(scenes[0]) and "--cache" in str(scenes[0])
    assert not entries(root)


def test_too_little_memory_is_refused(root: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.cache._physical_memory", lambda: 1000)
    with pytest.raises(UserError, match="--cache ram needs"):
        dataset(root, "ram")


def test_too_little_memory_in_one_process_stops_all(monkeypatch) -> None:
    """Otherwise those with enough memory would wait for those that go without."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("util.distributed.gather", lambda mine: [full, mine])
    with pytest.raises(OSError, match="No space left"):
        SharedMemory(10)

    def fallocate(*_: int) -> None:
        raise full

    gathered = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("data.shared_memory.os.posix_fallocate", fallocate)
    monkeypatch.setattr("util.distributed.gather", lambda mine: gathered.append(mine) or [mine])
    with pytest.raises(OSError, match="No space left"):
        SharedMemory(10)
    assert gathered == [full]


def test_the_flag_reaches_the_loader(root: Path) -> None:
    """Parsed as on the command line, all three kinds give the same batches in two epochs."""
    flags = f"--dataroot {root} --loadSize 24 --nThreads 0 --gpu_ids -1 --batchSize 2".split()
    batches = {}
    for kind, expected in (("none", None), ("ram", RamCache), ("disk", DiskCache)):
        opt = TrainOptions().parse([*flags, "--cache", kind])
        loader = create_loader(opt, create_dataset(opt, training=True))
        assert expected is None or isinstance(loader.dataset.read_maps, expected)
        batches[kind] = [batch for epoch in (1, 2) for batch in loader.epoch(epoch)]
    for kind in KINDS:
        for batch, plain in zip(batches[kind], batches["none"], strict=True):
            assert all(torch.equal(batch[k], plain[k]) for k in ("label", "inst", "image"))
            assert batch["path"] == plain["path"]
    assert len(entries(root)) == 3


def test_an_unusable_folder_ends_in_one_line(root: Path) -> None:
    (root / ".cache").write_text("in the way")
    flags = f"--dataroot {root} --loadSize 64 --gpu_ids -1 --cache disk --no_vgg_loss"
    done = run_command("train.py", *flags.split(), "--checkpoints_dir", root / "runs")
    assert str(root / ".cache") in one_line(done)
