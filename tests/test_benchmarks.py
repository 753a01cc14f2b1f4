"""The benchmarks: each runs at a small size and reports what it should; its tools are correct."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command, run_ok
from PIL import Image
from tiny_run import write_run
from torch import nn

from benchmarks import (
    baseline,
    correctness,
    editor,
    editor_memory,
    few_images,
    files,
    gpu,
    inference,
    instance_pooling,
    loader,
    measure,
    memory,
    profile_step,
    recipes,
    scene,
    side_by_side,
    style_control,
    tiling,
    train_step,
)
from models.layers import instance_average
from models.pix2pixHD_model import Pix2PixHDModel
from util.errors import UserError
from util.run.visualizer import read_rows

CPU = torch.device("cpu")
TINY = (
    "--ndf 4 --nef 4 --label_nc 35 --n_downsample_global 1 --n_blocks_global 2 --n_downsample_E 1"
    " --n_layers_D 2"
)


def result(main, flags: str, monkeypatch, capsys) -> dict:
    """What a benchmark prints as JSON in its last line, with small matrices for the peak."""
    monkeypatch.setattr(measure, "PEAK_SIZE", {"cpu": 64})
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags.split()])
    main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_step(tmp_path: Path, monkeypatch, capsys) -> None:
    flags = f"--device cpu --width 64 --height 32 --ngf 4 --no_vgg --repeat 2 {TINY}"
    flags += f" --json {tmp_path / 'new' / 'result.json'}"
    report = result(train_step.main, flags, monkeypatch, capsys)
    assert report == json.loads((tmp_path / "new" / "result.json").read_text())
    base, project = report["rows"]
    assert (base["way"], project["way"]) == ("baseline", "project")
    assert project["ratio"] == pytest.approx(project["median"] / base["median"])
    assert 0 < project["saved MB"] < 0.65 * base["saved MB"]
    assert 0 < project["TFLOP"] < base["TFLOP"]


@pytest.mark.parametrize("benchmark", [correctness, memory, profile_step])
def test_benchmarks_that_measure_once_refuse_repeat(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--repeat", "2"])
    with pytest.raises(UserError, match="unrecognized arguments: --repeat"):
        benchmark.main()


@pytest.mark.parametrize("flag", ["--how_many", "--style"])
def test_control_by_styles_refuses_flags_it_does_not_use(flag: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", flag, "1"])
    with pytest.raises(UserError, match=f"unrecognized arguments: {flag}"):
        style_control.main()


@pytest.mark.parametrize("benchmark", [editor_memory, files, gpu, side_by_side])
def test_a_wrong_flag_is_refused_without_the_usage(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--repeat", "0"])
    with pytest.raises(UserError, match="--repeat"):
        benchmark.main()


def test_errors_of_training_name_the_run_or_the_users_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--dataroot", "nowhere"])
    with pytest.raises(UserError, match=r"^--dataroot nowhere: no such folder"):
        few_images.main()
    failed = subprocess.CompletedProcess([], 2, "", "a warning\nerror: --seed: 'a': expected N\n")
    monkeypatch.setattr(measure, "run_to_its_end", lambda *_, **__: failed)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--seeds", "a"])
    with pytest.raises(UserError, match=r"^paper-a: --seed: 'a': expected N$"):
        recipes.main()


def test_what_a_killed_benchmark_trained_is_not_taken_for_other_flags(
    tmp_path: Path, monkeypatch
) -> None:
    def killed(*_, **__) -> None:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "latest_net_G.pth").touch()
        raise ProcessLookupError

    failed = subprocess.CompletedProcess([], 2, "", "error: --niter a: expected a number\n")
    monkeypatch.setattr(measure, "run_to_its_end", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"^run: --niter a: expected"):
        measure.trained("run", tmp_path, ["--niter", "a"])
    monkeypatch.setattr(measure, "run_to_its_end", killed)
    for _ in range(2):  # the same flags continue what is there
        with pytest.raises(ProcessLookupError):
            measure.trained("run", tmp_path, ["--niter", "400"])
    with pytest.raises(UserError, match=r"trained with other flags \(--niter 400\)"):
        measure.trained("run", tmp_path, ["--niter", "1"])


@pytest.mark.skipif(os.name == "nt", reason="signals of a process")
def test_ctrl_c_lets_a_training_save(tmp_path: Path) -> None:
    """It reaches the benchmark and its training alike."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    training = "import signal, time, pathlib as p; s = [signal.SIGINT]"
    training += f"; signal.pthread_sigmask(signal.SIG_BLOCK, s); p.Path({str(ready)!r}).touch()"
    training += f"; signal.sigwait(s); time.sleep(1); p.Path({str(saved)!r}).touch()"
    code = "import sys; from benchmarks.measure import run_to_its_end"
    code += f"; run_to_its_end([sys.executable, '-c', {training!r}])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stderr=-1, start_new_session=True) as process:
        while not ready.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
    assert saved.exists()


