"""Your own data: ignored labels, counted classes, instance ids of any scheme."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, run_ok, save_png, thorough
from PIL import Image
from trainer import Training, outcome, train

from data.aligned_dataset import AlignedDataset, Geometry
from data.create import count_labels
from models.instance_maps import network_input, pad_to_multiple
from options.test_options import EncoderOptions, TestOptions
from options.train_options import TrainOptions
from util.errors import UserError

RUN = ["--niter", 1, "--niter_decay", 0, "--print_freq", 1, "--display_freq", 1]


def labels(data: Path) -> list[Path]:
    return sorted((data / "train_label").iterdir())


def relabel(data: Path, change, suffix: str = ".png") -> None:
    for path in labels(data):
        changed = change(np.array(Image.open(path)).astype(np.int32))
        path.unlink()
        if suffix == ".png":
            changed = changed.astype(np.uint8)
        Image.fromarray(changed).save(path.with_suffix(suffix))


@pytest.mark.parametrize(
    "value, suffix", [(255, ".png"), (-1, ".tif"), *thorough((7, ".png"), (300, ".tif"))]
)
def test_ignored_labels_train(value, suffix, own_data, tmp_path):
    """255 in 8 bits, -1 and 300 in 32, and a regular class; also through padding."""

    def change(label):
        label[-5:, -9:] = value
        return label

    relabel(own_data, change, suffix)
    size = ["--loadSize", 51]  # padded to 52x26
    flags = ["--dataroot", own_data, *RUN, *size]
    training = Training(tmp_path / "run", *flags, "--ignore_label", value)
    assert training.end() == 0, training.output()
    image = np.asarray(Image.open(tmp_path / "run/web/images/epoch001_input_label.png"))
    assert not image[-1, -1].any() and image.any()
    if value != 7:
        training = Training(tmp_path / "refused", *flags)
        assert training.end() == 2
        last = training.output().splitlines()[-1]
        assert f"label {value} (" in last and "--ignore_label" in last
        if value == 300:
            assert "--label_nc 301" in last


@pytest.mark.parametrize("value, depth", [(255, np.uint8), (-1, np.int32), (3, np.uint8)])
def test_ignored_pixels_are_zero_in_every_channel(value, depth, tmp_path):
    label = np.arange(20, dtype=depth).reshape(4, 5) % 5
    label[1:, 4] = value  # the last column, which padding repeats
    for kind, array in {"label": label, "inst": label.astype(np.int32)}.items():
        folder = tmp_path / f"train_{kind}"
        folder.mkdir()
        Image.fromarray(array).save(folder / "x.tif")
    save_png(tmp_path / "train_img" / "x.png", np.zeros((4, 5, 3), np.uint8))
    data = AlignedDataset(tmp_path, "train", 5, Geometry("none"), ignore_label=value)
    item = data[0]
    maps = {kind: pad_to_multiple(item[kind][None], 4) for kind in ("label", "inst")}
    x = network_input(maps["label"], maps["inst"], 5, value)
    assert x.shape == (1, 6, 4, 8)
    padded = np.pad(label, ((0, 0), (0, 3)), mode="edge")
    expected = (padded[None] == np.arange(5)[:, None, None]) & (padded != value)
    assert np.array_equal(x[0, :5].numpy(), expected.astype(np.float32))


def test_counted_classes_reach_the_run_and_later_commands(own_data, tmp_path):
    """--label_nc auto on train.py's command line; test.py and the like inherit the number."""
    relabel(own_data, lambda label: np.where(label == 33, 255, label % 19))
    expected = max(
        np.asarray(Image.open(p))[np.asarray(Image.open(p)) != 255].max() for p in labels(own_data)
    )
    flags = [*TINY, "--dataroot", own_data, *RUN, "--ignore_label", 255]
    where = ["--checkpoints_dir", tmp_path, "--name", "run"]
    output = run_ok("train.py", *flags, *where, "--label_nc", "auto")
    assert f"--label_nc {expected + 1}" in output
    record = json.loads((tmp_path / "run" / "opt.json").read_text())
    assert record["label_nc"] == expected + 1 and record["ignore_label"] == 255
    inherited = TestOptions().parse([*map(str, where), "--gpu_ids", "-1"])
    assert (inherited.label_nc, inherited.ignore_label) == (expected + 1, 255)
    state = torch.load(tmp_path / "run" / "latest_net_G.pth", weights_only=True)
    assert state["model.1.weight"].shape[1] == expected + 2  # and the edges


def test_count_labels_of_16_bits(tmp_path):
    save_png(tmp_path / "train_label" / "x.png", np.full((2, 2), 999, np.uint16))
    save_png(tmp_path / "train_label" / "y.png", np.full((2, 2), 5, np.uint8))
    assert count_labels(tmp_path, "train") == 1000
    assert count_labels(tmp_path, "train", ignore_label=999) == 6
    np.save(tmp_path / "train_label" / "z.npy", np.full((2, 2), 70_000))
    with pytest.raises(UserError, match=r"z\.npy: label 70000, but there are at most 65536"):
        count_labels(tmp_path, "train")


@pytest.mark.parametrize("flags", [[], ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]])
def test_instance_ids_do_not_affect_training(flags, own_data, tmp_path):
    """Numbered differently, the same instances give the same losses."""
    run = ["--dataroot", own_data, *RUN, *flags]
    train(tmp_path / "cityscapes", *run)
    for path in sorted((own_data / "train_inst").iterdir()):
        ids = np.unique(np.asarray(Image.open(path)), return_inverse=True)[1].reshape(32, 64)
        order = np.random.default_rng(0).permutation(ids.max() + 1)
        save_png(path, (order[ids] * 700 + 3).astype(np.uint16))
    train(tmp_path / "own", *run)
    one, other = outcome(tmp_path / "cityscapes"), outcome(tmp_path / "own")
    for first, second in zip(one["metrics.jsonl"], other["metrics.jsonl"]):
        assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("flag", ["--name", "--phase", "--which_epoch"])
@pytest.mark.parametrize("value", ["../out", "/etc", "", "a/../../b"])
@pytest.mark.parametrize("options", [TrainOptions, TestOptions, EncoderOptions])
def test_no_flag_leads_out_of_its_folder(flag, value, options):
    with pytest.raises(UserError, match=flag):
        options().parse(["--gpu_ids", "-1", flag, value])
