"""The record of a run: logs that survive a kill, the training page, the curves, TensorBoard."""

import argparse
import json
import math
import os
import shutil
import sys
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from util.errors import UserError
from util.pages.plots import most_frequent, save_curves, save_matrix, series
from util.parallel import Writer
from util.progress import Pace
from util.run.loggers import create_loggers, delete_unused_records
from util.run.page import RunPage, delete_pages
from util.run.resume import Position
from util.run.training_run import TrainingRun
from util.run.visualizer import Visualizer, read_rows

LOSSES = {"G_GAN": 1.217, "G_GAN_Feat": 9.6331, "D_real": 1.15649, "D_fake": 0.393}


def visualizer(folder, *, resume=False, write_html=False, tf_log=False, wandb=False) -> Visualizer:
    opt = argparse.Namespace(name="run", tf_log=tf_log, wandb=wandb, mlflow=False)
    loggers = create_loggers(opt, folder, resume)
    vis = Visualizer(folder, RunPage(folder, 16) if write_html else None, resume, loggers)
    if not resume:
        vis.start_anew()
    return vis


def at(epoch: int, iters: int, step: int, time: float = 0.1, data_time: float = 0.01) -> dict:
    place = {"epoch": epoch, "iters": iters, "step": step}
    return place | {"time": time, "data_time": data_time, "lr": 2e-4}


def log(vis: Visualizer, steps: range) -> None:
    """Two epochs of 4 steps; a row for every step."""
    for step in steps:
        epoch, iters = (step - 1) // 4 + 1, (step - 1) % 4 + 1
        vis.log(at(epoch, iters, step), {"G_GAN": 1 / step, "D_real": step / 7})