@pytest.mark.parametrize("name", ["train_step", "profile_step", "inference", "correctness"])
def test_sizes_that_are_too_small_are_refused(name: str, monkeypatch) -> None:
    flags = [] if name in ("inference", "correctness") else ["--no_vgg_loss", "--ngf", "4"]
    monkeypatch.setattr(sys, "argv", [name, "--width", "8", "--height", "8", *flags])
    with pytest.raises(UserError, match=r"^--width 8 --height 8: expected multiples of "):
        importlib.import_module(f"benchmarks.{name}").main()


def test_the_other_benchmarks(monkeypatch, capsys) -> None:
    report = result(
        instance_pooling.main,
        "--device cpu --width 64 --height 32 --instances 5 --repeat 1",
        monkeypatch,
        capsys,
    )
    assert report["largest_difference"] < 1e-6
    assert [row["way"] for row in report["rows"]] == ["loop", "project"]

    flags = "--device cpu --scenes 2 --width 64 --height 32 --loadSize 32 --repeat 1"
    report = result(loader.main, flags, monkeypatch, capsys)
    ways = [row["way"] for row in report["rows"]]
    assert ways == ["baseline", "project", "--cache ram", "--cache disk"]
    assert all(row["items/s"] == pytest.approx(2 / row["median"]) for row in report["rows"])

    flags = "--device cpu --width 64 --height 64 --ngf 2 --repeat 1"
    report = result(inference.main, flags, monkeypatch, capsys)
    assert report["mean_grey_levels_apart"] < 0.5 and report["TFLOP"] > 0

    precisions = {name: correctness.PRECISIONS[name] for name in ("float64", "float32", "bf16")}
    monkeypatch.setattr(correctness, "PRECISIONS", precisions)
    report = result(correctness.main, "--device cpu --width 32 --height 32", monkeypatch, capsys)
    exact = [row for row in report["rows"] if row["precision"] in ("float64", "float32")]
    assert len(exact) == 12 and all(row["losses"] < 1e-3 for row in exact)

    flags = "--device cpu --width 64 --height 32 --ngf 4 --ndf 4 --no_vgg_loss --steps 2"
    flags += " --n_blocks_global 1 --n_downsample_global 1"
    report = result(profile_step.main, flags, monkeypatch, capsys)
    assert report["launches_a_step"] > 10 and len(report["rows"]) == 15


