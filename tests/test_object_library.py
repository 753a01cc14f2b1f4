"""The object library: what is cut out, what is kept, what is refused."""

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_ok
from tiny_run import write_run

from editor import library
from editor.library import LibraryObject, load_library, thumbnail, whole_objects, write_library
from models.run_encoder import is_outdated, record_encoder
from util.errors import UserError
from util.files import checksum_of

ROAD, CAR = 7, 26


def test_objects_are_whole_inside_the_image_and_neither_tiny_nor_huge() -> None:
    label = np.full((40, 60), ROAD, np.uint8)
    inst = label.astype(np.int32)

    def put(rows: slice, columns: slice, number: int) -> None:
        label[rows, columns], inst[rows, columns] = CAR, number

    put(slice(5, 10), slice(5, 15), 26000)  # a good one
    put(slice(5, 10), slice(0, 8), 26001)  # touches the border, and hides part of 26000
    put(slice(20, 26), slice(20, 40), -5)  # as 2**32 - 5 is read
    put(slice(20, 26), slice(29, 31), 26003)  # cuts -5 in two; has too few pixels itself
    put(slice(30, 32), slice(50, 52), 26004)  # 4 pixels
    put(slice(5, 10), slice(52, 60), 26005)  # the right border
    put(slice(35, 40), slice(20, 30), 26006)  # the lower border
    found = {int(inst[place][mask][0]): (place, mask) for place, mask in whole_objects(label, inst)}
    assert set(found) == {26000}
    place, mask = found[26000]
    assert place == (slice(5, 10), slice(8, 15)) and mask.all()


def test_without_instances_connected_pieces_are_objects() -> None:
    label = np.full((40, 60), ROAD, np.uint8)
    label[5:15, 5:15] = label[20:30, 30:40] = CAR
    places = [place for place, _ in whole_objects(label, None)]
    assert places == [(slice(5, 15), slice(5, 15)), (slice(20, 30), slice(30, 40))]


def objects() -> list[LibraryObject]:
    rng = np.random.default_rng(0)
    made = []
    for label, shape in ((CAR, (3, 7)), (CAR, (5, 2)), (24, (9, 4))):
        mask = rng.random(shape) < 0.6
        colours = rng.integers(0, 256, (*shape, 3), np.uint8)
        made.append(
            LibraryObject(label, mask, rng.normal(size=3).astype("f4"), thumbnail(colours, mask))
        )
    return made