def truncate(vis: Visualizer, step: int) -> None:
    vis.truncate_after(step, epoch=step // 4 + 1, done=step % 4)


def shown(value: int) -> dict[str, np.ndarray]:
    names = ("input_label", "synthesized_image", "real_image")
    return {name: np.full((4, 8, 3), value, np.uint8) for name in names}


def test_a_page_that_takes_long_does_not_pile_up(tmp_path, monkeypatch):
    """After hundreds of epochs a page may take longer than the steps between two updates. All
    images are kept, but a save or a stop must not wait for a page for each of them."""
    written, all_shown = [], threading.Event()

    def write(self, *_, **__) -> None:
        assert all_shown.wait(60)
        written.append(sorted(path.name for path in self.images.iterdir()))

    monkeypatch.setattr(RunPage, "write", write)
    monkeypatch.setattr(RunPage, "curves_are_due", lambda self: False)
    run = object.__new__(TrainingRun)
    run.visualizer, run._writer = visualizer(tmp_path, write_html=True), Writer()
    for step in range(1, 11):
        run.position = Position(epoch=step, step=step)
        run.show(lambda: shown(128))
    all_shown.set()
    run._writer.finish()
    assert len(written) <= 2 and len(written[-1]) == 30


def test_the_time_left_may_be_absurd():
    assert Pace(total=10**30, done=0).lap(1)[2].days > 10**8


def test_log_writes_both_files(tmp_path):
    line = visualizer(tmp_path).log(at(1, 4, 4, 0.2281), LOSSES)
    assert line == (
        "(epoch: 1, iters: 4, time: 0.228) "
        "G_GAN: 1.217 G_GAN_Feat: 9.633 D_real: 1.156 D_fake: 0.393"
    )
    header, written = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert header.startswith("================ Training Loss (") and written == line
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    start = {"epoch": 1, "iters": 4, "step": 4, "time": 0.2281, "data_time": 0.01, "lr": 2e-4}
    assert row == start | LOSSES


def test_not_a_number_is_still_json(tmp_path):
    line = visualizer(tmp_path).log(at(1, 1, 1), {"G_GAN": math.nan, "D": math.inf})
    assert line.endswith("G_GAN: nan D: inf")
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["G_GAN"] is None and row["D"] is None


@pytest.mark.parametrize("kept", [0, 3, 4, 6, 8])
@pytest.mark.parametrize("half", ["", '{"epoch": 2, "it'])
def test_a_resumed_run_logs_as_if_never_killed(tmp_path, kept, half):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    log(visualizer(whole), range(1, 9))
    log(visualizer(killed), range(1, 9))
    for name in ("metrics.jsonl", "loss_log.txt"):
        with (killed / name).open("a") as file:
            file.write(half)
    vis = visualizer(killed, resume=True)
    truncate(vis, kept)
    log(vis, range(kept + 1, 9))
    expected = (whole / "metrics.jsonl").read_text()
    assert (killed / "metrics.jsonl").read_text() == expected
    lines = [(folder / "loss_log.txt").read_text().splitlines()[1:] for folder in (whole, killed)]
    assert lines[0] == lines[1]


def test_a_run_of_weights_alone_keeps_earlier_epochs_whatever_their_steps(tmp_path):
    """It begins epoch 2 again, with other scenes: step 2 or 9."""
    for step in (2, 9):
        folder = tmp_path / f"{step}"
        log(visualizer(folder), range(1, 13))
        (folder / "validation.jsonl").write_text(
            '{"epoch": 1, "step": 4}\n{"epoch": 2, "step": 8}\n'
        )
        visualizer(folder, resume=True).truncate_after(step, epoch=2, done=0)
        assert [row["epoch"] for row in read_rows(folder / "metrics.jsonl")] == [1, 1, 1, 1]
        assert [row["epoch"] for row in read_rows(folder / "validation.jsonl")] == [1]


def test_a_fresh_start_keeps_the_old_text_log(tmp_path):
    log(visualizer(tmp_path), range(1, 6))
    with (tmp_path / "loss_log.txt").open("a") as file:
        file.write("(epoch: 2, it")
    log(visualizer(tmp_path), range(1, 3))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    lines = (tmp_path / "loss_log.txt").read_text().splitlines()
    assert len(lines) == 1 + 5 + 1 + 2 and lines[6].startswith("=====")
    # and a resume of the new run leaves the old run's lines alone
    truncate(visualizer(tmp_path, resume=True), 1)
    assert (tmp_path / "loss_log.txt").read_text().splitlines() == lines[:-1]


def test_a_run_without_metrics_can_be_resumed(tmp_path):
    """The reference wrote only loss_log.txt."""
    old = "==== Training Loss ====\n(epoch: 1, iters: 4, time: 0.228) G_GAN: 1.217 \n"
    (tmp_path / "loss_log.txt").write_text(old)
    truncate(visualizer(tmp_path, resume=True), 2)
    assert (tmp_path / "loss_log.txt").read_text() == old


@pytest.mark.parametrize("row", ['{"epoch": 1, "step": 4}', '{"epoch":1,"step":4,"iters":null}'])
def test_a_row_without_iters_keeps_the_text_log_of_its_epoch(row: str, tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text(row + "\n")
    lines = [f"(epoch: {epoch}, iters: 4, time: 0.228) G_GAN: 1.217\n" for epoch in (1, 2)]
    (tmp_path / "loss_log.txt").write_text("".join(lines))
    truncate(visualizer(tmp_path, resume=True), 4)
    assert (tmp_path / "loss_log.txt").read_text() == lines[0]


def test_a_damaged_row_is_named(tmp_path):
    huge = (f'{{"epoch": 1, "step": 2, "G_GAN": {n}}}' for n in ("1e308", "-1e308", 10**400))
    others = "spoiled", '{"epoch": 1}', '{"step": 1}', "[1]", '{"epoch": 1, "step": "2"}'
    for damaged in (*others, *huge):
        (tmp_path / "metrics.jsonl").write_text(f'{{"epoch": 1, "step": 1}}\n{damaged}\n')
        with pytest.raises(UserError, match=r"metrics.jsonl: line 2"):
            read_rows(tmp_path / "metrics.jsonl")


def test_a_logger_that_fails_is_dropped(tmp_path, capsys):
    class Failing:
        def start_anew(self):
            pass

        def scalars(self, step, values):
            raise ConnectionError("the server is gone")

    vis = Visualizer(tmp_path, None, False, [Failing()])
    log(vis, range(1, 4))
    vis.close()
    assert capsys.readouterr().out.count("warning: Failing failed (the server is gone)") == 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def test_curves_that_a_kill_prevented_are_drawn_by_the_next_run(tmp_path):
    log(visualizer(tmp_path, write_html=True), range(1, 9))
    leftover = tmp_path / "web" / ".1.tmp"
    leftover.touch()
    os.utime(leftover, (0, 0))
    vis = visualizer(tmp_path, resume=True, write_html=True)
    truncate(vis, 8)
    vis.close()
    assert (tmp_path / "web" / "loss_curves.png").exists() and not leftover.exists()
    assert "2, step 8" in (tmp_path / "web" / "index.html").read_text()


def test_lines_stay_if_the_metrics_are_lost(tmp_path):
    log(visualizer(tmp_path), range(1, 6))
    before = (tmp_path / "loss_log.txt").read_text()
    (tmp_path / "metrics.jsonl").write_text("")
    truncate(visualizer(tmp_path, resume=True), 5)
    assert (tmp_path / "loss_log.txt").read_text() == before


def test_page_shows_what_is_on_disk_newest_first(tmp_path):
    vis = visualizer(tmp_path, write_html=True)
    vis.display(shown(1), epoch=1, step=1)
    assert not (tmp_path / "web" / "loss_curves.png").exists()  # nothing logged yet
    log(vis, range(1, 3))
    vis.display(shown(2), epoch=1, step=2)
    with Image.open(tmp_path / "web" / "images" / "epoch001_real_image.png") as image:
        assert np.all(np.asarray(image) == 2)

    vis = visualizer(tmp_path, write_html=True, resume=True)
    vis.display(shown(3), epoch=1000, step=3)
    text = (tmp_path / "web" / "index.html").read_text()
    order = ["loss_curves.png"] + [
        f"images/epoch{epoch}_{name}.png" for epoch in ("1000", "001") for name in shown(0)
    ]
    assert text.count("<img") == len(order)
    places = [text.index(f'src="{path}"') for path in order]
    assert places == sorted(places)
    assert 'http-equiv="refresh"' in text


@pytest.mark.parametrize("deleted", ["web", "web/images", "web/validation"])
def test_pages_deleted_during_training_are_made_again(deleted, tmp_path):
    vis = visualizer(tmp_path, write_html=True)
    log(vis, range(1, 2))
    vis.display(shown(1), epoch=1, step=1)
    shutil.rmtree(tmp_path / deleted)
    vis.display(shown(2), epoch=2, step=2)
    shutil.rmtree(tmp_path / deleted)
    vis.show_validation(2, 2, {"l1": 1.0}, {"a": shown(3)}, best=2)
    assert "a.jpg" in (tmp_path / "web" / "validation.html").read_text()
    shutil.rmtree(tmp_path / deleted)
    vis.close()
    assert (tmp_path / "web" / "index.html").is_file()


def test_images_of_the_2018_code_stay_on_the_page_of_a_continued_run(tmp_path):
    old = tmp_path / "web" / "images" / "epoch001_real_image.jpg"
    old.parent.mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(old)
    visualizer(tmp_path, write_html=True, resume=True).display(shown(2), epoch=2, step=2)
    assert f'src="images/{old.name}"' in (tmp_path / "web" / "index.html").read_text()


def test_a_fresh_start_drops_the_images_of_an_earlier_run(tmp_path):
    visualizer(tmp_path, write_html=True).display(shown(1), epoch=9, step=1)
    visualizer(tmp_path, write_html=True).display(shown(1), epoch=1, step=1)
    names = {path.name[:8] for path in (tmp_path / "web" / "images").iterdir()}
    assert names == {"epoch001"}


def test_no_html_writes_no_page(tmp_path):
    visualizer(tmp_path).display(shown(1), epoch=1, step=1)
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize("count", [1, 2, 150, 20000])
def test_curves_at_any_length(tmp_path, count):
    values = np.random.default_rng(0).random(count)
    rows = [{"step": i, "A": v, "B": 0.5, "C": None} for i, v in enumerate(values.tolist())]
    rows[count // 2]["A"] = 1e30 if count > 100 else math.nan
    save_curves(tmp_path / "curves.png", {name: {name: series(rows, name)} for name in "ABC"})
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    panels = [pixels[:, i * len(pixels[0]) // 3 : (i + 1) * len(pixels[0]) // 3] for i in range(3)]
    blue = [np.abs(panel - [31, 119, 180]).sum(2) < 9 for panel in panels]
    assert blue[1].sum() > 20 and blue[2].sum() == 0
    assert blue[0].sum() > 20 or count == 1  # its single value is not a number
    if count > 100:  # one spike must not flatten the curve: pale values fill the panel's height
        pale = (panels[0][..., 2] - panels[0][..., 0] > 20).any(1)
        assert pale.sum() > 200


def test_curves_of_several_runs_with_a_mark(tmp_path):
    curves = {name: (np.arange(5.0), np.arange(5.0) * sign) for name, sign in (("a", 1), ("b", 2))}
    save_curves(tmp_path / "one.png", {"loss": curves}, smooth=False)
    save_curves(tmp_path / "two.png", {"loss": curves}, smooth=False, marks={"best": 3})
    one, two = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("one.png", "two.png")
    )
    orange = np.abs(one.astype(int) - [255, 127, 14]).sum(2) < 9
    assert orange.sum() > 100  # the second run's colour
    assert (one != two).any()


def test_measures_and_learning_rates_are_shown_as_they_are(tmp_path, monkeypatch):
    """Neither clipped, as the best value is an extreme one, nor smoothed. Steps are whole."""
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch())
    )
    values = np.where(np.arange(200) == 7, 0.9, 0.3)
    rates = np.where(np.arange(200) < 150, 2e-4, 1e-4)
    measured, rate = (
        {name: {name: (np.arange(200.0), y)}} for name, y in (("ssim", values), ("lr", rates))
    )
    save_curves(tmp_path / "a.png", measured, smooth=False)
    save_curves(tmp_path / "b.png", rate)
    save_curves(tmp_path / "c.png", {"l1": {"l1": (np.ones(1), np.ones(1))}})
    for figure, shown in zip(drawn, (values, rates, np.ones(1))):
        (axes,) = figure.axes
        np.testing.assert_array_equal(axes.lines[-1].get_ydata(), shown)
        assert axes.get_ylim()[0] < shown.min() and shown.max() < axes.get_ylim()[1]
        assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("value", [1e-5, 0.3, 1e9])
def test_titles_are_not_cut_off(tmp_path, value):
    """They move up where matplotlib writes a factor (1e-5) above the axis."""
    save_curves(tmp_path / "curves.png", {"lr": {"lr": (np.arange(5.0), np.full(5, value))}})
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L"))[:5].min() == 255


def test_names_of_runs_do_not_cover_the_curves(tmp_path, monkeypatch):
    """They are above the panels. A run keeps its colour where others lack a figure."""
    from matplotlib.figure import Figure

    drawn, runs = [], ["label2city_512p_plus_icnr", "label2city_512p_plus_bilinear"]
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.touch())
    )
    none, curve = (np.empty(0),) * 2, (np.arange(5.0),) * 2
    panels = {"ssim": dict.fromkeys(runs, curve), "lpips": {runs[0]: none, runs[1]: curve}}
    save_curves(tmp_path / "curves.png", panels, smooth=False)
    (figure,), (first, second) = drawn, drawn[0].axes
    legend = figure.legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()] == runs
    assert second.lines[0].get_color() == first.lines[1].get_color()
    figure.draw_without_rendering()
    bottom = legend.get_window_extent().y0
    assert all(axes.get_tightbbox().y1 < bottom for axes in figure.axes)