def test_files_and_memory_give_the_same_images(
    toy_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    write_run(tmp_path, "run", instance_feat=False)
    flags = f"--name run --checkpoints_dir {tmp_path} --gpu_ids -1 --repeat 1"
    flags += f" --input {toy_data / 'train_label'} --input_inst {toy_data / 'train_inst'}"
    report = result(files.main, flags, monkeypatch, capsys)
    assert (report["images"], report["different"]) == (4, 0)
    memory, written = report["rows"]
    assert written["of memory's rate"] == pytest.approx(memory["median"] / written["median"])

    write_run(tmp_path, "styles", label_nc=35)
    flags = flags.replace("run", "styles") + " --how_many 2 --all_styles 7 --image_format npy"
    report = result(files.main, flags, monkeypatch, capsys)
    assert (report["images"], report["different"]) == (2 * 5, 0)


def test_memory_of_small_networks(monkeypatch, capsys) -> None:
    small = "--ngf 4 --ndf 4 --n_downsample_global 1 --n_blocks_global 2"
    monkeypatch.setattr(memory, "STAGES", {"small": (small, 64, 32)})
    base, project, least = result(memory.main, "--device cpu", monkeypatch, capsys)["rows"]
    assert base["ratio"] == 1 and least["ratio"] < project["ratio"] < 1


@pytest.mark.thorough
def test_memory_of_the_full_networks(monkeypatch, capsys) -> None:
    """Computed on shapes only; the figures that the project promises."""
    report = result(memory.main, "--device cpu --stage 512p", monkeypatch, capsys)
    base, project, least = report["rows"]
    assert base["ratio"] == 1 and project["ratio"] <= 0.65 and least["ratio"] <= 0.35
    assert least["allocated GiB"] < project["allocated GiB"] <= 0.65 * base["allocated GiB"]


def test_the_baseline_computes_the_same_losses() -> None:
    flags = f"--ngf 4 --no_vgg_loss --instance_feat {TINY}".split()
    options = scene.options("cpu", flags)
    torch.manual_seed(0)
    model, plain = Pix2PixHDModel(options, CPU), baseline.TrainStep(options, CPU)
    for name in ("netG", "netD", "netE"):
        getattr(plain, name).load_state_dict(getattr(model, name).state_dict())
    batch = scene.batch(64, 32, 2)
    floats = {kind: value.float() for kind, value in batch.items()}
    expected = {k: v.item() for k, v in plain.step(floats).items()}
    found = {k: v.item() for k, v in model.step(batch).items()}
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_baseline_reads_the_same_scenes(tmp_path: Path) -> None:
    scene.write_scenes(tmp_path, 2, 64, 32)
    options = scene.options("cpu", f"--dataroot {tmp_path} --loadSize 32 --no_flip".split())
    from data.create import create_dataset

    ours, plain = create_dataset(options, training=True), baseline.Scenes(tmp_path, 32)
    for index in range(2):
        for kind, value in plain[index].items():
            torch.testing.assert_close(ours[index][kind].float(), value)


def test_the_loop_averages_like_the_project() -> None:
    features, inst = torch.randn(2, 3, 16, 32), scene.batch(32, 16, 2)["inst"]
    found = baseline.instance_average(features, inst)
    torch.testing.assert_close(found, instance_average(features, inst))


def test_saved_bytes_by_hand() -> None:
    x, weight = torch.randn(10, 4, requires_grad=True), nn.Parameter(torch.randn(4, 4))
    with measure.SavedBytes([weight]) as saved:
        y = x @ weight  # keeps x and the weight: 160 bytes besides the parameter
        assert saved.now == 160
        z = y.exp()  # keeps its result
        assert saved.now == 320
        w = z * z.detach()  # keeps only what is kept already
        assert saved.now == 320
        w.sum().backward()
        assert (saved.now, saved.peak) == (0, 320)


def test_allocated_bytes_by_hand() -> None:
    with measure.AllocatedBytes() as allocated:
        x = torch.ones(10, 4, device="meta")
        y = (x + 1).view(40)[:3]  # views keep all of their memory
        assert allocated.now == 320
        del x
        y = y.clone()
        assert y.shape == (3,) and (allocated.now, allocated.peak) == (12, 320)


def test_saved_bytes_do_not_depend_on_the_device() -> None:
    flags = f"--ngf 4 --no_vgg_loss {TINY}".split()
    peaks = []
    for device in ("cpu", "meta"):
        model = Pix2PixHDModel(scene.options("cpu", flags), torch.device(device))
        batch = {k: v.to(device) for k, v in scene.batch(64, 32, 1).items()}
        step = lambda model=model, batch=batch: model.step(batch)  # noqa: E731
        peaks.append(measure.peak_saved_bytes(step, list(model.parameters())))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)  # statistics are kept on a CPU only