def test_a_library_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "library.npz"
    write_library(path, objects())
    for one, two in zip(objects(), load_library(path, 35, 3), strict=True):
        assert one.label == two.label
        for name in ("mask", "feature", "thumbnail"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
    assert load_library(tmp_path / "none.npz", 35, 3) == []


def test_a_library_of_another_model_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.npz"
    write_library(path, objects())
    for label_nc, feat_num in ((20, 3), (35, 5), (35, 0)):
        with pytest.raises(UserError, match="another model"):
            load_library(path, label_nc, feat_num)
    content = path.read_bytes()
    for wrong in (content[: len(content) // 2], b"", b"no library"):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="not an object library"):
            load_library(path, 35, 3)


def test_a_library_of_other_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "library.npz"
    write_library(path, objects())
    with np.load(path) as file:
        whole = dict(file)
    none = {name: whole[name][:0] for name in ("label", "feature", "thumbnail")}
    for wrong in (
        none,
        {"label": whole["label"] + 0.5},
        {"label": whole["label"][:, None]},
        {"feature": whole["feature"] * np.nan},
        {"thumbnail": whole["thumbnail"] / 255},
        {"mask1": whole["mask1"][0]},
        {"mask1": whole["mask1"] & False},
    ):
        np.savez(path, **{**whole, **wrong})
        with pytest.raises(UserError, match="do not fit together"):
            load_library(path, 35, 3)


def test_thumbnail_is_transparent_around_the_object() -> None:
    mask = np.zeros((8, 16), bool)
    mask[:, :8] = True
    colours = np.full((8, 16, 3), 255, np.uint8)
    colours[:, :8] = (10, 200, 30)
    image = thumbnail(colours, mask)
    assert image.shape == (64, 64, 4)
    assert image[32, 10].tolist() == [10, 200, 30, 255]
    assert image[32, 60, 3] == 0 and image[2, 10, 3] == 0
    seen = image[image[..., 3] > 128, :3]  # the white around it does not bleed in
    np.testing.assert_allclose(seen, np.broadcast_to([10, 200, 30], seen.shape), atol=20)


@pytest.mark.parametrize("flags", [{}, {"instance_feat": False}], ids=["features", "none"])
def test_the_command_cuts_out_objects_with_the_encoders_features(
    toy_data: Path, tmp_path: Path, flags: dict
) -> None:
    run = write_run(tmp_path, "run", dataroot=str(toy_data), **flags)
    command = ["-m", "editor.library", "--name", "run", "--checkpoints_dir", tmp_path]
    command += ["--gpu_ids", "-1", "--nThreads", "0", "--per_class", "3"]
    run_ok(*command)
    found = load_library(run / "object_library.npz", 35, 0 if flags else 3)
    labels = [one.label for one in found]
    assert found and max(map(labels.count, labels)) <= 3 and ROAD not in labels
    assert all(np.isfinite(one.feature).all() for one in found if not flags)
    again = (run / "object_library.npz").read_bytes()
    run_ok(*command)
    assert (run / "object_library.npz").read_bytes() == again  # the same choice each time


def test_every_object_is_kept_with_equal_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "uses_features": lambda opt: False,
        "photographs": lambda opt: {},
        "create_dataset": lambda opt, **more: None,
        "own_batches": lambda *_: enumerate("abcd"),
        "objects_of": lambda batch, *_: [SimpleNamespace(label=1, name=batch)],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(f"editor.library.{name}", fake)
    runs = [SimpleNamespace(seed=seed, per_class=2) for seed in range(400)]
    kept = Counter(one.name for opt in runs for one in library.build(opt, torch.device("cpu")))
    assert sum(kept.values()) == 800 and all(abs(kept[name] - 200) < 35 for name in "abcd")


def test_a_library_of_an_earlier_encoder_is_reported(
    toy_data: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("gradio")
    import edit
    from editor import page

    monkeypatch.setattr(page, "serve", lambda *_: None)
    run = write_run(tmp_path, "run", dataroot=str(toy_data))
    write_library(run / "object_library.npz", objects())
    record_encoder(run / "object_library.npz", checksum_of(run / "latest_net_E.pth"))
    command = [edit.main, "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1]
    call(*command)
    assert "object_library" not in capsys.readouterr().out
    weights = torch.load(run / "latest_net_E.pth", weights_only=True)
    torch.save({name: -w for name, w in weights.items()}, run / "latest_net_E.pth")
    call(*command)
    assert f"{run / 'object_library.npz'} has features of an encoder" in capsys.readouterr().out


def test_a_library_is_of_the_encoder_that_was_read(
    toy_data: Path, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training may save another one meanwhile."""
    run = write_run(tmp_path, "run", dataroot=str(toy_data))
    encoder = run / "latest_net_E.pth"

    def build(*_: object) -> list[LibraryObject]:
        torch.save({}, encoder)
        return objects()

    monkeypatch.setattr(library, "build", build)
    call(library.main, "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1)
    assert is_outdated(run / "object_library.npz", encoder)


def test_a_run_that_cannot_be_written_to_is_refused_before_any_work(
    toy_data: Path, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    write_run(tmp_path, "run", dataroot=str(toy_data))
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(library, "build", lambda *_: pytest.fail("it has begun"))
    line = refused(library.main, "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1)
    assert "cannot be written to" in line
