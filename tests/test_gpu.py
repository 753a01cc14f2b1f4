"""What needs an NVIDIA GPU: the same numbers as on a CPU, every flag of precision and speed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, one_line, run_command, run_ok

from benchmarks import correctness, scene
from data.values import bytes_to_float
from models import load_generator
from models.layers import instance_average

CUDA = torch.device("cuda")
ON_GPU = [flag for flag in TINY if flag not in ("--gpu_ids", "-1")] + ["--gpu_ids", "0"]
EPOCHS = ["--niter", 1, "--niter_decay", 1, "--no_html", "--val_phase", "none"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("network", correctness.NETWORKS)
def test_a_step_equals_that_of_the_cpu(network: str) -> None:
    """Two steps: in float64 to 1e-9; in float32 as near as float32 allows."""
    flags = correctness.NETWORKS[network]
    weights, batch = correctness.first_weights(flags), scene.batch(128, 64, 2, instances=20)
    with correctness.double_precision():
        exact, image = correctness.step(flags, torch.device("cpu"), batch, weights)
        losses, fake = correctness.step(flags, CUDA, batch, weights)
    assert all(abs(losses[name] - value) <= 1e-9 * abs(value) for name, value in exact.items())
    assert (fake - image).abs().max() < 1e-8
    losses, _ = correctness.step(flags, CUDA, batch, weights)
    assert all(abs(losses[name] - value) <= 1e-3 * abs(value) for name, value in exact.items())


@pytest.mark.parametrize(
    "more", ["", "--recipe plus --instance_mean_D --lambda_latent 10", "--instance_feat"]
)
def test_a_step_never_waits_for_the_device(more: str) -> None:
    """Nothing in a step copies to the CPU: Python runs ahead of the GPU."""
    from models.pix2pixHD_model import Pix2PixHDModel

    flags = [*correctness.SMALL.split(), *more.split()]
    model = Pix2PixHDModel(scene.options("cuda", flags), CUDA)
    batch = scene.batch(128, 64, 2, instances=20)
    batch["image"] = ((batch["image"] + 1) * 127.5).byte()  # as the loader gives it on GPUs
    batch = scene.pinned(batch, CUDA)
    for _ in range(3):
        model.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_bytes_become_the_same_floats_as_on_the_cpu() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(bytes_to_float(values.cuda()).cpu(), bytes_to_float(values))


@pytest.mark.parametrize(
    "flags",
    [
        *(["--amp", "bf16"], ["--amp", "fp16"], ["--tf32"], ["--checkpoint_activations"]),
        *(["--compile"], ["--compile", "--amp", "bf16"], ["--deterministic"]),
        *(["--recipe", "plus"], ["--recipe", "plus", "--instance_mean_D", "--deterministic"]),
        ["--recipe", "plus", "--lambda_latent", "10", "--amp", "fp16", "--compile"],
        ["--netG", "local", "--niter_fix_global", "1"],
    ],
    ids=" ".join,
)
def test_every_flag_trains_and_generates(flags: list[str], toy_data: Path, tmp_path: Path) -> None:
    named = ["--name", "run", "--checkpoints_dir", tmp_path]
    run_ok("train.py", *ON_GPU, *EPOCHS, *named, "--dataroot", toy_data, *flags)
    given = [flag for flag in flags if flag in ("--compile", "--amp", "bf16", "fp16", "--tf32")]
    run_ok("test.py", *named, "--gpu_ids", 0, "--results_dir", tmp_path, *given)


@pytest.mark.parametrize("more", [[], ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]])
def test_resume_is_bit_equal(more: list, toy_data: Path, tmp_path: Path) -> None:
    flags = [*ON_GPU, "--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--deterministic"]
    flags += [*more, "--use_dropout"]
    run_ok("train.py", *flags, *EPOCHS, "--name", "whole")
    half = ["--niter", 1, "--niter_decay", 0, "--no_html", "--val_phase", "none"]
    run_ok("train.py", *flags, *half, "--name", "half")
    run_ok("train.py", *flags, *EPOCHS, "--name", "half", "--continue_train")
    for path in (tmp_path / "whole").glob("latest_net_*.pth"):
        whole, half = torch.load(path), torch.load(tmp_path / "half" / path.name)
        assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_checkpoints_move_between_cpu_and_gpu(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--dataroot", toy_data, "--checkpoints_dir", tmp_path, "--name", "run", "--no_html"]
    epochs = iter((1, 2, 3))
    for device in (TINY, ON_GPU, TINY):
        length = ["--niter", next(epochs), "--niter_decay", 0, "--val_phase", "none"]
        run_ok("train.py", *device, *flags, *length, "--continue_train")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 35, (64, 128), dtype=np.uint8)
    images = [load_generator(tmp_path / "run", device=d)(label, label) for d in ("cpu", "cuda")]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1


def test_an_onnx_graph_of_weights_trained_on_a_gpu(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    named = ["--name", "run", "--checkpoints_dir", tmp_path]
    run_ok("train.py", *ON_GPU, *EPOCHS, *named, "--dataroot", toy_data)
    run_ok("test.py", *named, "--gpu_ids", 0, "--export_onnx", tmp_path / "net.onnx")


def test_pooling_of_one_huge_instance_and_of_many() -> None:
    features = torch.randn(1, 3, 1024, 2048, device=CUDA, requires_grad=True)
    for inst in (torch.zeros(1, 1, 1024, 2048), torch.randint(0, 5000, (1, 1, 1024, 2048))):
        averaged = instance_average(features, inst.int().to(CUDA))
        exact = instance_average(features.detach().double().cpu(), inst.int())
        torch.testing.assert_close(averaged.cpu().double(), exact, rtol=0, atol=1e-5)
        averaged.sum().backward()


def test_out_of_memory_ends_in_one_line(toy_data: Path, tmp_path: Path) -> None:
    done = run_command(
        *("train.py", *ON_GPU, *EPOCHS, "--name", "run", "--checkpoints_dir", tmp_path),
        # small weights, and hundreds of maps of 2 GB
        *("--dataroot", toy_data, "--loadSize", 4096, "--ngf", 64),
        *("--n_downsample_global", 0, "--n_blocks_global", 99),
    )
    assert "memory" in one_line(done)


def test_two_processes_on_one_device() -> None:
    """With gloo, as NCCL refuses to share a device: gradients are averaged."""
    code = (
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "net = torch.nn.Linear(4, 1).cuda()\n"
        "torch.nn.init.ones_(net.weight)\n"
        "net = torch.nn.parallel.DistributedDataParallel(net)\n"
        "net(torch.full((1, 4), float(dist.get_rank() + 1)).cuda()).sum().backward()\n"
        "assert (net.module.weight.grad == 1.5).all()\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(os.environ.get("TMPDIR", "/tmp")) / f"two_processes_{os.getpid()}.py"
    script.write_text(code)
    try:
        done = subprocess.run([*command, script], cwd=ROOT, capture_output=True, text=True)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr


def test_the_editors_model(tmp_path: Path) -> None:
    from tiny_run import write_run

    from models import create_model
    from options.edit_options import EditOptions

    write_run(tmp_path, "run")
    images = []
    for device in ("-1", "0"):
        flags = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--gpu_ids", device]
        opt = EditOptions().parse(flags)
        ui = create_model(opt, CUDA if device == "0" else torch.device("cpu"))
        rng = np.random.default_rng(0)
        label = rng.integers(0, 35, (64, 128), dtype=np.uint8)
        ui.open(label, label.astype(np.int32))
        images.append(ui.picture())
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
