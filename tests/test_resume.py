"""Training that was stopped and continued equals uninterrupted training, bit for bit."""

import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from commands import ranks
from conftest import ROOT, TINY, thorough
from trainer import Training, assert_same, outcome, train

from models import load_generator
from options.test_options import TestOptions
from util.files import lock_folder
from util.run.checkpoints import load_file
from util.run.visualizer import read_rows

# 4 scenes per epoch; every step is logged and saved, every other one shown
ALL = ["--print_freq", 1, "--display_freq", 2, "--save_latest_freq", 1, "--save_epoch_freq", 1]
SHORT = ["--niter", 1, "--niter_decay", 2]
CASES = {
    "features, pool": [
        *("--instance_feat", "--nef", 4, "--n_downsample_E", 1),
        *("--pool_size", 3, "--instance_mean_D"),
    ],
    "plus": ["--recipe", "plus", "--ema", 0.9, "--instance_feat", "--nef", 4],
    "plain": [],
    "fix_global": ["--netG", "local", "--n_blocks_local", 1, "--niter_fix_global", 1],
    "fp16, dropout": ["--amp", "fp16", "--use_dropout"],
    "bf16": ["--amp", "bf16"],
    "latent": ["--recipe", "plus", "--lambda_latent", 10, "--amp", "fp16"],
    "batch": ["--batchSize", 3, "--norm", "batch", "--resize_or_crop", "crop", "--fineSize", 24],
}


def kill_after(folder: Path, saved: int, *flags: object) -> None:
    """Start training and kill it after a save at the given number of images."""
    training = Training(folder, *flags, prepare=KillAfter(saved))
    assert training.end() == -signal.SIGKILL, training.output()


def kill_instead_of_saving() -> None:
    import util.run.training_run as module

    module.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


