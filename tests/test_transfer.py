"""Other people's weights: classes and channels mapped, parts frozen; scenes augmented."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, one_line, run_command, run_ok, thorough
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.augment import AUGMENTATIONS, Augmentation
from models import load_generator
from models.build import build_generator
from models.transfer import frozen_layers
from options.train_options import TrainOptions

ONCE = ["--niter", 1, "--niter_decay", 0, "--no_html", "--val_phase", "none"]
TWO_BLOCKS = ["--n_blocks_global", 2]


def copy_scenes(toy_data: Path, root: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A data set of the same scenes, with changed label maps."""
    for path in toy_data.rglob("*.png"):
        copy = root / path.relative_to(toy_data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        array = np.asarray(Image.open(path))
        Image.fromarray(change(array) if "_label" in copy.parent.name else array).save(copy)
    return root


@pytest.fixture
def ids(toy_data: Path, tmp_path: Path) -> Path:
    """A data set with Cityscapes' 35 classes."""
    return copy_scenes(toy_data, tmp_path / "ids", lambda label: label)


@pytest.fixture
def flipped(toy_data: Path, tmp_path: Path) -> Path:
    """The same with the classes' order reversed; instance maps are left as they are."""
    return copy_scenes(toy_data, tmp_path / "flipped", lambda label: 34 - label)


@pytest.fixture
def base(ids: Path) -> Path:
    """The folder of a run on ids."""
    train(ids, "base")
    return ids.parent / "runs" / "base"


def train(root: Path, name: str, *flags: object) -> str:
    where = ["--dataroot", root, "--checkpoints_dir", root.parent / "runs", "--name", name]
    output = run_ok("train.py", *TINY, *ONCE, *where, *flags)
    return output


def weights(root: Path, name: str, net: str = "G") -> dict[str, torch.Tensor]:
    return torch.load(root.parent / "runs" / name / f"latest_net_{net}.pth")


@pytest.mark.parametrize("net", [*thorough("global"), "local"])
def test_classes_in_another_order_train_the_same(ids: Path, flipped: Path, net: str) -> None:
    """One run starts from classes in order, one from reversed classes that are mapped: their
    networks differ only in the order of the first layers' columns. The local enhancer's upsampling
    has as many output channels as there are maps, in a place like the first layer's."""
    small = ["--n_blocks_local", 1, "--netG", net, *(["--ngf", 36] if net == "local" else [])]
    train(ids, "base", *small)
    pretrained = ["--load_pretrain", ids.parent / "runs" / "base", *small, "--lr", 0]
    train(ids, "same", *pretrained)
    pairs = ",".join(f"{34 - k}={k}" for k in range(35))
    log = train(flipped, "mapped", *pretrained, "--map_classes", pairs)
    assert "G: model.1.weight: 35 class + 1 edges -> 35 class + 1 edges" in log
    for name in ("G", "D"):
        same, mapped = weights(ids, "same", name), weights(flipped, "mapped", name)
        moved = 0
        for layer, value in same.items():
            if not torch.equal(value, mapped[layer]):
                moved += 1
                assert torch.equal(value[:, :35].flip(1), mapped[layer][:, :35])
                assert torch.equal(value[:, 35:], mapped[layer][:, 35:])
        assert moved == (2 if (name, net) != ("G", "global") else 1)


def test_fewer_classes_by_name_and_new_ones_from_the_mean(ids: Path, base: Path) -> None:
    where = ["--dataroot", ids, "--checkpoints_dir", ids.parent / "runs", "--name", "new"]
    more = [*where, "--load_pretrain", base, "--label_nc", 40, "--lr", 0]
    refusal = one_line(run_command("train.py", *TINY, *ONCE, *more))
    assert "--label_nc 35, this one 40" in refusal and "--map_classes" in refusal
    unknown = one_line(run_command("train.py", *TINY, *ONCE, *more, "--map_classes", "boat=3"))
    assert "unknown class 'boat'" in unknown
    train(ids, "new", *more[6:], "--map_classes", "car=3,road=0,7=1")
    old, new = weights(ids, "base")["model.1.weight"], weights(ids, "new")["model.1.weight"]
    assert new.shape[1] == 41
    for ours, theirs in ((3, 26), (0, 7), (1, 7), (-1, -1)):
        assert torch.equal(new[:, ours], old[:, theirs])
    torch.testing.assert_close(new[:, 30], old[:, :35].mean(1))
    train(ids, "same", *more[6:8], "--lr", 0, "--map_classes", "26=26")  # all others are new
    new = weights(ids, "same")["model.1.weight"]
    assert torch.equal(new[:, 26], old[:, 26])
    torch.testing.assert_close(new[:, 30], old[:, :35].mean(1))


@pytest.mark.parametrize("flags", [[], *thorough(["--no_ganFeat_loss"])])
def test_every_scale_of_the_discriminator_sees_the_classes_in_order(
    ids: Path, flipped: Path, flags: list
) -> None:
    train(ids, "base", *flags)
    pairs = ",".join(f"{34 - k}={k}" for k in range(35))
    pretrained = ["--load_pretrain", ids.parent / "runs" / "base", "--lr", 0]
    train(flipped, "flipped", *flags, *pretrained, "--map_classes", pairs)
    old, new = weights(ids, "base", "D"), weights(ids, "flipped", "D")
    first = [name for name, weight in old.items() if weight.ndim == 4 and weight.shape[1] == 39]
    assert len(first) == 2
    for name in first:
        assert torch.equal(new[name][:, :35], old[name][:, :35].flip(1)), name


@pytest.mark.thorough
def test_labels_in_place_of_images_start_fresh(ids: Path) -> None:
    """And the reverse; the weights that read them would otherwise stay zero, or equal, forever."""
    for phase in ("train", "test"):
        shutil.copytree(ids / f"{phase}_img", ids / f"{phase}_A")
        shutil.copytree(ids / f"{phase}_img", ids / f"{phase}_B")
    rgb = ["--label_nc", 0, "--no_instance"]
    train(ids, "rgb", *rgb)
    log = train(ids, "labels", "--load_pretrain", ids.parent / "runs" / "rgb", "--lr", 0)
    assert "3 input -> 35 class + 1 edges" in log
    train(ids, "back", *rgb, "--load_pretrain", ids.parent / "runs" / "labels", "--lr", 0)
    for name in ("labels", "back"):
        first = weights(ids, name)["model.1.weight"][:, :3]
        assert (first != first[:, :1]).any()
    where = ["--dataroot", ids, "--checkpoints_dir", ids.parent / "runs", "--name", "x"]
    mapped = [*rgb, "--load_pretrain", ids.parent / "runs" / "labels", "--map_classes", "0=1"]
    refusal = one_line(run_command("train.py", *TINY, *ONCE, *where, *mapped))
    assert "no classes to map" in refusal


def test_changed_upsampling_is_named(ids: Path, base: Path) -> None:
    pretrained = ["--load_pretrain", base]
    assert "--upsample transpose -> nearest" in train(
        ids, "n", *pretrained, "--upsample", "nearest"
    )
    assert "--upsample transpose" not in train(ids, "same", *pretrained)


@pytest.mark.thorough
def test_changed_normalization_is_named(ids: Path) -> None:
    """Batch and channel normalization have weights of the same names and shapes."""
    train(ids, "base", "--norm", "batch")
    pretrained = ["--load_pretrain", ids.parent / "runs" / "base", "--norm"]
    assert "--norm batch -> channel" in train(ids, "channel", *pretrained, "channel")
    assert "--norm" not in train(ids, "same", *pretrained, "batch")


def test_other_channels_and_conditions_start_without_effect(ids: Path, base: Path) -> None:
    """A new condition changes nothing at first: G generates the same image as before."""
    for phase in ("train", "test"):
        folder = ids / f"{phase}_cond"
        folder.mkdir()
        for path in (ids / f"{phase}_label").iterdir():
            np.save(folder / f"{path.stem}.npy", np.random.rand(32, 64).astype(np.float32))
    pretrained = ["--load_pretrain", base, "--lr", 0]
    log = train(ids, "cond", *pretrained, "--cond_nc", 1, "--cond_range", "0,1")
    assert "35 class + 1 edges -> 35 class + 1 edges + 1 cond" in log
    rng = np.random.default_rng(0)
    label = rng.integers(0, 35, (32, 64), dtype=np.uint8)
    before = load_generator(base)(label, label)
    cond = rng.random((32, 64), dtype=np.float32)
    after = load_generator(ids.parent / "runs" / "cond")(label, label, cond=cond)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("upsample", ["transpose", *thorough("nearest")])
def test_icnr_continues_from_other_upsampling_without_a_difference(
    ids: Path, upsample: str
) -> None:
    features = ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]
    train(ids, "base", "--upsample", upsample, *features)
    base = ids.parent / "runs" / "base"
    label = np.random.default_rng(0).integers(0, 35, (32, 64), dtype=np.uint8)
    feat = torch.rand(3, 32, 64)
    before = load_generator(base)(label, label, feat)
    if upsample == "transpose":  # as the 2018 code leaves a run
        (base / "opt.json").unlink()
    log = train(ids, "next", "--load_pretrain", base, "--upsample", "icnr", *features, "--lr", 0)
    assert "G: model.8.weight: 3x3 -> 4x4, which computes the same" in log
    assert "E: model.7.weight: 3x3 -> 4x4" in log and "starts fresh" not in log
    after = load_generator(ids.parent / "runs" / "next")(label, label, feat)
    assert np.abs(before.astype(int) - after).max() <= 1


