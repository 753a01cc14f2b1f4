"""Training from the golden starting weights gives the reference's losses, step by step.

The golden cases are not part of the repository; without them these tests are skipped.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import SHARED, TINY, run_command, run_ok, thorough
from PIL import Image

GOLDEN = SHARED / "golden"
DATA = {"data": GOLDEN / "data", "cityscapes_sample": SHARED / "cityscapes_sample"}
CASES = ["labels_512p", "labels_vgg", "features_512p", "local_1024p"]

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden cases (../shared/golden) are missing"
)


def golden_case(name: str) -> dict:
    case = json.loads((GOLDEN / name / "case.json").read_text())
    if not DATA[case["dataset"]].is_dir():
        pytest.skip(f"{name} needs ../shared/{case['dataset']}")
    return case


def write_vgg(path: Path, seed: int) -> Path:
    """VGG19 with the case's random weights, its unused classifier emptied: 80 MB, not 570."""
    torch.manual_seed(seed)
    state = torchvision.models.vgg19(weights=None).state_dict()
    for name in state:
        if name.startswith("classifier."):
            state[name] = torch.zeros(()).expand(state[name].shape)
    torch.save(state, path)
    return path


def train(
    name: str, case: dict, tmp_path: Path, *program: object, gpu_ids: int = -1
) -> list[dict[str, float]]:
    """The losses of every step of a case's training. program: what runs train.py."""
    flags = case["train_args"].split()
    if case["vgg_seed"] is not None:
        flags += ["--vgg_weights", write_vgg(tmp_path / "vgg19.pth", case["vgg_seed"])]
    output = run_ok(
        *(*program, "train.py", "--name", name, "--checkpoints_dir", tmp_path),
        *("--dataroot", DATA[case["dataset"]], "--load_pretrain", GOLDEN / name / "init"),
        *("--serial_batches", "--no_flip", "--nThreads", 0, "--gpu_ids", gpu_ids),
        *("--print_freq", 1, "--no_html", *flags),
    )
    assert "starts fresh" not in output
    rows = [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["epoch"], row["iters"]) for row in rows]
    assert steps == [(row["epoch"], row["iters"]) for row in case["losses"]]
    names = case["losses"][0].keys() - {"epoch", "iters"}
    assert rows[0].keys() - {"epoch", "iters", "step", "time", "data_time", "lr"} == names
    return [{name: row[name] for name in names} for row in rows]


def in_float64(name: str) -> list[dict[str, float]]:
    """The reference's losses in float64, where rounding hides nothing."""
    return json.loads((GOLDEN / name / "losses_float64.json").read_text())


@pytest.mark.parametrize("name", [CASES[0], *thorough(*CASES[1:])])
def test_losses_in_float64(name: str, tmp_path: Path) -> None:
    """The arithmetic is the reference's: after a whole run no loss differs by a billionth."""
    found = train(name, golden_case(name), tmp_path, GOLDEN / "in_float64.py")
    assert_equal(found, in_float64(name))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_losses_in_float64_on_a_gpu(name: str, tmp_path: Path) -> None:
    found = train(name, golden_case(name), tmp_path, GOLDEN / "in_float64.py", gpu_ids=0)
    assert_equal(found, in_float64(name))


def assert_equal(found: list[dict[str, float]], exact: list[dict[str, float]]) -> None:
    for row, truth in zip(found, exact):
        for key, value in row.items():
            assert value == pytest.approx(truth[key], rel=1e-9), (truth["epoch"], key)


@pytest.mark.parametrize("name", [*thorough(*CASES[:-1]), CASES[-1]])
def test_losses_in_float32(name: str, tmp_path: Path) -> None:
    """Rounding errors stay near the reference's own: in three steps at most five times as large.

    Later steps drift by themselves, the reference's too: by up to a percent.
    """
    case = golden_case(name)
    found, exact = train(name, case, tmp_path), in_float64(name)
    for key in found[0]:
        own, reference = (
            [abs(row[key] - truth[key]) / abs(truth[key]) for row, truth in zip(rows, exact)]
            for rows in (found, case["losses"])
        )
        assert max(own[:3]) <= max(5 * max(reference[:3]), 5e-6), (key, own[:3], reference[:3])
        assert max(own) <= 0.02, (key, own)


def test_validation_and_test_in_float64(toy_data: Path, tmp_path: Path) -> None:
    """All in float64, not only training; images equal float32's up to the last rounding."""
    run = ["--name", "run", "--checkpoints_dir", tmp_path, "--dataroot", toy_data, "--gpu_ids", -1]
    program = GOLDEN / "in_float64.py"
    flags = ["--niter", 1, "--niter_decay", 0, "--val_freq", 1, "--no_html"]
    done = run_command(program, "train.py", *TINY, *run, *flags)
    assert done.returncode == 0 and "validation after epoch 1: ssim" in done.stdout, done.stderr
    images = {}
    for name, words in ("double", [program, "test.py"]), ("single", ["test.py"]):
        run_ok(*words, *run, "--results_dir", tmp_path / name)
        files = sorted((tmp_path / name).rglob("*_synthesized_image.png"))
        images[name] = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
    assert abs(images["double"] - images["single"]).max() <= 1 < images["double"].std()
