"""Values that are not finite stop training before anything is overwritten."""

import math
from pathlib import Path

import pytest
import torch
from conftest import thorough
from trainer import Training, outcome, train

from util.errors import UserError
from util.run.checkpoints import load_file
from util.run.watch import Watch

STEPS = ["--print_freq", 1, "--save_latest_freq", 1]


class Poison:
    """From this step on, the photographs that the model is given are NaN."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        from models.pix2pixHD_model import Pix2PixHDModel

        original, count = Pix2PixHDModel.step, 0

        def step(model, batch, weight=1.0):
            nonlocal count
            count += 1
            if count >= self.step:
                batch["image"] = torch.full_like(batch["image"], math.nan)
            return original(model, batch, weight)

        Pix2PixHDModel.step = step


def finite(folder: Path) -> bool:
    files = [load_file(path) for path in folder.glob("*_net_*.pth")]
    return bool(files) and all(v.isfinite().all() for state in files for v in state.values())


@pytest.mark.parametrize("flags", [["--nThreads", 1], *thorough([], ["--amp", "bf16"])])
def test_nan_stops_with_step_losses_and_files(flags, toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *STEPS, "--niter", 3, "--serial_batches", *flags]
    training = Training(tmp_path / "run", *flags, prepare=Poison(6))
    assert training.end() == 2
    last = training.output().splitlines()[-1]
    assert last.startswith("error: step 6: a loss or gradient is not finite")
    second = sorted((toy_data / "train_label").iterdir())[1]  # of the second epoch
    assert str(second) in last and "G_GAN" in last and "D_real nan" in last
    assert "Traceback" not in training.output()
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["step"] == 5
    assert finite(tmp_path / "run")
    assert "continuing" in train(tmp_path / "run", *flags, "--niter_decay", 0, "--continue_train")


def test_nan_between_saves_is_not_saved(toy_data, tmp_path):
    """Even if nothing is checked between two saves, the second is not made."""
    flags = ["--dataroot", toy_data, "--niter", 3, "--save_epoch_freq", 1]
    training = Training(tmp_path / "run", *flags, prepare=Poison(7))
    assert training.end() == 2
    assert {path.name for path in (tmp_path / "run").glob("*_net_G.pth")} == {
        "1_net_G.pth",
        "latest_net_G.pth",
    }
    assert finite(tmp_path / "run")


def test_weights_that_are_not_finite_are_never_saved(toy_data, tmp_path):
    """Even if every loss and gradient so far was finite, or fp16 hides that they are not."""
    flags = ["--dataroot", toy_data, *STEPS, "--fp16", "--niter", 3]
    training = Training(tmp_path / "run", *flags, prepare=_break_a_weight)
    assert training.end() == 2
    assert "weights of G are not finite" in training.output().splitlines()[-1]
    assert load_file(tmp_path / "run" / "latest_state.pth")["position"]["step"] == 1
    assert finite(tmp_path / "run")


def _break_a_weight() -> None:
    import util.run.training_run as module

    original = module.snapshot

    def snapshot(model, *args):
        done = original(model, *args)
        with torch.no_grad():
            next(model.netG.parameters())[0, 0, 0, 0] = math.inf
        return done

    module.snapshot = snapshot


def test_a_rate_that_is_far_too_high_ends_clearly(toy_data, tmp_path):
    """By flags only: it stops in one line, or continues; what is on disk is finite either way."""
    flags = ["--dataroot", toy_data, *STEPS, "--niter", 3, "--niter_decay", 0, "--lr", 1e6]
    training = Training(tmp_path / "run", *flags)
    status = training.end()
    assert status in (0, 2) and "Traceback" not in training.output()
    assert status == 0 or "not finite" in training.output().splitlines()[-1]
    assert finite(tmp_path / "run")


def test_skipped_steps_of_fp16_are_not_errors(toy_data, tmp_path):
    """The first scale may be too high: the step is skipped and the scale falls."""
    flags = ["--dataroot", toy_data, *STEPS, "--fp16", "--niter", 1, "--niter_decay", 0]
    training = Training(tmp_path / "run", *flags, prepare=_high_scale)
    assert training.end() == 0, training.output()
    state = load_file(tmp_path / "run" / "latest_state.pth")
    assert state["model"]["scaler"]["scale"] < 2.0**80
    assert finite(tmp_path / "run") and len(outcome(tmp_path / "run")["metrics.jsonl"]) == 4


def _high_scale() -> None:
    original = torch.amp.GradScaler.__init__

    def init(self, *args, **more):
        original(self, *args, init_scale=2.0**80, **more)

    torch.amp.GradScaler.__init__ = init


def test_fp16_that_cannot_recover_stops(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *STEPS, "--fp16", "--niter", 30]
    training = Training(tmp_path / "run", *flags, prepare=Poison(3))
    assert training.end() == 2
    assert "not finite" in training.output().splitlines()[-1]
    assert finite(tmp_path / "run")


def test_watch_names_the_first_bad_step():
    watch = Watch()
    for step in range(1, 6):
        good = step not in (3, 4)
        watch.add(torch.tensor(good), step, {"G": torch.tensor(float(step))}, [f"file{step}"])
    with pytest.raises(UserError, match=r"step 3: .*G 3.*file3"):
        watch.check()
    watch.check()  # each step is checked once


@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_of_several_processes_the_one_whose_loss_it_is_reports_first(loss, monkeypatch):
    """All have the same averaged gradient; the first to report ends the others."""
    waited = []
    monkeypatch.setattr("util.distributed.world_size", lambda: 2)
    monkeypatch.setattr("util.run.watch.time.sleep", waited.append)
    watch = Watch()
    watch.add(torch.tensor(False), 1, {"G": torch.tensor(loss)}, ["file"])
    with pytest.raises(UserError, match="not finite"):
        watch.check()
    assert bool(waited) == math.isfinite(loss)


@pytest.mark.parametrize(
    "loss, grey, word", [(0.001, 0.0, "discriminator"), (0.5, 1.0, "saturated"), (0.5, 0.0, None)]
)
def test_warnings_come_once_and_only_after_a_while(loss, grey, word):
    watch, found = Watch(), []
    for look in range(100):
        if look == 10:  # an interruption starts the count over
            found += watch.warnings({"D_real": 0.5, "D_fake": 0.5}, *[torch.zeros(1, 3, 4, 4)] * 2)
        losses = {"D_real": loss, "D_fake": loss}
        new = watch.warnings(losses, *[torch.full((1, 3, 4, 4), grey)] * 2)
        assert look >= 29 or not new
        found += new
    assert [word in warning for warning in found] == ([True] if word else [])


def test_the_gap_between_training_and_validation_is_reported_once() -> None:
    """By hand: images 25.5 grey levels from their photographs, and validation twice as far."""
    watch, image = Watch(), torch.zeros(1, 3, 4, 4)
    losses = {"D_real": 1.0, "D_fake": 1.0}
    for _ in range(5):
        assert watch.warnings(losses, image, image + 0.2) == []
    assert watch.gap_warning(38.0) is None
    assert watch.gap_warning(60.0) is None  # nothing was logged since
    for _ in range(5):
        watch.warnings(losses, image, image + 0.2)
    warning = watch.gap_warning(51.0)
    assert "differ by 51.0 grey levels" in warning and "by 25.5" in warning
    for _ in range(5):
        watch.warnings(losses, image, image + 0.2)
    assert watch.gap_warning(99.0) is None