def test_every_name_of_a_run_is_in_the_legend(tmp_path, monkeypatch):
    """matplotlib hides names that begin with _, and takes what is between dollars for a formula."""
    from matplotlib.figure import Figure

    names, shown, legend = ["_a", r"b$_$\frac"], [], Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *one, **more: shown.append(legend(*one, **more)))
    curves = {name: (np.arange(5.0), np.arange(5.0)) for name in names}
    save_curves(tmp_path / "curves.png", {"loss": curves})
    assert [text.get_text().strip() for text in shown[0].get_texts()] == names


def test_matrices_of_many_classes(tmp_path):
    """The most frequent ones, in order, and the rest as one; only those that occur."""
    names = [str(i) for i in range(1700)]
    columns = [*names, "none of these"]
    matrix = np.zeros((1700, 1701), np.int64)
    matrix[range(70), range(70)] = 10
    matrix[3, 3] = matrix[64, 64] = 1
    matrix[3, 64] = matrix[64, 0] = matrix[3, 1700] = 2
    found, rows, shown = most_frequent(matrix, names, columns)
    assert rows == [*(str(i) for i in range(61) if i != 3), "others"]
    assert shown == [*rows, "none of these"] and found.sum() == matrix.sum()
    assert found[60, 60] == 8 * 10 + 1 + 2 + 1 and found[60, 61] == found[60, 0] == 2
    matrix[4:] = 0
    save_matrix(tmp_path / "matrix.png", matrix, names, columns)  # 0, 1, 2, 3 and 64
    assert max(Image.open(tmp_path / "matrix.png").size) < 600
    few = matrix[:35, :36], names[:35], [*names[:35], "none of these"]
    assert all(one is two for one, two in zip(most_frequent(*few), few))