def test_operations_times_and_tables_by_hand() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7
    order = []
    ways = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure.alternate(ways, CPU, repeat=3)
    assert order == ["a", "b"] * 4 and all(len(values) == 3 for values in times.values())
    first, second = measure.compare({"a": [2.0, 1.0, 5.0], "b": [1.0]})
    assert first == {"way": "a", "median": 2.0, "spread": 2.0, "best": 1.0, "ratio": 1}
    assert second["ratio"] == 0.5
    assert measure.table([{"way": "a", "n": 0.123456}]).splitlines()[1] == "a    0.1235"
    assert np.isfinite(measure.matmul_peak(CPU, torch.float32))


def test_seconds_per_image_from_what_train_logs(tmp_path: Path) -> None:
    """The median of all logged times but the first."""
    rows = [{"epoch": 1, "step": 20 * k, "time": 1 / 10**k} for k in (1, 2, 3, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert side_by_side.seconds_per_image(tmp_path) == pytest.approx(0.001)


@pytest.mark.thorough
def test_parts_of_the_gpu_benchmark(tmp_path: Path) -> None:
    """At toy size; a part that cannot be run is noted."""
    command = ["-m", "benchmarks.gpu", "--out", tmp_path, "--only", "pooling"]
    run_ok(*command)
    found = json.loads((tmp_path / "machine.json").read_text())
    assert found["parts"]["pooling"][0]["result"]["largest_difference"] < 1e-6
    table = (tmp_path / "table.md").read_text()
    assert "### Pooling" in table and "| way | median |" in table
    run_ok(*command, "--limit", 1)
    assert "failed: not done after 1 s" in (tmp_path / "table.md").read_text()
    run_ok(*command, "--only", "loading", "--minutes", 0.01)
    assert "### Loading" in (tmp_path / "table.md").read_text()
    assert "failed: no time left" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_all_parts_of_the_gpu_benchmark(tmp_path: Path) -> None:
    run_ok("-m", "benchmarks.gpu", "--out", tmp_path, timeout=1200)
    assert "failed" not in (tmp_path / "table.md").read_text()


def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the benchmarks' training runs, so that they start at once."""
    monkeypatch.setattr(measure, "run_to_its_end", lambda words, **_: run_command(*words[1:]))


def test_tiles_against_the_whole_image(monkeypatch, capsys) -> None:
    flags = "--device cpu --size 70x40 --tile 16 --ngf 1 --repeat 1"
    report = result(tiling.main, f"{flags} --compare", monkeypatch, capsys)
    assert report["most_grey_levels_apart"] <= 1 and report["share_of_values_that_differ"] < 0.01
    assert [row["way"] for row in report["rows"]] == ["whole", "tiles"]
    (row,) = result(tiling.main, flags, monkeypatch, capsys)["rows"]
    assert row["way"] == "tiles"


def test_times_of_the_editor(toy_data: Path, tmp_path: Path, call, monkeypatch, capsys) -> None:
    write_run(tmp_path, "run", dataroot=str(toy_data), label_nc=35)
    monkeypatch.setattr(editor, "REPEAT", 2)
    call(editor.main, "--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("64x32 on cpu")
    assert [row.split(":")[0] for row in rows] == [
        *("select", "paint, without generating", "paint and generate"),
        *("style and generate", "gallery of 10 styles"),
    ]


def test_control_by_styles(toy_data: Path, tmp_path: Path, call, monkeypatch, capsys) -> None:
    """With random weights, which steer nothing."""
    photos, colour_errors = [], style_control.colour_errors

    def recorded(picture: np.ndarray, real: np.ndarray, ids: np.ndarray) -> list[float]:
        photos.append(real)
        return colour_errors(picture, real, ids)

    monkeypatch.setattr(style_control, "colour_errors", recorded)
    write_run(tmp_path, "run", dataroot=str(toy_data), label_nc=35)
    write_run(tmp_path, "plain", dataroot=str(toy_data), label_nc=35, instance_feat=False)
    flags = ["--name", "run", "--labels_name", "plain", "--checkpoints_dir", tmp_path]
    call(style_control.main, *flags, "--results_dir", tmp_path / "results", "--gpu_ids", -1)
    folder = tmp_path / "results" / "run" / "style_control"
    found = json.loads((folder / "style_control.json").read_text())
    things = cars = 0
    for path in (toy_data / "test_inst").iterdir():
        ids = np.unique(np.asarray(Image.open(path)))
        things += (ids >= 1000).sum()
        cars += (ids // 1000 == 26).sum()
    assert found["scenes"] == 2 and found["things"] == things
    known = [colour for colour in found["palette_colour_of_style"] if colour is not None]
    assert found["cars_times_styles"] == len(known) * cars > 0
    assert 0 <= found["style_hit_share"] <= 1 and found["colour_error_labels_only"] > 0
    assert "(c) pixels outside the car change by" in capsys.readouterr().out
    assert (folder / "index.html").exists()
    first = min((toy_data / "test_img").iterdir())
    np.testing.assert_array_equal(photos[0], np.asarray(Image.open(first)))  # to the grey level


@pytest.mark.thorough
def test_gains_with_few_scenes(toy_data: Path, tmp_path: Path, call, monkeypatch, capsys) -> None:
    forked(monkeypatch)
    monkeypatch.setattr(few_images, "FLAGS", [*few_images.FLAGS, "--ngf", "4", "--ndf", "4"])
    few = [few_images.main, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--seeds", "1"]
    call(*few, "--epochs", 5, "--base_epochs", 1)
    row = capsys.readouterr().out.splitlines()[-1]
    plain, augmented, gain, tuned = row.split("|")[2:6]
    values = [
        read_rows(tmp_path / f"{name}-1" / "validation.jsonl")[-1]["l1"]
        for name in ("plain", "augmented", "fine-tuned")
    ]
    assert [float(v) for v in (plain, augmented, tuned)] == [round(v, 1) for v in values]
    assert gain.strip() == f"{1 - values[1] / values[0]:.0%}"
    first = sorted((toy_data / "train_label").iterdir())[0]
    renumbered = np.asarray(Image.open(tmp_path / "renumbered" / "train_label" / first.name))
    assert np.array_equal(renumbered, 34 - np.asarray(Image.open(first)))
    with pytest.raises(UserError, match="trained with other flags"):  # and are not these runs
        call(*few, "--epochs", 6, "--base_epochs", 1)


def test_the_table_of_recipes(toy_data: Path, tmp_path: Path, call, monkeypatch, capsys) -> None:
    pytest.importorskip("cityscapesscripts", reason="needs requirements-eval.txt")
    segmenter = tmp_path / "net.pt"
    made = ["--dataroot", toy_data, "--out", segmenter, "--width", 32, "--steps", 2, "--batch", 2]
    run_ok("-m", "benchmarks.toy_segmenter", *made)
    monkeypatch.setattr(recipes, "VARIANTS", {"paper": []})
    forked(monkeypatch)
    flags = ["--dataroot", toy_data, "--segmenter", segmenter, "--seeds", "1,2", "--epochs", 1]
    call(recipes.main, *flags, "--checkpoints_dir", tmp_path / "runs")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 3 and lines[2].startswith("| paper |")
    rows = [read_rows(tmp_path / "runs" / f"paper-{n}" / "validation.jsonl")[-1] for n in (1, 2)]
    values = [row["l1"] for row in rows]
    assert f"| {np.mean(values):.1f} ± {np.std(values):.1f} |" in lines[2]
