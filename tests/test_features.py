"""Instance features: encoding, clustering, styles, feature maps, and the 1024p stage."""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_ranks
from conftest import SHARED, TINY, one_line, run_command, run_ok, save_png
from PIL import Image
from tiny_run import write_run

import encode_features
import precompute_feature_maps
from data.kinds import scene_kinds
from generation.features import find_scene, style_of_instance
from models import load_generator
from models.inference_model import InferenceModel
from models.run_encoder import ENCODERS, record_encoder, run_styles
from models.styles import (
    StyleChooser,
    cluster,
    instance_classes,
    instance_rows,
    load_rows,
    load_styles,
    paint,
    styles_to_rows,
)
from options.test_options import EncoderOptions, TestOptions
from util import distributed
from util.errors import UserError
from util.files import checksum_of, lock_folder

BOX = np.ones((2, 3, 4))
ONCE = ["--niter", 1, "--niter_decay", 0, "--no_html"]
FEATURES = ["--instance_feat", "--nef", "4", "--n_downsample_E", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> Path:
    """A folder with a tiny run "feat" trained and encoded, and a copy of the toy data."""
    folder = tmp_path_factory.mktemp("features")
    shutil.copytree(toy_data, folder / "data")
    commands = [
        ["train.py", *TINY, *FEATURES, *ONCE, "--loadSize", 32],
        ["encode_features.py", "--nThreads", 0],
        ["precompute_feature_maps.py", "--nThreads", 0],
    ]
    for command in commands:
        run_ok(
            *(command[0], "--name", "feat", "--checkpoints_dir", folder / "ck"),
            *("--dataroot", folder / "data", "--gpu_ids", -1, *command[1:]),
        )
    return folder


def render(run: Path, *args: object):
    return run_command(
        *("test.py", "--name", "feat", "--checkpoints_dir", run / "ck", "--gpu_ids", -1),
        *("--results_dir", run / "results", "--nThreads", 0, *args),
    )


def test_features_file(run: Path) -> None:
    """One row per instance, checked against the instance maps at the size of training."""
    rows = np.load(run / "ck" / "feat" / "features.npy", allow_pickle=False)
    expected = []
    for path in sorted((run / "data" / "train_inst").iterdir()):
        inst = np.asarray(Image.open(path).resize((32, 16), Image.Resampling.NEAREST)).astype(int)
        ids, areas = np.unique(inst, return_counts=True)
        labels = np.where(ids < 1000, ids, ids // 1000)
        order = np.argsort(labels, kind="stable")
        expected.append(np.column_stack([labels, areas * 32 / inst.size])[order])
    expected = np.concatenate(expected)
    assert rows.dtype == np.float32 and rows.shape == (len(expected), 2 + 3)
    np.testing.assert_allclose(rows[:, [0, -1]], expected, rtol=1e-6)
    assert np.abs(rows[:, 1:-1]).max() <= 1


def test_clusters_file(run: Path) -> None:
    rows = np.load(run / "ck" / "feat" / "features.npy")
    styles = np.load(run / "ck" / "feat" / "features_clustered_010.npy", allow_pickle=False)
    large = rows[rows[:, -1] > 0.5]
    assert set(styles[:, 0]) == set(large[:, 0])
    for label in set(large[:, 0]):
        count = (styles[:, 0] == label).sum()
        assert count == min(10, len(np.unique(large[large[:, 0] == label, 1:-1], axis=0)))


def test_feature_maps(run: Path) -> None:
    """train_feat has the label maps' names and twice the size that the encoder saw."""
    for path in (run / "data" / "train_label").iterdir():
        feat = np.asarray(Image.open(run / "data" / "train_feat" / path.name))
        assert feat.shape == (32, 64, 3) and feat.dtype == np.uint8
        assert (feat[::2, ::2] == feat[1::2, 1::2]).all()


def test_missing_feature_maps_name_the_command_that_makes_them(toy_data: Path) -> None:
    expected = "holds no folder test_feat; precompute_feature_maps.py --phase test makes it"
    with pytest.raises(UserError, match=re.escape(expected)):
        scene_kinds(35, load_features=True)["feat"].folder(toy_data, "test")


def test_feature_maps_are_of_one_encoder_or_missing(run: Path, tmp_path: Path) -> None:
    """If the command ends early, no maps of an earlier encoder are left to train on."""
    shutil.copytree(run / "data", tmp_path / "data")
    last = sorted((tmp_path / "data" / "train_img").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:100])
    for path in (maps := tmp_path / "data" / "train_feat").iterdir():
        path.write_bytes(b"earlier")
    flags = ["--name", "feat", "--checkpoints_dir", run / "ck", "--dataroot", tmp_path / "data"]
    done = run_command("precompute_feature_maps.py", *flags, "--gpu_ids", -1, "--nThreads", 0)
    assert str(last) in one_line(done)
    assert all(path.read_bytes() != b"earlier" for path in maps.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="files cannot be locked there")
def test_two_commands_at_once_do_not_mix_their_features(run: Path) -> None:
    flags = ["--name", "feat", "--checkpoints_dir", run / "ck", "--dataroot", run / "data"]
    written = {
        "encode_features.py": run / "ck" / "feat" / "features.npy",
        "precompute_feature_maps.py": run / "data" / "train_feat",
    }
    for command, path in written.items():
        lock = lock_folder(path, "")
        done = run_command(command, *flags, "--gpu_ids", -1)
        assert "running there" in one_line(done)
        lock.close()


def test_other_n_clusters_does_not_encode_again(run: Path) -> None:
    before = (run / "ck" / "feat" / "features.npy").stat().st_mtime_ns
    run_ok(
        *("encode_features.py", "--name", "feat", "--checkpoints_dir", run / "ck"),
        *("--dataroot", run / "missing", "--gpu_ids", -1, "--n_clusters", 2),
    )
    assert (run / "ck" / "feat" / "features.npy").stat().st_mtime_ns == before
    assert (run / "ck" / "feat" / "features_clustered_002.npy").is_file()


def test_another_feat_num_names_the_files(run: Path) -> None:
    where = "--name", "feat", "--checkpoints_dir", run / "ck", "--gpu_ids", -1
    done = run_command("encode_features.py", *where, "--feat_num", 5)
    assert "features of length 3" in one_line(done) and "give that length" in done.stderr


def test_another_epoch_is_encoded_again(run: Path) -> None:
    shutil.copytree(run / "ck", run / "epochs")
    folder = run / "epochs" / "feat"
    weights = torch.load(folder / "latest_net_E.pth", weights_only=True)
    torch.save({name: -w for name, w in weights.items()}, folder / "1_net_E.pth")
    flags = ["--name", "feat", "--checkpoints_dir", run / "epochs", "--dataroot", run / "data"]
    for which, again in ((["--which_epoch", 1], True), (["--which_epoch", 1], False), ([], True)):
        output = run_ok("encode_features.py", *flags, "--gpu_ids", -1, *which)
        assert ("encoding again" in output) == again != ("as it is" in output)


@pytest.mark.parametrize("first_needs", [True, False])
def test_the_first_process_decides_whether_all_encode(
    run: Path, monkeypatch: pytest.MonkeyPatch, first_needs: bool
) -> None:
    encoding = []
    flags = ["--name", "feat", "--checkpoints_dir", str(run / "ck"), "--gpu_ids", "-1"]
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "gather", lambda mine: [first_needs, mine])
    monkeypatch.setattr(encode_features, "needs_encoding", lambda *_: not first_needs)
    monkeypatch.setattr(encode_features, "encode_instances", lambda *_: encoding.append(True))
    encode_features.encode(EncoderOptions().parse(flags), torch.device("cpu"))
    assert bool(encoding) == first_needs