def test_without_matplotlib_a_page_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        visualizer(tmp_path, write_html=True)
    visualizer(tmp_path)


@pytest.fixture
def board(monkeypatch):
    """What reads TensorBoard's files: in order of their names, whose final count has two digits
    from here on."""
    module = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(module, "_global_uid", module.AtomicCounter(10))
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard(tmp_path, board):
    vis = visualizer(tmp_path, tf_log=True)
    log(vis, range(1, 9))
    vis.display(shown(9), epoch=1, step=8)
    vis.close()
    vis = visualizer(tmp_path, tf_log=True, resume=True)
    truncate(vis, 6)
    log(vis, range(7, 9))
    vis.close()
    events = board.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss/G_GAN")] == list(range(1, 9))
    assert not events.Images("visuals/real_image")  # step 8 was purged and not shown again


def test_a_start_that_fails_leaves_what_loggers_have(tmp_path, monkeypatch, board):
    """Loggers are made before the first step; only start_anew, after it, replaces a run."""
    ids = []
    service = SimpleNamespace(Image=None, init=lambda id, **_: ids.append(id) or MagicMock())
    monkeypatch.setitem(sys.modules, "wandb", service)
    flags = {"tf_log": True, "wandb": True}
    vis = visualizer(tmp_path, **flags)
    log(vis, range(1, 9))
    vis.close()
    opt = argparse.Namespace(name="run", mlflow=False, **flags)
    create_loggers(opt, tmp_path, resume=False)
    truncate(visualizer(tmp_path, resume=True, **flags), 8)
    assert ids[0] == ids[2] != ids[1]
    events = board.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss/G_GAN")] == list(range(1, 9))
    visualizer(tmp_path, **flags)
    visualizer(tmp_path, resume=True, **flags)
    assert ids[3] == ids[4] != ids[0]
    events = board.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert not events.Scalars("loss/G_GAN")