def test_noise_starts_without_effect_and_then_tells_instances_apart(ids: Path, base: Path) -> None:
    pretrained = ["--load_pretrain", base, "--instance_noise", 3]
    log = train(ids, "still", *pretrained, "--lr", 0)
    assert "35 class + 1 edges -> 35 class + 1 edges + 3 noise" in log
    train(ids, "noise", *pretrained, "--lr", 0.01)
    label = np.random.default_rng(0).integers(0, 35, (32, 64), dtype=np.uint8)
    before, still, noise = (
        load_generator(ids.parent / "runs" / name) for name in ("base", "still", "noise")
    )
    np.testing.assert_array_equal(before(label, label), still(label, label))
    moved = label + np.uint16(1)  # the same edges, other ids
    np.testing.assert_array_equal(still(label, label), still(label, moved))
    assert (noise(label, label) != noise(label, moved)).any()


def test_the_image_of_a_grey_run_starts_as_the_mean(ids: Path, base: Path) -> None:
    for path in ids.glob("*_img/*"):
        Image.open(path).convert("L").save(path)
    pretrained = ["--load_pretrain", base, "--lr", 0]
    log = train(ids, "grey", *pretrained, "--output_nc", 1)
    assert "3 -> 1 output channels" in log
    last = [layer for layer in weights(ids, "base") if layer.endswith("weight")][-1]
    old, new = weights(ids, "base")[last], weights(ids, "grey")[last]
    torch.testing.assert_close(new, old.mean(0, keepdim=True))


