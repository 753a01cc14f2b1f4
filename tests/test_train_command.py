"""train.py on toy scenes: the files it writes, what each flag does, how bad input ends.

Most runs are made in this process, by the function that the command line calls; three are made
from the command line itself.
"""

import json
import math
import re
import urllib.error
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import TINY, one_line, run_command, run_ok, save_png
from PIL import Image

import train
from models.instance_maps import network_input
from models.losses import VGGLoss
from models.networks import define_D, define_G
from util.run.resume import Position, set_aside

EPOCH = ["--niter", 1, "--niter_decay", 0]
PLAIN = ["--serial_batches", "--no_flip", "--print_freq", 1, "--no_html"]
LOSSES = ["G_GAN", "G_GAN_Feat", "D_real", "D_fake"]


@pytest.fixture
def trained(call: Callable, tmp_path: Path, toy_data: Path) -> Callable[..., Path]:
    """trained(*flags, name=..., data=...): train the tiny networks and return the run's folder."""

    def run_training(*flags: object, name: str = "run", data: Path = toy_data) -> Path:
        where = ["--name", name, "--checkpoints_dir", tmp_path / "runs", "--dataroot", data]
        assert call(train.main, *where, *TINY, *flags) == 0
        return tmp_path / "runs" / name

    return run_training


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, net: str, epoch: str = "latest") -> dict[str, torch.Tensor]:
    return torch.load(run / f"{epoch}_net_{net}.pth", weights_only=True)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The command line, and the files it leaves -------------------------------------------------------