def test_a_run_leaves_no_records_of_the_one_that_it_replaces(tmp_path):
    """With other loggers, or without a page: used again later, they would go on from it."""
    (tmp_path / "logs").mkdir()
    names = "wandb_id.txt", "mlflow_id.txt", "logs/events.out.tfevents.1.host", "logs/job.log"
    for name in names:
        (tmp_path / name).write_text("old")
    delete_unused_records(argparse.Namespace(tf_log=False, wandb=True, mlflow=False), tmp_path)
    assert [(tmp_path / name).exists() for name in names] == [True, False, False, True]
    (tmp_path / "web").mkdir()
    for name in ("index.html", "validation.html", "loss_curves.png", "mine.txt"):
        (tmp_path / "web" / name).touch()
    delete_pages(tmp_path)
    assert [path.name for path in (tmp_path / "web").iterdir()] == ["mine.txt"]


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    visualizer(tmp_path / "plain")
    with pytest.raises(UserError, match="pip install tensorboard"):
        visualizer(tmp_path / "run", tf_log=True)
    assert not (tmp_path / "run").exists()


def test_rows_are_plain_json(tmp_path):
    visualizer(tmp_path).log(at(1, 1, 1), {"G": np.float32(0.1)})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["G"] == float(np.float32(0.1))