@pytest.mark.parametrize("encode", [encode_features.encode, precompute_feature_maps.precompute])
@pytest.mark.parametrize("second", [(32, 64), (48, 64)])
def test_cudnn_does_not_search_again_for_each_size(
    encode: Callable, second: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its search for the fastest algorithm takes seconds on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # restored afterwards
    write_run(tmp_path, "run", feat_num=1)
    for name, size in ("a", (32, 64)), ("b", second):
        for kind in ("label", "inst", "img"):
            shape = (*size, 3) if kind == "img" else size
            save_png(tmp_path / f"train_{kind}" / f"{name}.png", np.zeros(shape, np.uint8))
    flags = ["--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", tmp_path]
    flags += ["--resize_or_crop", "none", "--gpu_ids", -1]
    encode(EncoderOptions().parse([str(flag) for flag in flags]), torch.device("cpu"))
    assert torch.backends.cudnn.benchmark == (second == (32, 64))


def test_a_missing_epoch_is_refused(run: Path) -> None:
    flags = ["--name", "feat", "--checkpoints_dir", run / "ck", "--dataroot", run / "data"]
    done = run_command("encode_features.py", *flags, "--gpu_ids", -1, "--which_epoch", 77)
    assert "77_net_E.pth: no such file" in one_line(done)


def test_a_missing_encoder_of_another_run_is_refused(run: Path) -> None:
    """The run's own features are not clustered in its place."""
    flags = ["--name", "feat", "--checkpoints_dir", run / "ck", "--dataroot", run / "data"]
    flags += ["--gpu_ids", -1, "--load_pretrain", run / "misspelled", "--n_clusters", 4]
    assert "misspelled: no trained encoder" in one_line(run_command("encode_features.py", *flags))
    assert not (run / "ck" / "feat" / "features_clustered_004.npy").exists()


def test_all_styles_and_warning(run: Path) -> None:
    styles = load_styles(run / "ck" / "feat" / "features_clustered_010.npy", 3)
    done = render(run, "--all_styles", "road", "--results_dir", run / "all")
    (page,) = (run / "all").rglob("index.html")
    assert "epoch latest, all styles of road</h1>" in page.read_text()
    assert done.returncode == 0, done.stderr
    images = run / "all" / "feat" / "test_latest" / "images"
    for stem in (path.stem for path in (run / "data" / "test_label").iterdir()):
        assert len(list(images.glob(f"{stem}_style_*.png"))) == len(styles[7])
    assert "warning: no styles for" in done.stdout  # things are too small at 32x16
    assert "rider (25)" in done.stdout or "bicycle (33)" in done.stdout or "person" in done.stdout


def test_styles_of_an_earlier_encoder_are_named(run: Path) -> None:
    """Training may have continued since; a copied folder has the same encoder, whatever its age."""
    encoder = run / "ck" / "feat" / "latest_net_E.pth"
    before = encoder.read_bytes()
    flags = ["--style", "sky=0", "--how_many", 1, "--results_dir", run / "older"]
    os.utime(encoder)
    assert "an encoder other than" not in render(run, *flags).stdout
    weights = torch.load(encoder, weights_only=True)
    torch.save({name: -w for name, w in weights.items()}, encoder)
    try:
        done = render(run, *flags)
    finally:
        encoder.write_bytes(before)
    assert done.returncode == 0, done.stderr
    assert f"an encoder other than {encoder}; encode_features.py" in done.stdout


def test_styles_of_another_epochs_encoder_are_named(tmp_path: Path, capsys) -> None:
    """An epoch that was saved together with the latest is the same."""
    folder = write_run(tmp_path, "run")
    weights = torch.load(folder / "latest_net_E.pth", weights_only=True)
    torch.save({name: -w for name, w in weights.items()}, folder / "1_net_E.pth")
    shutil.copy(folder / "latest_net_E.pth", folder / "2_net_E.pth")
    styles = folder / "features_clustered_010.npy"

    def warned(epoch: str) -> bool:
        flags = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--which_epoch", epoch]
        run_styles(folder, TestOptions().parse(flags))
        return "has styles of an encoder other than" in capsys.readouterr().out

    assert not warned("1")  # nothing is known
    record_encoder(folder / "features.npy", checksum_of(folder / "1_net_E.pth"))  # encoded since
    record_encoder(styles, checksum_of(folder / "latest_net_E.pth"))
    assert [warned(epoch) for epoch in ("1", "2", "latest")] == [True, False, False]
    for damaged in ("", "[]"):  # copied to a full disk, say
        (folder / ENCODERS).write_text(damaged)
        assert not warned("1")


def test_a_new_encoder_of_the_first_stage_makes_the_seconds_features_anew(
    stages, tmp_path: Path, toy_data: Path, capsys
) -> None:
    """Encoded with the encoder that the 1024p stage was trained with."""
    first, folder = stages("above"), tmp_path / "above"
    flags = ["--name", "above", "--checkpoints_dir", tmp_path, "--dataroot", toy_data]
    flags += ["--gpu_ids", -1, "--nThreads", 0, "--loadSize", 64]
    assert "as it is" in run_command("encode_features.py", *flags).stdout
    weights = torch.load(tmp_path / "below" / "1_net_E_ema.pth", weights_only=True)
    torch.save({name: -w for name, w in weights.items()}, tmp_path / "below" / "1_net_E_ema.pth")
    opt = TestOptions().parse([str(flag) for flag in flags[:4]])
    run_styles(folder, opt)
    assert "1_net_E_ema.pth; encode_features.py" in capsys.readouterr().out
    done = run_command("encode_features.py", *flags)
    assert "1_net_E_ema.pth: encoding again" in done.stdout
    assert not np.array_equal(np.load(folder / "features.npy"), first)


def test_older_styles_of_the_pretrained_run_are_named(tmp_path: Path, capsys) -> None:
    """The run's own encoder has been trained since."""
    base = write_run(tmp_path, "base")
    own = write_run(tmp_path, "own", load_pretrain=str(base))
    (own / "features_clustered_010.npy").unlink()
    record_encoder(base / "features_clustered_010.npy", checksum_of(base / "latest_net_E.pth"))
    torch.save({}, own / "latest_net_E.pth")
    run_styles(own, TestOptions().parse(["--name", "own", "--checkpoints_dir", str(tmp_path)]))
    assert f"an encoder other than {own / 'latest_net_E.pth'};" in capsys.readouterr().out


def encoder_of_half_size(folder: Path) -> InferenceModel:
    """As in the 1024p stage; each region's feature is its own id."""
    opt = TestOptions().parse(["--name", "run", "--gpu_ids", "-1"])
    model = InferenceModel(opt, torch.device("cpu"), folder, with_generator=False)
    model.encoder_shrink, model.encoder_multiple = 2, 1
    model.netE = lambda image, regions: regions.float().expand(-1, 3, -1, -1)
    return model


@pytest.mark.parametrize("size", [(32, 16), (43, 31)])
def test_the_encoder_of_a_smaller_stage_sees_the_regions_of_scaled_files(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """As in precompute_feature_maps.py: by Pillow's nearest neighbours, and back."""
    model = encoder_of_half_size(tmp_path)
    ids = np.random.default_rng(0).integers(0, 99, size[::-1], np.int32)
    small = Image.fromarray(ids).resize([side // 2 for side in size], Image.Resampling.NEAREST)
    expected = np.asarray(small.resize(size, Image.Resampling.NEAREST))
    found = model.encode(torch.zeros(1, 3, *ids.shape), torch.from_numpy(ids)[None, None])
    np.testing.assert_array_equal(found[0, 0], expected)


@pytest.mark.parametrize("size", [(32, 16), (43, 31)])
def test_each_region_has_its_own_feature_though_the_encoder_saw_smaller_images(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """Rectangles with edges anywhere: none gets the feature of a neighbour."""
    model = encoder_of_half_size(tmp_path)
    rng = np.random.default_rng(0)
    maps = np.zeros((2, 1, *size[::-1]), np.int32)
    for ids in maps[:, 0]:
        for number in (7, 26001, 33000):
            y, x = (int(rng.integers(1, side - 9)) for side in ids.shape)
            ids[y : y + int(rng.integers(2, 8)), x : x + int(rng.integers(2, 8))] = number
    image = torch.zeros(2, 3, *maps.shape[2:])
    blocks = model.encode(image, torch.from_numpy(maps))
    found = model.encode_regions(image, torch.from_numpy(maps))
    assert (blocks[:, :1] != torch.from_numpy(maps)).any()
    assert torch.equal(found, torch.from_numpy(maps).float().expand(-1, 3, -1, -1))


def test_feature_maps_of_another_runs_encoder_have_its_channels(
    toy_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(toy_data, tmp_path / "data")
    write_run(tmp_path, "one", feat_num=1)
    flags = ["--name", "new", "--load_pretrain", tmp_path / "one", "--dataroot", data]
    flags += ["--checkpoints_dir", tmp_path, "--gpu_ids", -1, "--nThreads", 0, "--loadSize", 64]
    for command in ("precompute_feature_maps.py", "encode_features.py"):
        run_ok(command, *flags)
    first = next((data / "train_feat").iterdir())
    assert np.asarray(Image.open(first)).shape == (64, 128)
    assert np.load(tmp_path / "new" / "features.npy").shape[1] == 3  # class, pixels


def test_style_changes_the_image(run: Path) -> None:
    results = []
    for flags in (["--style", "sky=0"], ["--style", "23=0"], ["--style", "sky=1"]):
        done = render(run, *flags, "--results_dir", run / "one")
        assert done.returncode == 0, done.stderr
        images = sorted((run / "one").rglob("*_synthesized_image.png"))
        results.append(np.stack([np.asarray(Image.open(path)) for path in images]))
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize(
    "rows", [np.zeros(0), np.zeros((3, 0)), np.zeros((0, 4)), np.full((2, 4), 1.5)]
)
def test_a_file_without_styles_is_refused(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "styles.npy", rows)
    with pytest.raises(UserError, match="holds no styles of classes"):
        load_styles(tmp_path / "styles.npy", 3)


def test_large_seeds_cluster() -> None:
    rows = np.float32([[26, 0.0, 1.0, 0.9], [26, 1.0, 0.0, 0.9]])  # class, feature, share
    assert cluster(rows, 2, seed=2**40)[26].shape == (2, 2)


def test_styles_are_chosen_by_plain_digits(run: Path) -> None:
    assert "expected CLASS=K" in one_line(render(run, "--style", "car=²"))


@pytest.mark.parametrize("rows", [{}, {1: np.zeros((1, 3)), 2: np.zeros((1, 4))}])
def test_features_of_several_lengths_are_refused(rows: dict, tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.array(rows, object), allow_pickle=True)
    with pytest.raises(UserError, match="not the features of instances"):
        load_rows(tmp_path / "features.npy")


def test_style_from_one_of_two_scenes_of_a_name_is_refused(toy_data: Path, tmp_path: Path) -> None:
    """The name on test.py's page, or with the folder, says which one."""
    for city in ("a", "b"):
        for kind in ("label", "inst", "img"):
            first = min((toy_data / f"test_{kind}").iterdir())
            (tmp_path / f"test_{kind}" / city).mkdir(parents=True)
            shutil.copy(first, tmp_path / f"test_{kind}" / city / f"0001_{kind}.png")
    flags = ["--name", "run", "--dataroot", tmp_path, "--gpu_ids", -1, "--loadSize", 32]
    opt = TestOptions().parse([str(flag) for flag in flags])
    with pytest.raises(UserError, match="could be a/0001, b/0001; give one"):
        find_scene("0001", opt)
    for name in ("b/0001", "b__0001"):
        (path,) = find_scene(name, opt)["path"]
        assert Path(path).parent.name == "b"


def test_style_from_an_instance_whose_id_has_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    inst = torch.tensor([[[[7, -5]]]], dtype=torch.int32)  # as 2**32 - 5 is read
    batch = {"label": torch.tensor([[[[1, 2]]]]), "inst": inst, "image": None}
    monkeypatch.setattr("generation.features.find_scene", lambda *_: batch)
    model = argparse.Namespace(
        regions=lambda label, inst: inst,
        encode_regions=lambda image, maps: torch.tensor([[[[0.5, 0.25]]]]),
    )
    opt = argparse.Namespace(label_nc=3)
    label, feature = style_of_instance(model, f"a,{2**32 - 5}", opt)
    assert (label, feature.tolist()) == (2, [0.25])


def test_style_from_another_photograph(run: Path) -> None:
    scene = sorted((run / "data" / "train_label").iterdir())[0].stem
    done = render(run, "--style_from", f"{scene},7")
    assert done.returncode == 0, done.stderr
    refused = render(run, "--style_from", f"{scene},12345")
    assert "no instance 12345" in one_line(refused)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--style", "car=99"], "class car has"),
        (["--style", "carr=0"], "unknown class"),
        (["--cluster_path", "nothing.npy"], "no such file"),
        (["--feat_num", "4"], "expected"),
        (["--all_styles", "rider"], "has no styles"),
        (["--style", "road=0", "--style", "7=1"], "road is named twice"),
        (["--style", "road=0", "--all_styles", "road"], "road is named twice"),
    ],
)
def test_refusals(run: Path, flags: list[str], message: str) -> None:
    assert message in one_line(render(run, *flags))


def test_no_encoder_no_features(toy_data: Path, tmp_path: Path) -> None:
    for command in ("encode_features.py", "precompute_feature_maps.py"):
        done = run_command(
            *(command, "--name", "none", "--checkpoints_dir", tmp_path),
            *("--dataroot", toy_data, "--gpu_ids", -1),
        )
        assert "none: no trained encoder (latest_net_E.pth); train with" in one_line(done)
    assert not (toy_data / "train_feat").exists()


def test_without_any_encoder_styles_are_another_runs(tmp_path: Path) -> None:
    """After --load_features without --load_pretrain: encode_features.py could not make them."""
    run = write_run(tmp_path, "above", load_features=True)
    styles = (run / "features_clustered_010.npy").rename(tmp_path / "styles.npy")
    (run / "latest_net_E.pth").unlink(missing_ok=True)
    flags = ["--name", "above", "--checkpoints_dir", str(tmp_path)]
    with pytest.raises(UserError, match=r"no encoder .*--cluster_path FILE.*test.py --load_feat"):
        run_styles(run, TestOptions().parse(flags))
    run_styles(run, TestOptions().parse([*flags, "--cluster_path", str(styles)]))


def test_several_processes_report_the_sizes_of_all(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for kind in ("label", "inst", "img"):
        shutil.copytree(run / "data" / f"train_{kind}", data / f"train_{kind}")
        second = sorted((data / f"train_{kind}").iterdir())[1]
        Image.open(second).crop((0, 0, 32, 32)).save(second)
    flags = ["--name", "feat", "--checkpoints_dir", run / "ck", "--dataroot", data]
    flags += ["--resize_or_crop", "none", "--max_dataset_size", 2, "--gpu_ids", -1]
    all_done = run_ranks(2, "precompute_feature_maps.py", *flags, "--nThreads", 0)
    assert [done.returncode for done in all_done] == [0, 0], all_done
    assert "2 feature maps of several sizes" in all_done[0].stdout


def test_local_stage(run: Path, tmp_path: Path) -> None:
    """Coarse to fine: what starts fresh is logged, frozen parts stay, later all parts train."""
    common = [
        *("--name", "local", "--checkpoints_dir", run / "ck", "--dataroot", run / "data"),
        *(*TINY, *FEATURES, "--netG", "local", "--ngf", 2, "--n_blocks_local", 1),
        *("--load_features", "--load_pretrain", run / "ck" / "feat"),
        *("--print_freq", 1, "--no_html", "--niter_fix_global", 1, "--save_epoch_freq", 1),
    ]
    output = run_ok("train.py", *common, "--niter", 2, "--niter_decay", 0)
    assert "starts fresh: G: model1_1.1.weight" in output
    below = torch.load(run / "ck" / "feat" / "latest_net_G.pth", weights_only=True)
    first, second = (
        torch.load(run / "ck" / "local" / f"{epoch}_net_G.pth", weights_only=True)
        for epoch in (1, 2)
    )
    shared = [name for name in first if name in below]
    assert len(shared) > 5
    for name in shared:
        assert torch.equal(first[name], below[name]), name
        if name.endswith("weight"):
            assert not torch.equal(second[name], below[name]), name
    # test.py finds the encoder and styles of the smaller stage
    for flags in (["--use_encoded_image"], ["--style", "road=0"]):
        tested = run_command(
            *("test.py", "--name", "local", "--checkpoints_dir", run / "ck", "--gpu_ids", -1),
            *("--results_dir", run / "local_results", "--nThreads", 0, *flags),
        )
        assert tested.returncode == 0, tested.stderr
    # and so does the command that makes the maps of other scenes; the encoder sees 32x16 again,
    # scaled by torch and not by Pillow, which rounds differently
    data = shutil.copytree(run / "data", tmp_path / "data")
    shutil.rmtree(data / "train_feat")
    flags = ["--name", "local", "--checkpoints_dir", run / "ck", "--dataroot", data]
    run_ok("precompute_feature_maps.py", *flags, "--gpu_ids", -1, "--nThreads", 0)
    for path in (run / "data" / "train_feat").iterdir():
        own, other = Image.open(path), Image.open(data / "train_feat" / path.name)
        found, expected = np.asarray(other).astype(int), np.asarray(own).astype(int)
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.fixture
def stages(tmp_path: Path, toy_data: Path) -> Callable[..., np.ndarray]:
    """Runs "below", with unusual flags and only an averaged encoder, and "above", its 1024p stage
    from epoch 1. encoded(name, *flags) is features.npy of encode_features.py."""
    below = write_run(tmp_path, "below", upsample="nearest", ema=0.9, nef=6)
    for epoch in ("latest", "1"):
        weights = torch.load(below / "latest_net_E.pth", weights_only=True)
        weights = {name: w * (2 if epoch == "1" else 1) for name, w in weights.items()}
        torch.save(weights, below / f"{epoch}_net_E_ema.pth")
    (below / "latest_net_E.pth").unlink()
    flags = {"netG": "local", "ngf": 2, "load_features": True, "n_local_enhancers": 1}
    start = {"load_pretrain": str(below), "which_epoch": "1"}
    above = write_run(tmp_path, "above", **flags, n_blocks_local=1, **start)
    (above / "latest_net_E.pth").unlink(missing_ok=True)

    def encoded(name: str, *flags: object) -> np.ndarray:
        where = ["--checkpoints_dir", tmp_path, "--dataroot", toy_data, "--gpu_ids", -1]
        command = ["encode_features.py", "--name", name, *where, "--nThreads", 0, "--reencode"]
        run_ok(*command, "--resize_or_crop", "none", *flags)
        return np.load(tmp_path / name / "features.npy")

    return encoded


def test_an_encoder_of_another_run_has_its_architecture(stages, tmp_path: Path) -> None:
    """--load_pretrain DIR: as in its opt.json, not as in the flags of the named run."""
    own = stages("below")
    architecture = ["--instance_feat", "--ngf", 4, "--nef", 4, "--n_downsample_E", 1]
    other = stages("other", *architecture, "--load_pretrain", tmp_path / "below")
    np.testing.assert_array_equal(own, other)


def test_the_larger_stage_uses_the_encoder_that_it_was_trained_with(stages, tmp_path: Path) -> None:
    """From that epoch; and it sees images scaled alike, however it is named."""
    G = load_generator(tmp_path / "above")
    G.load_encoder()
    first = torch.load(tmp_path / "below" / "1_net_E_ema.pth", weights_only=True)
    assert all(torch.equal(first[name], w) for name, w in G.netE.state_dict().items())
    assert G.encoder_shrink == 2
    flags = ["--load_pretrain", tmp_path / "below", "--which_epoch", 1]
    own, named = stages("above", "--which_epoch", "latest"), stages("above", *flags)
    np.testing.assert_array_equal(own, named)


@pytest.mark.parametrize("flags", [[], ["--ema", 0.9], ["--upsample", "nearest"]])
def test_a_smaller_stage_of_the_2018_code_encodes_as_it_did(
    flags: list, stages, tmp_path: Path
) -> None:
    """It has no opt.json and none of the later flags; it sees smaller images, however it is
    named."""
    below = tmp_path / "below"
    weights = torch.load(below / "1_net_E_ema.pth", weights_only=True)
    torch.save(weights, below / "1_net_E.pth")
    options = json.loads((below / "opt.json").read_text())
    (below / "opt.json").write_text(json.dumps(options | {"upsample": "transpose", "ema": 0}))
    expected = stages("above", "--which_epoch", "latest")
    (below / "opt.json").unlink()
    flags = [*flags, "--nef", 6]
    found = stages("above", *flags, "--which_epoch", "latest")
    np.testing.assert_array_equal(found, expected)
    found = stages("above", *flags, "--which_epoch", 1, "--load_pretrain", below)
    np.testing.assert_array_equal(found, expected)


def test_a_missing_smaller_stage_is_named(stages, tmp_path: Path) -> None:
    (tmp_path / "below").rename(tmp_path / "renamed")
    with pytest.raises(UserError, match=r"below: no such folder.*above was trained from its"):
        load_generator(tmp_path / "above").load_encoder()


def test_feature_maps_of_wrong_size_or_missing(own_data: Path, tmp_path: Path) -> None:
    command = [
        *("train.py", "--name", "x", "--checkpoints_dir", tmp_path, "--dataroot", own_data),
        *(*TINY, *FEATURES, "--load_features"),
    ]
    assert "train_feat" in one_line(run_command(*command))
    for path in (own_data / "train_label").iterdir():
        (own_data / "train_feat").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(own_data / "train_feat" / path.name)
    assert "is 20x10" in one_line(run_command(*command))


def test_feature_maps_of_odd_heights(run: Path, own_data: Path, tmp_path: Path) -> None:
    """Encoded at 32x21, written as 64x42; the next stage is 64x43."""
    for path in own_data.glob("*/*.png"):
        Image.open(path).resize((64, 43), Image.Resampling.NEAREST).save(path)
    names = ["--checkpoints_dir", run / "ck", "--dataroot", own_data, "--gpu_ids", -1]
    done = run_command("precompute_feature_maps.py", "--name", "feat", *names, "--nThreads", 0)
    assert "4 feature maps of 64x42" in done.stdout, done.stderr
    names = ["--checkpoints_dir", tmp_path, "--dataroot", own_data, "--name", "next"]
    flags = [*TINY, *FEATURES, "--netG", "local", "--load_features", "--niter", 1]
    run_ok("train.py", *names, *flags, "--niter_decay", 0, "--no_html")


# -- the parts, against hand-made values -----------------------------------------------------


def test_instance_rows_by_hand() -> None:
    inst = np.array([[7, 7, 26001, 26001], [7, 7, 7, 33000]])
    features = np.where(inst == 7, 0.5, np.where(inst == 33000, -1.0, 0.25))[None]
    rows = instance_rows(
        np.tile(features, (1, 8, 1)), np.tile(inst, (8, 1)), instance_classes(inst)
    )
    expected = [[7, 0.5, 40 * 32 / 64], [26, 0.25, 16 * 32 / 64], [33, -1.0, 8 * 32 / 64]]
    np.testing.assert_allclose(rows, expected)


def test_classes_come_from_the_label_map() -> None:
    inst = np.array([[1, 1, 2], [1, 70000, 2]])
    label = np.array([[5, 5, 6], [4, 7, 6]])
    assert instance_classes(inst, label) == {1: 5, 2: 6, 70000: 7}


def test_classes_of_many_scenes_by_hand() -> None:
    """Against a loop; labels below zero, as an --ignore_label may be, included."""
    rng = np.random.default_rng(0)
    inst = rng.integers(0, 40, (20, 30)).astype(np.int32) * 1500
    label = rng.integers(-2, 5, inst.shape).astype(np.int32)
    found = instance_classes(inst, label)
    assert sorted(found) == np.unique(inst).tolist()
    for i, chosen in found.items():
        counts = Counter(label[inst == i].tolist())
        assert counts[chosen] == max(counts.values())


def test_class_features_are_encoded_per_instance_as_in_the_reference(
    toy_data: Path, tmp_path: Path
) -> None:
    write_run(tmp_path, "run", instance_feat=False, label_feat=True)
    run_ok(
        *("encode_features.py", "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1),
        *("--dataroot", toy_data, "--loadSize", 64, "--nThreads", 0),
    )
    inst = [np.asarray(Image.open(path)) for path in (toy_data / "train_inst").iterdir()]
    rows = np.load(tmp_path / "run" / "features.npy")
    assert len(rows) == sum(len(np.unique(one)) for one in inst)
    # and --style_from names one of these instances, or a class
    scene = next((toy_data / "train_inst").iterdir()).stem.replace("instanceIds", "labelIds")
    thing = int(np.unique(np.asarray(Image.open(next((toy_data / "train_inst").iterdir())))).max())
    for number in (thing, thing // 1000):
        run_ok(
            *("test.py", "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1),
            *("--dataroot", toy_data, "--loadSize", 64, "--nThreads", 0, "--how_many", 1),
            *("--style_from", f"{scene},{number}", "--results_dir", tmp_path / "results"),
        )


def test_clusters_are_the_groups() -> None:
    rng = np.random.default_rng(0)
    centres = {26: [[0.9, 0, 0], [-0.9, 0, 0], [0, 0.9, 0]], 24: [[0, 0, 0.5]]}
    rows = [
        [label, *(np.array(centre) + rng.normal(0, 0.01, 3)), 1.0]
        for label, group in centres.items()
        for number, centre in enumerate(group)
        for _ in range(20 + 5 * number)
    ]
    rows += [[26, 0.3, 0.3, 0.3, 0.4]] * 50  # too small to count
    styles = cluster(np.array(rows, np.float32), 3)
    np.testing.assert_allclose(styles[26], centres[26][::-1], atol=0.02)  # most frequent first
    assert len(styles[24]) == 3


def test_reference_clusters_are_read(tmp_path: Path) -> None:
    old = {0: [], 26: np.array([[0.1, 0.2, 0.3], [1, 2, 3]]), 7: np.ones((1, 3), np.float64)}
    np.save(tmp_path / "old.npy", old, allow_pickle=True)
    styles = load_styles(tmp_path / "old.npy", 3)
    assert sorted(styles) == [7, 26]
    np.testing.assert_allclose(styles[26], old[26])
    np.save(tmp_path / "new.npy", styles_to_rows(styles))
    again = load_styles(tmp_path / "new.npy", 3)
    assert all((again[label] == styles[label]).all() for label in styles)
    with pytest.raises(UserError, match="feat_num"):
        load_styles(tmp_path / "new.npy", 4)


def test_reference_rows_are_read(tmp_path: Path) -> None:
    """The 2018 code's features.npy: class -> a row per instance, feature and weight."""
    old = {7: np.array([[0.5, 0.25, 1, 2]]), 26: np.array([[1, 2, 3, 0.5], [3, 2, 1, 0.75]])}
    np.save(tmp_path / "features.npy", old, allow_pickle=True)
    expected = [[7, 0.5, 0.25, 1, 2], [26, 1, 2, 3, 0.5], [26, 3, 2, 1, 0.75]]
    np.testing.assert_array_equal(load_rows(tmp_path / "features.npy"), expected)


def test_files_of_the_numpy_of_2018_are_read(tmp_path: Path) -> None:
    """It wrote protocol 2, and the 2018 code empty arrays for classes without instances."""
    path, old = tmp_path / "old.npy", {0: np.zeros((0, 4)), 26: np.ones((2, 4))}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        pickle.dump(np.array(old, object), file, protocol=2)
    np.testing.assert_array_equal(load_rows(path), [[26, 1, 1, 1, 1]] * 2)
    np.testing.assert_array_equal(load_styles(path, 4)[26], old[26])


@pytest.mark.parametrize(
    "content",
    [
        {"car": np.ones((2, 3))},
        {26: np.ones((2, 3, 4))},
        {26: np.array([["a"]])},
        np.ones((2, 3, 4)),
    ],
    ids=["a name for a class", "a box of numbers", "text", "a box alone"],
)
def test_strange_feature_files_are_refused(content: object, tmp_path: Path) -> None:
    np.save(tmp_path / "strange.npy", content, allow_pickle=True)
    for load in (load_rows, lambda path: load_styles(path, 3)):
        with pytest.raises(UserError, match=r"strange\.npy: not a readable feature file"):
            load(tmp_path / "strange.npy")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickle_bomb_is_refused(tmp_path: Path) -> None:
    bomb = np.empty((), object)
    bomb[()] = {26: Bomb(tmp_path / "exploded")}
    np.save(tmp_path / "bomb.npy", bomb, allow_pickle=True)
    with pytest.raises(UserError, match=r"not a readable feature file .* --reencode"):
        load_styles(tmp_path / "bomb.npy", 3)
    assert not (tmp_path / "exploded").exists()
    np.load(tmp_path / "bomb.npy", allow_pickle=True)  # it would have gone off
    assert (tmp_path / "exploded").exists()


class Reduced:
    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


def test_bytes_of_a_pickle_are_not_followed_as_pointers(tmp_path: Path) -> None:
    """numpy's own types would take the flag that says whether they are of objects from the file."""
    here = {26: np.ones((2, 3))}
    make, _ = np.zeros(1).__reduce_ex__(5)
    kind, arguments, (*state, _) = np.dtype("O").__reduce__()
    lying = Reduced(kind, arguments, (*state, 0))
    with open(tmp_path / "pointers.npy", "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(Reduced(make, (id(here).to_bytes(8, sys.byteorder), lying, (), "C")), file)
    with pytest.raises(UserError, match=r"pointers\.npy: not a readable feature file"):
        load_styles(tmp_path / "pointers.npy", 3)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", pickle.dumps({1: 2}), b"x" * 1000])
def test_damaged_cluster_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.npy"):
        load_styles(tmp_path / "bad.npy", 3)


def test_random_styles_depend_on_seed_scene_and_instance() -> None:
    styles = {26: np.arange(1000)[:, None]}
    cases = [(0, "a", 26001), (1, "a", 26001), (0, "b", 26001), (0, "a", 26002)]
    found = {StyleChooser(styles, {}, k).choose({i: 26}, name)[i].item() for k, name, i in cases}
    assert len(found) == len(cases)


def test_paint_and_missing_classes() -> None:
    inst = np.array([[7, 26001], [33000, 26001]])
    chooser = StyleChooser({26: np.array([[1.0, 2.0]])}, {7: np.array([3.0, 4.0])}, seed=1)
    features = chooser.choose(instance_classes(inst), "scene")
    painted = paint(inst, features, 2)
    np.testing.assert_array_equal(painted, [[[3, 1], [0, 1]], [[4, 2], [0, 2]]])
    assert chooser.missing == {33}
    assert 26001 in chooser.choose(instance_classes(inst), os.fsdecode(b"not Unicode\xff"))


@pytest.mark.skipif(
    not (SHARED / "golden").is_dir() or not (SHARED / "cityscapes_sample").is_dir(),
    reason="no ../shared/golden or ../shared/cityscapes_sample",
)
def test_golden_features(tmp_path: Path) -> None:
    golden = np.load(SHARED / "golden" / "features_512p" / "features.npz")
    shutil.copytree(SHARED / "golden" / "features_512p" / "init", tmp_path / "ck" / "feat")
    data = tmp_path / "data"
    data.mkdir()
    for folder in (SHARED / "cityscapes_sample").iterdir():
        (data / folder.name).symlink_to(folder)
    for command in ("encode_features.py", "precompute_feature_maps.py"):
        run_ok(
            *(command, "--name", "feat", "--checkpoints_dir", tmp_path / "ck"),
            *("--dataroot", data, *str(golden["args"]).split(), "--gpu_ids", -1, "--nThreads", 0),
        )
    rows = np.load(tmp_path / "ck" / "feat" / "features.npy")
    np.testing.assert_allclose(rows, golden["rows"][:, 1:], atol=1e-5)
    for stem in set(golden) - {"rows", "args"}:
        found = np.asarray(Image.open(data / "train_feat" / f"{stem}.png")).astype(int)
        assert np.abs(found - golden[stem]).max() <= 1