class Links(HTMLParser):
    """The local files that a page refers to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.files: list[Path] = []
        self.folder = page.parent
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.files += [
            self.folder / unquote(value) for name, value in attrs if name in ("src", "href")
        ]


@pytest.fixture(scope="module")
def whole_run(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Four epochs from the command line: the run's folder and what was printed."""
    pytest.importorskip("tensorboard", reason="needs requirements-test.txt")
    folder = tmp_path_factory.mktemp("runs")
    done = run_command(
        *("train.py", "--name", "city", "--checkpoints_dir", folder, "--dataroot", toy_data),
        *(*TINY, "--niter", 2, "--niter_decay", 2, "--print_freq", 2, "--display_freq", 4),
        *("--save_epoch_freq", 3, "--lr", 0.001, "--tf_log", "--nThreads", 1),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "city", done.stdout


def test_files_of_a_run(whole_run: tuple[Path, str]) -> None:
    run, _ = whole_run
    nets = {f"{epoch}_net_{net}.pth" for epoch in ("latest", "best", "3", "4") for net in "GD"}
    assert {path.name for path in run.iterdir()} == nets | {
        *("opt.txt", "opt.json", "loss_log.txt", "metrics.jsonl", "iter.txt", "latest_state.pth"),
        *("web", "logs", "validation.jsonl"),
    }
    assert equal(weights(run, "G"), weights(run, "G", "4"))
    assert not equal(weights(run, "G"), weights(run, "G", "3"))
    assert (run / "iter.txt").read_text().split() == ["5", "0"]
    assert list((run / "logs").glob("events.out.tfevents.*"))


def test_loss_log_and_printed_lines(whole_run: tuple[Path, str]) -> None:
    run, printed = whole_run
    header, *lines = (run / "loss_log.txt").read_text().splitlines()
    assert header.startswith("================ Training Loss (")
    form = re.compile(
        r"\(epoch: (\d+), iters: (\d+), time: \d+\.\d{3}\)" + r" (\w+): (\d+\.\d{3})" * 4
    )
    found = [form.fullmatch(line) for line in lines]
    assert all(found)
    assert [(int(m[1]), int(m[2])) for m in found] == [(e, i) for e in (1, 2, 3, 4) for i in (2, 4)]
    assert all(list(m.groups()[2::2]) == LOSSES for m in found)
    for line in lines:
        tail = re.search(re.escape(line) + r"  \[(.*)\]\n", printed)
        assert re.fullmatch(
            r"[\d.e+]+ iters/s, data [\d.]+ s, [\d.]+ GB, \d+:\d\d:\d\d left", tail[1]
        )
    assert "4 scenes, epoch 1 of 4, on cpu" in printed


def test_metrics_are_the_same_rows_in_json(whole_run: tuple[Path, str]) -> None:
    run, _ = whole_run
    lines = (run / "loss_log.txt").read_text().splitlines()[1:]
    for row, line in zip(rows(run), lines, strict=True):
        assert list(row) == ["epoch", "iters", "step", "time", "data_time", "lr", *LOSSES]
        values = " ".join(f"{name}: {row[name]:.3f}" for name in LOSSES)
        assert line.endswith(values)
        assert row["step"] == 4 * (row["epoch"] - 1) + row["iters"]
        assert 0 <= row["data_time"] <= row["time"]


def test_learning_rate_falls_over_the_decay(whole_run: tuple[Path, str]) -> None:
    by_epoch = {row["epoch"]: row["lr"] for row in rows(whole_run[0])}
    # full for niter epochs; the first decaying epoch still starts from the full rate
    assert by_epoch == pytest.approx({1: 0.001, 2: 0.001, 3: 0.001, 4: 0.0005})


def test_page_of_a_run(whole_run: tuple[Path, str]) -> None:
    run, _ = whole_run
    page = run / "web" / "index.html"
    links = Links(page)
    assert all(path.is_file() for path in links.files)
    images = {
        f"epoch{epoch:03d}_{name}.png"
        for epoch in (1, 2, 3, 4)
        for name in ("input_label", "synthesized_image", "real_image")
    }
    curves = {"loss_curves.png", "validation_curves.png"}
    assert images | curves | {"validation.html"} == {path.name for path in links.files}
    for name in images:
        with Image.open(run / "web" / "images" / name) as image:
            assert (image.size, image.mode) == ((64, 32), "RGB")
    assert 'http-equiv="refresh"' in page.read_text()


def test_options_of_a_run(whole_run: tuple[Path, str]) -> None:
    run, _ = whole_run
    record = json.loads((run / "opt.json").read_text())
    assert (record["ngf"], record["lr"], record["label_nc"]) == (4, 0.001, 35)
    assert record["command_line"].startswith("train.py --name city ")
    assert "\nngf: 4\n" in (run / "opt.txt").read_text()


# The first loss of every kind, by hand -----------------------------------------------------------


def read_map(data: Path, kind: str, batch: int = 1) -> torch.Tensor:
    """The first files of a kind: integers (B, 1, H, W), or images (B, 3, H, W) in [-1, 1]."""
    paths = sorted((data / f"train_{kind}").iterdir())[:batch]
    stack = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    if stack.ndim == 4:
        return stack.permute(0, 3, 1, 2).float() / 127.5 - 1
    return stack.int()[:, None]


def first_losses(run: Path, data: Path, batch: int = 1, **flags) -> dict[str, float]:
    """The losses of the first batch, in plain torch, with the weights of a run with --lr 0."""
    label_nc = flags.get("label_nc", 35)
    inst = None if flags.get("no_instance") else read_map(data, "inst", batch)
    label = read_map(data, "label" if label_nc else "A", batch)
    real = read_map(data, "img" if label_nc else "B", batch)
    x = network_input(label, inst, label_nc)
    norm = flags.get("norm", "instance")
    G = define_G(x.shape[1], 3, 4, "global", 1, 1, norm=norm)
    n_layers, num_D = flags.get("n_layers_D", 1), flags.get("num_D", 2)
    matching = not flags.get("no_ganFeat_loss")
    D = define_D(x.shape[1] + 3, 4, n_layers, norm, num_D, matching)
    G.load_state_dict(weights(run, "G"))
    D.load_state_dict(weights(run, "D"))

    with torch.no_grad():
        fake = G(x)
        on_fake, on_real = D(torch.cat([x, fake], 1)), D(torch.cat([x, real], 1))

        def gan(outputs: list, target: float) -> float:
            scores = [maps[-1] for maps in outputs]
            if flags.get("no_lsgan"):
                chances = [s.sigmoid() if target else 1 - s.sigmoid() for s in scores]
                return sum(-c.log().mean().item() for c in chances)
            return sum((s - target).square().mean().item() for s in scores)

        losses = {
            "G_GAN": gan(on_fake, 1.0),
            "D_real": gan(on_real, 1.0),
            "D_fake": gan(on_fake, 0.0),
        }
        if matching:
            distances = [
                F.l1_loss(f, r).item()
                for fs, rs in zip(on_fake, on_real)
                for f, r in zip(fs[:-1], rs[:-1])
            ]
            weight = 4 / (n_layers + 1) / num_D
            losses["G_GAN_Feat"] = flags.get("lambda_feat", 10) * weight * sum(distances)
    return losses


LOSS_FLAGS = {
    "defaults": {},
    "batch norm": {"norm": "batch"},
    "cross entropy": {"no_lsgan": True},
    "no feature matching": {"no_ganFeat_loss": True},
    "another discriminator": {"n_layers_D": 2, "num_D": 3},
    "another weight": {"lambda_feat": 2.5},
    "no instances": {"no_instance": True},
    "images to images": {"label_nc": 0},
    "images without instances": {"label_nc": 0, "no_instance": True, "no_lsgan": True},
    "batches": {"batch": 3},
    "batches under batch norm": {"batch": 2, "norm": "batch"},
}


@pytest.mark.parametrize("flags", LOSS_FLAGS.values(), ids=LOSS_FLAGS)
def test_losses_are_those_that_the_flags_ask_for(
    flags: dict, trained: Callable, own_data: Path
) -> None:
    if flags.get("label_nc") == 0:
        (own_data / "train_img").rename(own_data / "train_B")
        for path in (own_data / "train_label").iterdir():
            save_png(own_data / "train_A" / path.name, np.asarray(Image.open(path).convert("RGB")))
    if flags.get("no_instance"):
        for path in (own_data / "train_inst").iterdir():
            path.unlink()
    batch = flags.get("batch", 1)
    words = ["--lr", 0, "--batchSize", batch]
    for flag, value in flags.items():
        if flag != "batch":
            words += [f"--{flag}"] if value is True else [f"--{flag}", value]
    run = trained(*EPOCH, *PLAIN, *words, data=own_data)
    first = rows(run)[0]
    expected = first_losses(run, own_data, **flags)
    assert {key: first[key] for key in first if key[:2] in ("G_", "D_")} == pytest.approx(
        expected, rel=1e-4
    )
    iters = [min(n * batch, 4) for n in range(1, math.ceil(4 / batch) + 1)]
    assert [row["iters"] for row in rows(run)] == iters  # the partial last batch counts
    if flags.get("norm") == "batch":
        seen = weights(run, "G")["model.2.num_batches_tracked"]
        assert seen == len(iters)


# What other flags do ------------------------------------------------------------------------------


@pytest.fixture
def without_vgg_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """TINY's flags, also in the trained fixture, without --no_vgg_loss."""
    monkeypatch.setattr(f"{__name__}.TINY", [flag for flag in TINY if flag != "--no_vgg_loss"])


def test_vgg_loss_is_added(
    without_vgg_flag: None, trained: Callable, toy_data: Path, vgg_file: Path
) -> None:
    flags = ["--max_dataset_size", 1, "--lr", 0, "--lambda_feat", 3]
    run = trained(*EPOCH, *PLAIN, *flags, "--vgg_weights", vgg_file)
    (row,) = rows(run)
    assert list(row)[6:] == ["G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake"]
    x = network_input(read_map(toy_data, "label"), read_map(toy_data, "inst"), 35)
    net = define_G(36, 3, 4, "global", 1, 1)
    net.load_state_dict(weights(run, "G"))
    with torch.no_grad():
        distance = VGGLoss(str(vgg_file))(net(x), read_map(toy_data, "img"))
    assert row["G_VGG"] == pytest.approx(3 * distance.item(), rel=1e-4)


def test_missing_vgg_weights_without_a_network_name_both_flags(
    without_vgg_flag: None,
    refused: Callable,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    where = ["--checkpoints_dir", tmp_path / "runs", "--dataroot", toy_data]
    line = refused(train.main, *where, *TINY, *EPOCH)
    assert "no route to host" in line and "--vgg_weights" in line and "--no_vgg_loss" in line
    assert not files_of(tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [[], ["--recipe", "plus"], ["--instance_feat", "--n_downsample_E", "1"]], ids=" ".join
)
def test_compiled_training(flags: list, toy_data: Path, tmp_path: Path) -> None:
    """Compiled for this machine, the first step differs by no more than rounding."""
    losses = {}
    for name in ("plain", "compiled"):
        run_ok(
            *("train.py", *TINY, *EPOCH, *PLAIN, *flags, "--val_phase", "none"),
            *("--name", name, "--checkpoints_dir", tmp_path, "--dataroot", toy_data),
            *(["--compile"] if name == "compiled" else []),
            timeout=900,
        )
        losses[name] = rows(tmp_path / name)[0]
    names = [name for name in losses["plain"] if name[:2] in ("G_", "D_")]
    assert names and all(
        losses["compiled"][name] == pytest.approx(losses["plain"][name], rel=1e-3) for name in names
    )


def test_image_pool_shows_older_images_to_the_discriminator(trained: Callable) -> None:
    flags = [*PLAIN, "--lr", 0, "--niter", 4, "--niter_decay", 0]
    plain = rows(trained(*flags, name="plain"))
    pooled = rows(trained(*flags, "--pool_size", 2, name="pooled"))
    own = [row["D_fake"] for row in plain]
    for i, (a, b) in enumerate(zip(plain, pooled)):
        assert [a[name] for name in LOSSES[:3]] == pytest.approx([b[n] for n in LOSSES[:3]])
        shown = [j for j in range(i + 1) if own[j] == pytest.approx(b["D_fake"], rel=1e-5)]
        assert shown, "an image that was never generated"
    assert any(a["D_fake"] != pytest.approx(b["D_fake"], rel=1e-4) for a, b in zip(plain, pooled))


def test_first_step_of_adam_is_the_learning_rate(trained: Callable) -> None:
    flags = [*EPOCH, *PLAIN, "--max_dataset_size", 1]
    before = trained(*flags, "--lr", 0, name="before")
    after = trained(*flags, "--lr", 0.003, "--load_pretrain", before, name="after")
    assert [row["lr"] for row in rows(after)] == [0.003]
    for net, layer in (("G", "model.4.weight"), ("D", "scale1_layer1.0.weight")):
        change = (weights(after, net)[layer] - weights(before, net)[layer]).abs()
        assert change.max() <= 0.003 * 1.001
        assert change.median() == pytest.approx(0.003, rel=1e-2)


def test_beta1_reaches_adam(trained: Callable) -> None:
    flags = [*EPOCH, *PLAIN, "--max_dataset_size", 2]
    for beta in (0.5, 0.9):
        run = trained(*flags, "--beta1", beta, name=f"beta{beta}")
        state = torch.load(run / "latest_state.pth", weights_only=True)["model"]
        for optimizer in ("optimizer_G", "optimizer_D"):
            assert state[optimizer]["param_groups"][0]["betas"] == (beta, 0.999)
    low, high = (weights(run.with_name(f"beta{beta}"), "G") for beta in (0.5, 0.9))
    assert not equal(low, high)


def test_dropout_is_in_the_blocks(trained: Callable) -> None:
    state = weights(trained(*EPOCH, *PLAIN, "--use_dropout", "--max_dataset_size", 1), "G")
    assert "model.7.conv_block.6.weight" in state  # 5 without it


def test_debug_shows_every_step(trained: Callable) -> None:
    run = trained("--debug", "--max_dataset_size", 3)
    assert [(row["epoch"], row["iters"]) for row in rows(run)] == [(1, 1), (1, 2), (1, 3)]
    assert (run / "web" / "index.html").is_file()


def test_no_html_writes_no_page(trained: Callable) -> None:
    run = trained(*EPOCH, "--no_html", "--display_freq", 1, "--print_freq", 1)
    assert len(rows(run)) == 4 and not (run / "web").exists()


def test_a_batch_that_crosses_a_multiple_counts() -> None:
    at, shown = Position(), []
    for _ in range(50):
        at.advance(8)
        shown += [at.step] if at.passed(100) else []
    assert shown == [104, 200, 304, 400]


def test_frequencies(trained: Callable) -> None:
    flags = ["--niter", 3, "--niter_decay", 0, "--print_freq", 5, "--display_freq", 8]
    run = trained(*flags, "--save_epoch_freq", 1, "--keep_checkpoints", 2)
    assert [row["step"] for row in rows(run)] == [5, 10]
    shown = {path.name for path in (run / "web" / "images").iterdir()}
    assert {name[:8] for name in shown} == {"epoch002"}
    assert {path.name for path in run.glob("*_net_G.pth")} == {
        *("latest_net_G.pth", "best_net_G.pth", "2_net_G.pth", "3_net_G.pth"),
    }


@pytest.mark.parametrize(("epochs", "named"), [("1", "epoch 1"), ("10 2", "epochs 2, 10")])
def test_kept_epochs_are_named(epochs: str, named: str, tmp_path: Path, capsys) -> None:
    for epoch in epochs.split():
        (tmp_path / f"{epoch}_net_G.pth").touch()
    set_aside(tmp_path)
    assert f"weights of {named} stay until" in capsys.readouterr().out


def test_a_run_that_replaces_another_keeps_its_own_epochs(
    trained: Callable, capsys: pytest.CaptureFixture
) -> None:
    """However late the epochs of the replaced run are."""
    flags = ["--niter_decay", 0, "--no_html", "--val_phase", "none", "--save_epoch_freq", 1]
    run = trained("--niter", 3, *flags, "--keep_checkpoints", 2)
    capsys.readouterr()
    names = "web/index.html", "logs/events.out.tfevents.1", "wandb_id.txt"
    stale = [run / name for name in names]
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    run = trained("--niter", 1, *flags, "--keep_checkpoints", 1, "--seed", 1)
    assert not any(path.exists() for path in stale)
    assert "its weights of epochs 2, 3 stay until training reaches them" in capsys.readouterr().out
    assert {path.name for path in run.glob("*_net_G.pth")} == {
        *("latest_net_G.pth", "1_net_G.pth", "2_net_G.pth", "3_net_G.pth", "replaced_net_G.pth"),
    }
    assert equal(weights(run, "G", "1"), weights(run, "G"))
    assert not equal(weights(run, "G", "2"), weights(run, "G"))
    trained("--niter", 3, *flags, "--keep_checkpoints", 2, "--continue_train", "--seed", 1)
    epochs = {path.name.split("_")[0] for path in run.glob("*_net_G.pth")}
    assert epochs == {"latest", "2", "3", "replaced"}
    assert equal(weights(run, "G", "3"), weights(run, "G"))


def test_end_of_training_is_always_saved(trained: Callable) -> None:
    run = trained("--niter", 2, "--niter_decay", 1, "--no_html")
    names = ("latest", "best", "3")
    assert {path.name for path in run.glob("*_net_D.pth")} == {f"{n}_net_D.pth" for n in names}


def test_verbose_prints_the_networks(trained: Callable, capsys: pytest.CaptureFixture) -> None:
    trained(*EPOCH, *PLAIN, "--verbose", "--max_dataset_size", 1)
    printed = capsys.readouterr().out
    assert "GlobalGenerator" in printed and "MultiscaleDiscriminator" in printed


def test_a_flag_without_effect_is_noted(trained: Callable, capsys) -> None:
    trained(*EPOCH, *PLAIN, "--max_dataset_size", 1, "--n_blocks_local", 1)
    expected = "note: --n_blocks_local has no effect without --netG local"
    assert expected in capsys.readouterr().out.splitlines()


def test_same_seed_same_weights(trained: Callable) -> None:
    flags = [*EPOCH, "--no_html", "--resize_or_crop", "scale_width_and_crop", "--fineSize", 16]
    first = weights(trained(*flags, name="first"), "G")
    assert equal(weights(trained(*flags, name="again"), "G"), first)
    assert not equal(weights(trained(*flags, "--seed", 1, name="other"), "G"), first)


def test_sizes_that_are_not_multiples_are_padded(trained: Callable) -> None:
    run = trained(
        *(*EPOCH, "--loadSize", 50, "--n_downsample_global", 3, "--max_dataset_size", 1),
        *("--display_freq", 1),
    )
    with Image.open(run / "web" / "images" / "epoch001_synthesized_image.png") as image:
        assert image.size == (50, 25)


# Bad input ----------------------------------------------------------------------------------------


def damage_label(path: Path, value: int) -> None:
    label = np.array(Image.open(path))
    label[0, :5] = value
    save_png(path, label)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def second(data: Path, kind: str) -> Path:
    return sorted((data / f"train_{kind}").iterdir())[1]


def shrink(path: Path) -> None:
    Image.open(path).resize((32, 16)).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BAD_DATA: dict[str, tuple[Callable[[Path], object], list, list[str]]] = {
    "missing folder": (
        lambda data: (data / "train_inst").rename(data / "inst"),
        [],
        ["train_inst", "no folder"],
    ),
    "missing partner": (
        lambda data: second(data, "img").unlink(),
        [],
        ["no image for", "toytown_000001_000019_gtFine_labelIds.png"],
    ),
    "sizes differ": (
        lambda data: shrink(second(data, "inst")),
        [],
        ["is 32x16", "is 64x32", "toytown_000001"],
    ),
    "batch of several sizes": (
        lambda data: [shrink(second(data, kind)) for kind in ("label", "inst", "img")],
        ["--batchSize", 2, "--resize_or_crop", "none"],
        ["--batchSize 2", "have several sizes", "scale_width_and_crop and a --fineSize"],
    ),
    "batch too large": (
        lambda data: None,
        ["--batchSize", 5],
        ["--batchSize 5", "4 scenes; give --batchSize 4"],
    ),
    "crop too large": (
        lambda data: None,
        ["--resize_or_crop", "crop", "--fineSize", 40],
        ["--fineSize 40", "64x32"],
    ),
}

BAD_FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated photograph": (
        lambda data: truncate(second(data, "img")),
        ["toytown_000001_000019_leftImg8bit.png", "cannot be read"],
    ),
    "RGB label map": (
        lambda data: Image.open(second(data, "label")).convert("RGB").save(second(data, "label")),
        ["toytown_000001_000019_gtFine_labelIds.png", "RGB"],
    ),
    "label 255": (
        lambda data: damage_label(second(data, "label"), 255),
        ["toytown_000001_000019_gtFine_labelIds.png", "255 (5 pixels)", "--label_nc 35"],
    ),
}