@pytest.mark.thorough
def test_frozen_parts_stay_as_they_were(toy_data: Path, tmp_path: Path) -> None:
    where = ["--dataroot", toy_data, "--checkpoints_dir", tmp_path]
    features = ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]
    runs = {"base": [], "all": [], "frozen": ["--freeze", "down,blocks,E"]}
    for name, flags in runs.items():
        start = ["--load_pretrain", tmp_path / "base"] if name != "base" else []
        given = [*TINY, *ONCE, *where, *features, "--name", name, *start, *flags]
        run_ok("train.py", *given)
    states = {
        (name, net): torch.load(tmp_path / name / f"latest_net_{net}.pth")
        for name in runs
        for net in "GE"
    }
    for net in "GE":
        kept = {
            layer
            for layer, value in states["frozen", net].items()
            if torch.equal(value, states["base", net][layer])
        }
        trained = {
            layer
            for layer, value in states["all", net].items()
            if layer.endswith("weight") and not torch.equal(value, states["base", net][layer])
        }
        heads = {layer.split(".")[1] for layer in trained - kept}
        assert (heads == set()) if net == "E" else (heads and trained & kept)
        assert all(int(head) > 6 for head in heads), heads  # after the one residual block
    refusal = one_line(
        run_command("train.py", *TINY, *where, "--name", "x", "--freeze", "down,blocks,up")
    )
    assert "leaves nothing of G to train" in refusal


def test_untrained_parts_cannot_be_frozen(ids: Path, base: Path) -> None:
    where = ["--dataroot", ids, "--checkpoints_dir", ids.parent / "runs", "--name", "x"]
    refusals = {
        "lacks E (no": ["E", "--instance_feat", "--nef", 4, "--n_downsample_E", 1],
        "lacks G: model1_1.1.weight": ["down", "--netG", "local", "--ngf", 2],
        "its new noise channels": ["down,blocks", "--instance_noise", 3],
    }
    for expected, flags in refusals.items():
        done = run_command(
            *("train.py", *TINY, *ONCE, *where, "--load_pretrain", base, "--freeze", *flags)
        )
        assert expected in one_line(done)