class KillAfter:
    """Let the process die by SIGKILL right after the save at a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self) -> None:
        import util.run.training_run as module

        original = module.save

        def save(files, *rest):
            done = original(files, *rest)
            if files["latest_state.pth"]["position"]["step"] >= self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        module.save = save


@pytest.mark.parametrize("case", [*list(CASES)[:2], *thorough(*list(CASES)[2:])])
def test_continued_equals_uninterrupted(case, toy_data, tmp_path):
    """Killed in the first epoch, at the end of an epoch, and in the decay of the rate."""
    flags = ["--dataroot", toy_data, *ALL, *SHORT, *CASES[case]]
    train(tmp_path / "whole", *flags)
    for step in (3, 4, 10) if case != "batch" else (3, 4, 11):
        more = ["--continue_train"] if step > 3 else []
        kill_after(tmp_path / "parts", step, *flags, *more)
    log = train(tmp_path / "parts", *flags, "--continue_train")
    assert "continuing" in log and "note:" not in log
    assert_same(tmp_path / "whole", tmp_path / "parts")
    rates = [row["lr"] for row in outcome(tmp_path / "whole")["metrics.jsonl"]]
    assert rates[0] == rates[-1] * 2  # full, full, half: the decay was crossed


def test_a_kill_after_the_last_save_repeats_the_lost_steps(toy_data, tmp_path):
    """Logs and images of steps that were not saved are removed and made again."""
    flags = ["--dataroot", toy_data, *ALL, *SHORT, "--save_latest_freq", 3]
    train(tmp_path / "whole", *flags)
    training = Training(tmp_path / "parts", *flags)
    training.wait_for("(epoch: 2, iters: 3")  # step 7; the last save was of step 6
    state = tmp_path / "parts" / "latest_state.pth"
    while load_file(state)["position"]["step"] < 6:  # a thread writes it
        time.sleep(0.005)
    training.process.kill()
    training.end()
    train(tmp_path / "parts", *flags, "--continue_train")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_replaces_another_and_is_killed_before_its_first_save(toy_data, tmp_path):
    """What the other one saved is moved aside, so that training never continues from it."""
    flags = ["--dataroot", toy_data, *ALL, *SHORT]
    run = tmp_path / "run"
    train(run, *flags, "--seed", 5, "--ngf", 2)
    weights = (run / "latest_net_D.pth").read_bytes()
    for name in ("features_clustered_010.npy", "object_library.npz"):
        (run / name).touch()
    training = Training(run, *flags, prepare=kill_instead_of_saving)
    assert training.end() == -signal.SIGKILL
    assert "--which_epoch replaced and replaced_best" in training.output()
    assert not [*run.glob("latest*"), *run.glob("best*"), *run.glob("iter*")]
    assert not [*run.glob("features*")]
    assert (run / "replaced_object_library.npz").exists()
    kept = ["replaced_best_net_D", "replaced_best_net_G", "replaced_net_D", "replaced_net_G"]
    assert sorted(path.stem for path in run.glob("replaced*.pth")) == [*kept, "replaced_state"]
    assert load_generator(run, epoch="replaced").opt.ngf == 2  # with the flags of that run
    where = ["--name", "run", "--checkpoints_dir", str(tmp_path)]
    assert TestOptions().parse([*where, "--which_epoch", "replaced_best"]).ngf == 2
    (run / "features.npy").touch()  # encoded by another run's encoder, before this one's training
    again = Training(run, *flags, prepare=kill_instead_of_saving)  # which has nothing to replace
    assert again.end() == -signal.SIGKILL
    assert (run / "replaced_net_D.pth").read_bytes() == weights and (run / "features.npy").exists()

    assert "nothing is saved" in train(run, *flags, "--continue_train")
    train(tmp_path / "whole", *flags)
    for path in run.glob("replaced*"):
        path.unlink()
    assert_same(tmp_path / "whole", run)


def test_what_a_kill_left_half_written_is_removed_an_hour_later(toy_data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    old, new = run / ".1.tmp", run / ".2.tmp"  # another process may be writing the second
    old.touch()
    os.utime(old, (0, 0))
    new.touch()
    train(run, "--dataroot", toy_data, "--niter", 1, "--niter_decay", 0, "--no_html")
    assert not old.exists() and new.exists()


def test_a_resumed_run_uses_its_own_beta1_and_pool_size(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--niter_decay", 0]
    train(tmp_path / "run", *flags, "--niter", 1, "--pool_size", 4)
    more = ["--niter", 2, "--pool_size", 1, "--beta1", 0.9, "--continue_train"]
    assert "note: --beta1 was 0.5, now 0.9" in train(tmp_path / "run", *flags, *more)
    state = load_file(tmp_path / "run" / "latest_state.pth")
    assert state["model"]["optimizer_G"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert len(state["processes"][0]["pool"]["images"]) == 1


@pytest.mark.thorough
def test_a_resumed_run_keeps_what_it_was_pretrained_with(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--niter_decay", 0]
    train(tmp_path / "base", *flags, *ALL, "--niter", 2)
    start = ["--load_pretrain", os.path.relpath(tmp_path / "base"), "--which_epoch", 1]
    train(tmp_path / "run", *flags, *start, "--niter", 1)
    again = [start, start[:2], [], ["--load_pretrain", tmp_path / "run"]]
    for epochs, more in enumerate(again, 2):
        more = more if epochs == 5 else [*more, "--continue_train"]
        train(tmp_path / "run", *flags, "--niter", epochs, *more)
        options = json.loads((tmp_path / "run" / "opt.json").read_text())
        assert options["load_pretrain"] == str(tmp_path / "base") and options["which_epoch"] == "1"


def refuse_loggers() -> None:
    import util.run.training_run as module
    from util.errors import UserError

    def refuse(*_: object) -> None:
        raise UserError("no logger can be started")

    module.create_loggers = refuse


def test_a_start_that_fails_leaves_the_earlier_run(toy_data, tmp_path):
    """However often it fails: the earlier weights may be the only ones."""
    flags = ["--dataroot", toy_data, *ALL, "--niter_decay", 0]
    train(tmp_path / "run", *flags, "--niter", 1)
    before = outcome(tmp_path / "run")
    for _ in range(2):
        training = Training(tmp_path / "run", *flags, "--niter", 1, prepare=refuse_loggers)
        assert training.end() == 2, training.output()
    assert outcome(tmp_path / "run") == before
    assert "continuing" in train(tmp_path / "run", *flags, "--niter", 2, "--continue_train")


@pytest.mark.parametrize(
    "problem", ["a folder among images", *thorough("a class too many", "web is a file")]
)
def test_a_start_that_fails_late_leaves_the_earlier_run(problem, own_data, tmp_path):
    flags = ["--dataroot", own_data, *ALL, "--niter_decay", 0, "--niter", 1]
    run = tmp_path / "run"
    train(run, *flags)
    more = ["--label_nc", 3] if problem == "a class too many" else []
    if problem == "web is a file":
        shutil.rmtree(run / "web")
        (run / "web").touch()
    elif not more:
        (run / "web" / "validation" / "folder").mkdir()
    before = outcome(run)
    training = Training(run, *flags, *more)
    if problem == "a folder among images":
        assert training.end() == 0 and (run / "web" / "validation" / "folder").is_dir()
    else:
        assert training.end() == 2 and outcome(run) == before
        options = json.loads((run / "opt.json").read_text())
        assert options["label_nc"] == 35


def kill_while_renaming(number: int) -> None:
    """Kill the process instead of the number-th renaming of weights."""
    import util.run.checkpoints as module

    original, done = os.replace, []

    def replace(old: Path, new: Path) -> None:
        if str(new).endswith(".pth") and "replaced" in str(new):
            done.append(new)
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(old, new)

    module.os.replace = replace


@pytest.mark.parametrize("number", [1, *thorough(2, 3)])
def test_a_kill_while_a_run_is_moved_aside(number, toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, "--niter_decay", 0, "--niter", 1]
    train(tmp_path / "run", *flags, "--seed", 7)
    train(tmp_path / "whole", *flags)
    killed = Training(
        tmp_path / "run", *flags, prepare=functools.partial(kill_while_renaming, number)
    )
    assert killed.end() == -signal.SIGKILL, killed.output()
    if number == 3:  # all names of latest_net_*.pth are gone
        own = ["--load_pretrain", tmp_path / "run"]
        again = Training(tmp_path / "again", *flags, *own)
        assert again.end() == 2 and "is --which_epoch replaced" in again.output()
    output = train(tmp_path / "run", *flags, "--continue_train")
    assert "except by the run it replaced" in output
    whole, run = (torch.load(tmp_path / name / "latest_net_G.pth") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], run[name]) for name in whole)


@pytest.mark.parametrize("workers", [0, *thorough(1)])
def test_a_damaged_image_costs_no_step(workers, own_data, tmp_path):
    flags = [*ALL, *SHORT, "--serial_batches", "--save_latest_freq", 1000, "--nThreads", workers]
    train(tmp_path / "whole", "--dataroot", own_data, *flags)
    last = sorted(own_data.glob("train_img/*"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    training = Training(tmp_path / "run", "--dataroot", own_data, *flags)
    assert training.end() == 2
    output = training.output().splitlines()[-1]
    assert last.name in output and "--continue_train resumes from here" in output
    last.write_bytes(content)
    output = train(tmp_path / "run", "--dataroot", own_data, *flags, "--continue_train")
    assert "continuing" in output and "after 3 images" in output
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_earlier_log_rows_stay_where_only_weights_are_left(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, "--niter_decay", 0]
    train(tmp_path / "run", *flags, "--niter", 2)
    (tmp_path / "run" / "latest_state.pth").unlink()
    train(tmp_path / "run", *flags, "--niter", 3, "--continue_train")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(row)["epoch"] for row in rows} == {1, 2, 3}


def test_an_epoch_that_is_trained_again_replaces_its_log_rows(toy_data, tmp_path):
    """From an earlier epoch's weights, as docs/from_reference.md says; then resumed as usual."""
    flags = ["--dataroot", toy_data, *ALL, "--niter_decay", 0]
    run = tmp_path / "run"
    train(run, *flags, "--niter", 3)
    before = read_rows(run / "metrics.jsonl")
    for kind in "GD":
        shutil.copy(run / f"1_net_{kind}.pth", run / f"latest_net_{kind}.pth")
    (run / "iter.txt").write_text("2\n0\n")
    (run / "latest_state.pth").unlink()
    train(run, *flags, "--niter", 2, "--continue_train")
    train(run, *flags, "--niter", 3, "--continue_train")
    after = read_rows(run / "metrics.jsonl")
    assert [(row["epoch"], row["step"]) for row in after] == [
        (row["epoch"], row["step"]) for row in before
    ]


