"""Training from the golden starting weights gives the reference's losses, step by step.

The golden cases are no part of the repository; where they are absent, these tests are skipped.
"""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import SHARED, run_command

GOLDEN = SHARED / "golden"
DATA = {"data": GOLDEN / "data", "cityscapes_sample": SHARED / "cityscapes_sample"}
CASES = ["labels_512p", "labels_vgg", "features_512p", "local_1024p"]

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden cases are not beside the repository (../shared/golden)"
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


def train(name: str, case: dict, tmp_path: Path) -> list[dict]:
    """The rows of metrics.jsonl that a case's training writes."""
    flags = case["train_args"].split()
    if case["vgg_seed"] is not None:
        flags += ["--vgg_weights", write_vgg(tmp_path / "vgg19.pth", case["vgg_seed"])]
    done = run_command(
        *("train.py", "--name", name, "--checkpoints_dir", tmp_path),
        *("--dataroot", DATA[case["dataset"]], "--load_pretrain", GOLDEN / name / "init"),
        *("--serial_batches", "--no_flip", "--nThreads", 0, "--gpu_ids", -1),
        *("--print_freq", 1, "--no_html", *flags),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starts fresh" not in done.stdout
    rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_losses(name: str, tmp_path: Path) -> None:
    case = golden_case(name)
    found = train(name, case, tmp_path)
    assert len(found) == len(case["losses"])
    for step, (row, golden) in enumerate(zip(found, case["losses"])):
        where = golden.pop("epoch"), golden.pop("iters")
        assert (row["epoch"], row["iters"]) == where
        bookkeeping = ("epoch", "iters", "step", "time", "data_time", "lr")
        losses = {key: value for key, value in row.items() if key not in bookkeeping}
        assert losses.keys() == golden.keys()
        for key, value in golden.items():
            assert losses[key] == pytest.approx(value, abs=0.02 * abs(value) + 0.005)
            if step < 3:
                assert losses[key] == pytest.approx(value, rel=1e-3), (where, key)