@pytest.mark.parametrize("damage, flags, named", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused_before_anything_is_written(
    damage: Callable, flags: list, named: list[str], refused: Callable, own_data: Path
) -> None:
    damage(own_data)
    runs = own_data.parent / "runs"
    line = refused(
        train.main, "--dataroot", own_data, "--checkpoints_dir", runs, *TINY, *EPOCH, *flags
    )
    assert all(word in line for word in named)
    assert not runs.exists()


@pytest.mark.parametrize("damage, named", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_ends_training_without_a_checkpoint(
    damage: Callable, named: list[str], refused: Callable, own_data: Path
) -> None:
    damage(own_data)
    runs = own_data.parent / "runs"
    line = refused(train.main, "--dataroot", own_data, "--checkpoints_dir", runs, *TINY, *EPOCH)
    assert all(word in line for word in named)
    assert not [path for path in files_of(runs) if path.suffix in (".pth", ".new", ".part", ".tmp")]


def test_bad_file_ends_the_command_line_too(own_data: Path) -> None:
    damage_label(second(own_data, "label"), 35)
    done = run_command(
        *("train.py", "--dataroot", own_data, "--checkpoints_dir", own_data.parent / "runs"),
        *(*TINY, *EPOCH, "--nThreads", 2),
    )
    assert f"{second(own_data, 'label')}: label 35 (5 pixels)" in one_line(done)


@pytest.mark.parametrize("where", ["checkpoints_dir", "run"])
def test_checkpoint_folder_that_cannot_be_made(
    where: str, refused: Callable, toy_data: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "runs" if where == "checkpoints_dir" else tmp_path / "runs" / "city"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where a folder should be")
    line = refused(
        *(train.main, "--name", "city", "--checkpoints_dir", tmp_path / "runs"),
        *("--dataroot", toy_data, *TINY, *EPOCH),
    )
    assert "cannot be written" in line and "--checkpoints_dir" in line
    assert blocked.read_text() == "a file where a folder should be"


def test_missing_pretrained_weights(refused: Callable, toy_data: Path, tmp_path: Path) -> None:
    line = refused(
        *(train.main, "--checkpoints_dir", tmp_path / "runs", "--dataroot", toy_data),
        *(*TINY, *EPOCH, "--load_pretrain", tmp_path / "none"),
    )
    assert f"{tmp_path / 'none'}: no such run folder" in line
    assert not files_of(tmp_path / "runs")


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--ngf", 8], ["model.1.weight is [4, 36, 7, 7], expected [8, 36, 7, 7]"]),
        (["--ndf", 8], ["net_D.pth", "scale0_layer0.0.weight"]),
        (["--n_downsample_global", 2], ["net_G.pth", "model.7.conv_block.1 is unknown"]),
        (["--n_blocks_global", 2], ["net_G.pth", "model.8 is unknown"]),
        (["--no_ganFeat_loss"], ["net_D.pth", "scale0_layer0.0 is unknown"]),
    ],
    ids=lambda value: value[0].split()[0],
)
def test_pretrained_weights_of_another_architecture(
    flags: list, named: list[str], whole_run: tuple, refused: Callable, toy_data: Path, tmp_path
) -> None:
    line = refused(
        *(train.main, "--checkpoints_dir", tmp_path / "runs", "--dataroot", toy_data),
        *(*TINY, *EPOCH, "--load_pretrain", whole_run[0], *flags),
    )
    assert all(word in line for word in named)
    assert not files_of(tmp_path / "runs")


@pytest.mark.parametrize("content", [b"PK\x03\x04 half a file", bytes(2000)])  # a power cut's
def test_damaged_weights_are_named(
    content: bytes, refused: Callable, toy_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "latest_net_G.pth").write_bytes(content)
    line = refused(
        *(train.main, "--checkpoints_dir", tmp_path / "runs", "--dataroot", toy_data),
        *(*TINY, *EPOCH, "--load_pretrain", tmp_path / "old"),
    )
    assert "latest_net_G.pth" in line and "not a readable checkpoint" in line
    assert "weights_only" not in line  # torch's advice to run the file's code