def test_a_run_of_the_2018_code_continues_with_newer_flags(ids: Path, base: Path) -> None:
    """It has no opt.json, and none of the newer flags."""
    (base / "opt.json").unlink()
    start = ["--load_pretrain", base, "--recipe", "plus", "--norm", "instance"]
    start += ["--instance_mean_D", "--lambda_latent", 5]
    log = train(ids, "next", *start, "--upsample", "icnr", "--lr", 0)
    assert "starts fresh: Q, which --lambda_latent trains" in log
    assert "35 class + 1 edges -> 35 class + 1 edges + 3 noise" in log
    assert "35 class + 1 edges + 3 image -> 35 class + 1 edges + 3 image + 3 means" in log
    for name in ("G", "D"):
        for layer, value in weights(ids, "base", name).items():
            if not layer.startswith("model.8."):  # the upsampling
                new = weights(ids, "next", name)[layer]
                assert torch.equal(new[:, : value.shape[1]] if value.ndim > 1 else new, value)
    assert "--upsample transpose -> nearest" in train(ids, "nearest", *start)


def test_an_interrupted_first_save_is_loaded_completely(ids: Path, base: Path) -> None:
    """By a kill after its marker was written, before its files were renamed."""
    names = [path.name for path in base.glob("latest*")]
    for name in names:
        (base / name).rename(base / f"{name}.new")
    (base / "save_complete.txt").write_text("".join(f"{name}.new\t{name}\n" for name in names))
    assert "starts fresh" not in train(ids, "next", "--load_pretrain", base)


@pytest.mark.thorough
def test_parts_without_residual_blocks(toy_data: Path, tmp_path: Path) -> None:
    """Upsampling is "up" even so; if nothing is left to train, the error is one line."""
    flags = ["--n_blocks_global", 0, "--name", "run"]
    where = ["--dataroot", toy_data, "--checkpoints_dir", tmp_path]
    run_ok("train.py", *TINY, *ONCE, *where, *flags)
    opt = TrainOptions().parse([*map(str, [*TINY, *where, *flags])])
    for part in ("down", "up"):
        netG = build_generator(opt)
        frozen = {p for layer in frozen_layers(netG, None, [part]) for p in layer.parameters()}
        trained = {name.split(".")[1] for name, p in netG.named_parameters() if p not in frozen}
        assert trained == ({"7", "11"} if part == "down" else {"1", "4"})
    more = ["--name", "x", "--load_pretrain", tmp_path / "run", "--freeze", "down,up"]
    refusal = one_line(run_command("train.py", *TINY, *ONCE, *where, *flags, *more))
    assert "--freeze down,up: nothing is left to train" in refusal


# -- augmentation ----------------------------------------------------------------------------------


def dataset(root: Path, *names: str, ignore: int | None = 255) -> AlignedDataset:
    augment = Augmentation(names, ignore, 35) if names else None
    return AlignedDataset(
        *(root, "train", 35, Geometry("none", flip=False)), ignore_label=ignore, augment=augment
    )


@pytest.mark.parametrize("names", [AUGMENTATIONS, ("rotate",), ("scale",), ("shift",), ("flip_v",)])
def test_ids_stay_ids_and_maps_stay_together(toy_data: Path, names: tuple[str, ...]) -> None:
    plain, changed = dataset(toy_data)[0], dataset(toy_data, *names)
    known = set(zip(plain["label"].flatten().tolist(), plain["inst"].flatten().tolist()))
    seen = 0
    for epoch in range(6):
        item = changed[epoch, 0]
        for kind in ("label", "inst", "image"):
            assert item[kind].dtype == plain[kind].dtype
            assert item[kind].shape == plain[kind].shape
        pairs = set(zip(item["label"].flatten().tolist(), item["inst"].flatten().tolist()))
        assert pairs <= known | {(255, 0)}
        assert item["image"].min() >= -1 and item["image"].max() <= 1
        again = changed[epoch, 0]
        assert all(torch.equal(item[kind], again[kind]) for kind in ("label", "inst", "image"))
        seen += not torch.equal(item["label"], plain["label"])
    assert seen > 1