def test_a_raised_niter_fix_global_takes_effect(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--netG", "local", "--n_blocks_local", 1, "--niter_decay", 0]
    train(tmp_path / "run", *flags, "--niter", 1)
    before = torch.load(tmp_path / "run" / "latest_net_G.pth")
    more = ["--niter", 2, "--niter_fix_global", 2, "--continue_train"]
    assert "only the outermost enhancer is trained" in train(tmp_path / "run", *flags, *more)
    after = torch.load(tmp_path / "run" / "latest_net_G.pth")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model1_1", "model1_2"}


@pytest.mark.parametrize(
    "position",
    [
        {"epoch": "x"},
        {"batch": 99},
        *thorough({"epoch": -1}, {"epoch": 2.5}, {"step": None}, {"best": "x"}),
    ],
)
def test_an_impossible_position_is_refused(position, run_of_one, toy_data, tmp_path):
    shutil.copytree(run_of_one, tmp_path / "run")
    state = load_file(tmp_path / "run" / "latest_state.pth")
    state["position"] |= position
    torch.save(state, tmp_path / "run" / "latest_state.pth")
    flags = ["--dataroot", toy_data, "--niter", 2, "--niter_decay", 0, "--continue_train"]
    training = Training(tmp_path / "run", *flags)
    assert training.end() == 2 and "not the state of a training run" in training.output()


def test_a_state_without_a_moment_is_refused(run_of_one, toy_data, tmp_path):
    shutil.copytree(run_of_one, tmp_path / "run")
    state = load_file(tmp_path / "run" / "latest_state.pth")
    del state["model"]["optimizer_G"]["state"][0]["exp_avg"]
    torch.save(state, tmp_path / "run" / "latest_state.pth")
    flags = ["--dataroot", toy_data, "--niter", 2, "--niter_decay", 0, "--continue_train"]
    training = Training(tmp_path / "run", *flags)
    assert training.end() == 2 and "Adam's exp_avg of a weight is missing" in training.output()


@pytest.fixture(scope="module")
def run_of_one(toy_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    train(folder, "--dataroot", toy_data, "--niter", 1, "--niter_decay", 0)
    return folder


def test_fp16_state_is_kept(toy_data, tmp_path):
    train(tmp_path / "run", "--dataroot", toy_data, "--niter", 1, "--niter_decay", 0, "--fp16")
    scaler = load_file(tmp_path / "run" / "latest_state.pth")["model"]["scaler"]
    assert scaler["scale"] > 0 and "_growth_tracker" in scaler


@pytest.mark.thorough
def test_reading_processes_change_nothing(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, *SHORT, "--use_dropout"]
    train(tmp_path / "whole", *flags)
    kill_after(tmp_path / "parts", 6, *flags, "--nThreads", 2)
    train(tmp_path / "parts", *flags, "--nThreads", 1, "--continue_train")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_other_networks_are_refused_with_the_differences(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *SHORT]
    train(tmp_path / "run", *flags, "--niter_decay", 0)
    before = outcome(tmp_path / "run")
    changed = ["--ngf", 8, "--num_D", 1, "--freeze", "down", "--load_pretrain", tmp_path / "run"]
    training = Training(tmp_path / "run", *flags, "--continue_train", *changed)
    assert training.end() == 2
    log = training.output()
    assert log.count("\n") == 1 and "--ngf was 4, now 8" in log and "--num_D was 2, now 1" in log
    assert "--freeze was [], now ['down']" in log
    assert outcome(tmp_path / "run") == before


def test_changed_lengths_are_honoured_and_logged(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, "--niter_decay", 0, "--val_freq", 1]
    train(tmp_path / "whole", *flags, "--niter", 3)
    train(tmp_path / "parts", *flags, "--niter", 2)
    images = tmp_path / "parts" / "web" / "images"
    later = images / "epoch004_real_image.png"  # as of an epoch that was begun, and not saved
    shutil.copy(images / "epoch002_real_image.png", later)
    log = train(tmp_path / "parts", *flags, "--niter", 3, "--continue_train")
    assert "note: --niter was 2, now 3" in log
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("left", [3, 4])
def test_a_changed_data_set_starts_the_epoch_over(own_data, tmp_path, left: int):
    """One scene is gone, or has another name, which changes the order."""
    flags = ["--dataroot", own_data, *ALL, *SHORT]
    kill_after(tmp_path / "run", 6, *flags)
    for folder in own_data.glob("train_*"):
        first = sorted(folder.iterdir())[0]
        first.rename(folder / f"zzz_{first.name}") if left == 4 else first.unlink()
    log = train(tmp_path / "run", *flags, "--continue_train")
    assert "the epoch starts over" in log
    rows = outcome(tmp_path / "run")["metrics.jsonl"]
    assert [row["step"] for row in rows] == [*range(1, 5), *range(5, 5 + 2 * left)]
    assert [row["iters"] for row in rows] == [*range(1, 5), *2 * [*range(1, 1 + left)]]


@pytest.mark.parametrize("more", [["--seed", 1], *thorough(["--serial_batches"])])
def test_another_order_of_scenes_starts_the_epoch_over(more, toy_data, tmp_path):
    """Its batches are others: some scenes would be trained on twice, others not at all."""
    flags = ["--dataroot", toy_data, *ALL, "--niter", 2, "--niter_decay", 0]
    kill_after(tmp_path / "run", 6, *flags)
    log = train(tmp_path / "run", *flags, "--continue_train", *more)
    assert "the epoch starts over" in log
    rows = outcome(tmp_path / "run")["metrics.jsonl"]
    assert [row["iters"] for row in rows] == 2 * [1, 2, 3, 4]


def run_out_of_memory() -> None:
    from models.pix2pixHD_model import Pix2PixHDModel

    def step(*_: object) -> None:
        raise MemoryError

    Pix2PixHDModel.step = step


def test_a_failed_start_of_an_epoch_that_starts_over_leaves_its_logs(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, *SHORT]
    kill_after(tmp_path / "run", 6, *flags)
    before = outcome(tmp_path / "run")
    larger = [*flags, "--batchSize", 2, "--continue_train"]
    training = Training(tmp_path / "run", *larger, prepare=run_out_of_memory)
    assert training.end() == 2 and "the epoch starts over" in training.output()
    assert outcome(tmp_path / "run") == before


def test_continue_without_a_run_says_so(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, *SHORT]
    assert "nothing is saved" in train(tmp_path / "a", *flags, "--continue_train")
    train(tmp_path / "b", *flags)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_continue_without_the_latest_weights_is_refused(run_of_one, toy_data, tmp_path):
    """Only kept epochs, as users of the 2018 code moved them aside: a fresh start would replace
    them. What the error suggests then works."""
    run = tmp_path / "run"
    run.mkdir()
    for kind in "GD":
        shutil.copy(run_of_one / f"latest_net_{kind}.pth", run / f"10_net_{kind}.pth")
    flags = ["--dataroot", toy_data, "--niter", 11, "--niter_decay", 0]
    training = Training(run, *flags, "--continue_train")
    assert training.end() == 2 and "copy 10_net_*.pth to latest_net_*.pth" in training.output()
    shutil.copy(run / "10_net_G.pth", run / "latest_net_G.pth")
    (run / "iter.txt").write_text("11\n0\n")
    training = Training(run, *flags, "--continue_train")  # as with released weights
    assert training.end() == 2 and f"give --load_pretrain {run} instead" in training.output()
    shutil.copy(run / "10_net_D.pth", run / "latest_net_D.pth")
    assert "epoch 11 of 11" in train(run, *flags, "--continue_train")


def test_weights_of_another_epoch_than_the_state_are_noticed(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, "--ema", 0.9, "--niter_decay", 0, "--no_html"]
    train(tmp_path / "run", *flags, "--niter", 2)
    more = [*flags, "--niter", 3, "--continue_train"]
    assert "was not saved with" not in train(tmp_path / "run", *more)
    for path in (tmp_path / "run").glob("2_net_G*.pth"):
        shutil.copy(path, path.with_name(path.name.replace("2_", "latest_")))
    log = train(tmp_path / "run", *more)
    both = "latest_net_G.pth and latest_net_G_ema.pth were not saved with latest_state.pth"
    assert both in log and "latest_net_D" not in log


@pytest.mark.parametrize("more", [[], *thorough(["--continue_train"])])
def test_a_second_training_in_the_same_folder_is_refused(more, toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *ALL, "--niter", 1, "--niter_decay", 0, "--no_html"]
    train(tmp_path / "run", *flags)
    before = outcome(tmp_path / "run")
    held = lock_folder(tmp_path / "run", "training")  # as by another training run
    second = Training(tmp_path / "run", *flags, *more)
    assert second.end() == 2
    assert second.output().count("\n") == 1 and "another training is running" in second.output()
    assert outcome(tmp_path / "run") == before
    held.close()
    train(tmp_path / "run", *flags, *more)


def test_without_a_temporary_folder_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    assert lock_folder(tmp_path, "training") is None


def test_a_lock_whose_file_is_removed_as_it_is_taken_is_taken_again(tmp_path, monkeypatch):
    """Its last owner ends after another process opened the file and before that locks it."""
    lockf, removed = fcntl.lockf, []

    def remove_once(file, how):
        lockf(file, how)
        if not removed:
            removed.append(Path(file.name))
            removed[0].unlink()

    monkeypatch.setattr(fcntl, "lockf", remove_once)
    with lock_folder(tmp_path, "training") as file:
        assert os.path.samestat(os.fstat(file.fileno()), removed[0].stat())
    removed[0].unlink()


@pytest.mark.parametrize(
    "number, status, workers",
    [
        *((signal.SIGTERM, 143, 0), (signal.SIGTERM, 143, 2)),
        *((signal.SIGINT, 130, 0), (signal.SIGINT, 130, 2)),
    ],
)
def test_asked_to_stop_saves_and_logs_one_line(number, status, workers, toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--print_freq", 1, "--niter", 2, "--niter_decay", 500]
    flags += ["--nThreads", workers]
    training = Training(tmp_path / "run", *flags)
    training.wait_for("(epoch: 2, iters: 1")
    children = _children(training.process.pid)
    for child in children:  # as a terminal or a scheduler does
        os.kill(child, number)
    os.kill(training.process.pid, number)
    assert training.end() == status, training.output()
    assert len(children) >= workers and not any(_is_running(child) for child in children)
    last = training.output().splitlines()[-1]
    assert last.startswith("stopped ") and last.endswith("--continue_train resumes from here")
    assert "Traceback" not in training.output()
    state = load_file(tmp_path / "run" / "latest_state.pth")
    assert state["position"]["step"] == len((tmp_path / "run" / "metrics.jsonl").open().readlines())


def _is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listing.read_text().split()] if listing.exists() else []


@pytest.mark.thorough
def test_stopping_from_the_command_line(toy_data, tmp_path):
    """The same in a separate process, started as a user would."""
    flags = [*TINY, "--dataroot", toy_data, "--print_freq", 1, "--niter", 500]
    command = [sys.executable, "train.py", *flags, "--checkpoints_dir", tmp_path, "--name", "run"]
    with subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=-1, stderr=-1, text=True
    ) as process:
        for line in process.stdout:
            if "iters: 2" in line:
                process.terminate()
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err == ""
    assert out.splitlines()[-1].startswith("stopped ")


def test_the_rate_starts_over_only_for_weights_of_the_old_code(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *SHORT]
    train(tmp_path / "run", *flags)
    (tmp_path / "run" / "latest_state.pth").unlink()
    (tmp_path / "run" / "iter.txt").write_text("3\n0\n")
    log = train(tmp_path / "run", *flags, "--continue_train", "--print_freq", 1)
    assert "optimizers start fresh" in log and "epoch 3 of 3" in log


@pytest.mark.parametrize("content", [b"", *thorough(b"\0\0\0\0", b"\xff\n0\n")])
def test_a_damaged_iter_txt_is_refused(content, run_of_one, toy_data, tmp_path):
    """Training from epoch 1 on would replace the logs and pages of all earlier epochs."""
    run = tmp_path / "run"
    shutil.copytree(run_of_one, run)
    (run / "latest_state.pth").unlink()
    (run / "iter.txt").write_bytes(content)
    flags = ["--dataroot", toy_data, "--niter", 3, "--niter_decay", 0, "--continue_train"]
    training = Training(run, *flags)
    assert training.end() == 2 and training.output().count("\n") == 1, training.output()
    assert str(run / "iter.txt") in training.output()


def two(folders: tuple[Path, Path], *flags: object) -> list[Training]:
    """Two processes of one run, each of which finds it in its own folder."""
    outs = (None, tmp_log(folders[0]))
    return [
        Training(folder, *flags, env=env, out=out)
        for folder, env, out in zip(folders, ranks(2), outs)
    ]


def train_on_two(folder: Path, *flags: object) -> None:
    for training in two((folder, folder), *flags):
        assert training.end() == 0, training.output()


def tmp_log(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.rank1.out"


TWO = [*ALL, "--batchSize", 2, "--niter_decay", 0, "--pool_size", 2, "--use_dropout"]


def test_two_processes_continue_exactly(toy_data, tmp_path):
    # validated after each epoch, as otherwise only parts would validate epoch 1, its last
    flags = ["--dataroot", toy_data, *TWO, "--val_freq", 1]
    train_on_two(tmp_path / "whole", *flags, "--niter", 3)
    train_on_two(tmp_path / "parts", *flags, "--niter", 1)
    train_on_two(tmp_path / "parts", *flags, "--niter", 3, "--continue_train")
    assert "Traceback" not in tmp_log(tmp_path / "parts").read_text()
    assert_same(tmp_path / "whole", tmp_path / "parts")
    state = load_file(tmp_path / "whole" / "latest_state.pth")
    pools = [process["pool"]["images"] for process in state["processes"]]
    assert len(pools) == 2 and not torch.equal(pools[0][0], pools[1][0])


def test_an_additional_process_draws_its_own_random_numbers(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *TWO]
    train(tmp_path / "run", *flags, "--niter", 1)
    train_on_two(tmp_path / "run", *flags, "--niter", 2, "--continue_train")
    first, second = load_file(tmp_path / "run" / "latest_state.pth")["processes"]
    assert not torch.equal(first["random"]["torch"], second["random"]["torch"])
    assert not torch.equal(first["pool"]["images"][0], second["pool"]["images"][0])


def error_of_two(folders: tuple[Path, Path], *flags: object) -> str:
    """The one line in which training on two processes ends."""
    pair = two(folders, *flags)
    assert {training.end() for training in pair} <= {1, 2}
    lines = [line for training in pair for line in training.output().splitlines()]
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert not any("Traceback" in line or "terminate" in line for line in lines)
    return error


@pytest.fixture(scope="module")
def run_of_two(toy_data, tmp_path_factory) -> Path:
    """An epoch on two processes. Do not change it."""
    folder = tmp_path_factory.mktemp("two") / "run"
    train_on_two(folder, "--dataroot", toy_data, *TWO, "--niter", 1)
    return folder


@pytest.mark.parametrize("kind", ["position", *thorough("weights", "nothing", "damage")])
def test_processes_that_find_different_states_are_refused(kind, run_of_two, toy_data, tmp_path):
    """Each machine has its own disk, with different contents."""
    flags = ["--dataroot", toy_data, *TWO]
    folders = tmp_path / "a" / "run", tmp_path / "b" / "run"
    shutil.copytree(run_of_two, folders[0])
    folders[1].parent.mkdir()
    more = {"position": ["--niter", 2], "weights": ["--niter", 1, "--seed", 1]}
    if kind in more:
        train_on_two(folders[1], *flags, *more[kind])
    elif kind == "damage":
        shutil.copytree(*folders)
        (folders[1] / "latest_state.pth").write_bytes(b"no state")
    before = outcome(folders[0])
    error = error_of_two(folders, *flags, "--niter", 4, "--continue_train")
    if kind == "damage":
        assert f"{folders[1]}/latest_state.pth: not a readable checkpoint" in error
    else:
        step = {"position": 8, "weights": 4, "nothing": 0}[kind]
        assert re.search(r"process 0: epoch 2 after 4 images \(state \w{8}\)", error)
        assert re.search(rf"process 1: epoch \d after {step} images", error), error
        assert "--checkpoints_dir" in error
    assert outcome(folders[0]) == before


@pytest.mark.thorough
def test_processes_that_load_different_weights_are_refused(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, *SHORT]
    for seed in (0, 1):
        train(tmp_path / str(seed), *flags, "--seed", seed)
    flags += ["--batchSize", 2, "--load_pretrain"]
    pair = [
        Training(tmp_path / "run", *flags, own, env=env, out=own.with_suffix(".out"))
        for own, env in zip((tmp_path / "0", tmp_path / "1"), ranks(2))
    ]
    assert {training.end() for training in pair} <= {1, 2}
    output = pair[0].output() + pair[1].output()
    assert output.count("error: the processes would start from different states") == 1
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.slow
def test_torchrun_is_stopped_and_continues_exactly(toy_data, tmp_path):
    """The same under torchrun, asked to stop in the middle of an epoch."""
    flags = ["--dataroot", toy_data, *TWO, "--niter", 30]

    def command(name: str, *more: object) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        run = ["--checkpoints_dir", tmp_path, "--name", name]
        words = [sys.executable, *launcher, "train.py", *TINY, *run, *flags, *more]
        return [str(word) for word in words]

    assert subprocess.run(command("whole"), cwd=ROOT, capture_output=True).returncode == 0
    with subprocess.Popen(command("parts"), cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
        for line in process.stdout:
            if "epoch: 3, iters: 2" in line:
                process.terminate()
                break
        out, _ = process.communicate(timeout=60)
    assert out.count("stopped at step") + out.count("stopped after epoch") == 1
    assert process.returncode != 0
    done = subprocess.run(command("parts", "--continue_train"), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_options_record_how_to_repeat_a_run(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--niter", 1, "--niter_decay", 0, "--seed", 7]
    train(tmp_path / "a", *flags, "--deterministic", "--print_freq", 1)
    train(tmp_path / "b", *flags, "--deterministic", "--print_freq", 1)
    assert_same(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "c", *flags, "--seed", 8, "--print_freq", 1)
    rows = [outcome(tmp_path / name)["metrics.jsonl"] for name in "ac"]
    assert rows[0] != rows[1]
    record = json.loads((tmp_path / "a" / "opt.json").read_text())
    assert record["seed"] == 7 and record["deterministic"] is True
    assert "--seed 7" in record["command_line"] and "train.py" in record["command_line"]
    assert record["versions"]["torch"] == torch.__version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert record["git_commit"].rstrip("+") == head.stdout.strip()


def test_keep_checkpoints_limits_epochs(toy_data, tmp_path):
    flags = ["--dataroot", toy_data, "--save_epoch_freq", 1, "--niter", 4, "--niter_decay", 0]
    train(tmp_path / "run", *flags, "--keep_checkpoints", 2)
    names = {path.name for path in (tmp_path / "run").glob("*_net_*.pth")}
    assert names == {f"{epoch}_net_{net}.pth" for epoch in (3, 4, "latest", "best") for net in "GD"}