def test_rotation_follows_its_formula(toy_data: Path) -> None:
    """Against the rotation's formula at three pixels of a map that encodes positions."""
    rows, columns = np.mgrid[0:40, 0:60].astype(np.float32)
    item = {"cond": torch.from_numpy(np.stack([rows, columns]) / 100)}
    augment = Augmentation(("rotate", "scale", "shift"), None, 0)
    got = augment(item, random.Random(4))["cond"].numpy() * 100
    matrix, shift = augment._sample_affine(random.Random(4))
    middle = np.array([19.5, 29.5])
    for y, x in ((19, 29), (10, 40), (25, 15)):
        expected = matrix @ (np.array([y, x]) - middle) + middle + shift * (40, 60)
        np.testing.assert_allclose(got[:, y, x], expected, atol=0.01)
    factor = np.linalg.det(matrix) ** -0.5
    assert factor != 1 and 1 / 1.25 <= factor <= 1.25
    rotation = matrix * factor
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-9)


def test_colours_are_clipped_only_to_the_range_of_the_image() -> None:
    """Numbers outside --output_range lie beyond [-1, 1], and stay there."""
    augment = Augmentation(("color",), None, 35)
    for limit in (1.0, 3.0):
        image = torch.linspace(-limit, limit, 300).reshape(3, 10, 10)
        changed = [augment({"image": image}, random.Random(n))["image"] for n in range(8)]
        assert (torch.stack(changed).min(), torch.stack(changed).max()) == (-limit, limit)
        assert all(abs(one - image).max() <= 0.2 * limit + 0.2 for one in changed)


def test_augmented_training_resumes(toy_data: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--no_html"]
    flags += ["--val_phase", "none", "--ignore_label", 255, "--augment", ",".join(AUGMENTATIONS)]
    epochs = ["--niter", 2, "--niter_decay", 0]
    run_ok("train.py", *flags, "--name", "whole", *epochs)
    first = ["--niter", 1, "--niter_decay", 0, "--nThreads", 2]
    run_ok("train.py", *flags, "--name", "half", *first)
    run_ok("train.py", *flags, "--name", "half", *epochs, "--continue_train")
    whole, half = (torch.load(tmp_path / n / "latest_net_G.pth") for n in ("whole", "half"))
    assert all(torch.equal(whole[name], half[name]) for name in whole)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (TWO_BLOCKS, ["--n_blocks_local", 2], "; --n_blocks_global was 2, now 1: give"),
        (TWO_BLOCKS, [*TWO_BLOCKS, "--use_dropout"], "; --use_dropout was False, now True: give"),
        ([], ["--use_dropout"], "; --use_dropout was False, now True: give"),
        ([], ["--netG", "local"], "; --ngf was 4, which --netG local continues with --ngf 2"),
        *thorough(
            (["--netG", "local"], [], "; --netG was local, now global: give"),
            (["--no_ganFeat_loss"], [], "; --no_ganFeat_loss was True, now False: give"),
        ),
    ],
)
def test_flags_that_give_other_layers_are_named(
    before: list, now: list, expected: str, toy_data: Path, tmp_path: Path
) -> None:
    def flags(name: str) -> list:
        return ["--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", name, *TINY, *ONCE]

    run_ok("train.py", *flags("base"), *before, "--max_dataset_size", 1)
    own = [*flags("own"), *now, "--load_pretrain", tmp_path / "base"]
    assert expected in one_line(run_command("train.py", *own))
    (tmp_path / "base" / "opt.json").unlink()
    assert "; check the flags" in one_line(run_command("train.py", *own))


def test_refused(toy_data: Path, tmp_path: Path) -> None:
    where = [*TINY, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "x"]
    refusals = {
        "give their label with --ignore_label": ["--augment", "rotate"],
        "expected some of flip_v, rotate": ["--augment", "turn"],
        "expected some of down, blocks, up, E": ["--freeze", "D"],
        "--map_classes needs --load_pretrain": ["--map_classes", "1=2"],
        "--freeze E: no encoder is trained": ["--freeze", "E", "--load_pretrain", tmp_path],
        "give --load_pretrain DIR": ["--freeze", "down"],
        "has no weights to keep": ["--freeze", "down", "--continue_train"],
        "nowhere: no such run folder": ["--load_pretrain", tmp_path / "nowhere"],
        "gone: no such run folder": [
            *("--load_pretrain", tmp_path / "gone", "--label_nc", 36, "--map_classes", "car=1")
        ],
    }
    for expected, flags in refusals.items():
        assert expected in one_line(run_command("train.py", *where, *flags))
