"""What test_distributed.py runs in one, two and four processes: python THIS WHAT DATA OUT."""

import argparse
import errno
import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it has only its own folder

from data.create import create_dataset, create_loader
from models.pix2pixHD_model import Pix2PixHDModel
from options.train_options import TrainOptions
from util import distributed
from util.errors import UserError, run
from util.run.stop import Stop

STEPS = 6  # two epochs of batches of 4, 4 and 1 images
TINY = (
    "--gpu_ids -1 --label_nc 6 --ngf 4 --ndf 4 --nef 4 --n_downsample_global 1 --n_blocks_global 1"
    " --n_downsample_E 1 --num_D 2 --n_layers_D 2 --no_vgg_loss --loadSize 32 --nThreads 0"
    " --batchSize 4 --no_flip"
)
CASES = {
    "instance": "--instance_feat",
    "batch": "--norm batch",
    "recompute": "--norm batch --checkpoint_activations",
    "stages": "--netG local --n_blocks_local 1 --niter_fix_global 1",
    "latent": "--instance_noise 2 --instance_mean_D --lambda_latent 5",
    "pool": "--pool_size 6 --cache ram",
    "bf16": "--amp bf16",
}


def train(opt: argparse.Namespace, device: torch.device) -> dict:
    """STEPS steps; the weights by network, and the losses of the last step over all images."""
    torch.manual_seed(0)
    loader = create_loader(opt, create_dataset(opt, training=True))
    model = Pix2PixHDModel(opt, device)
    steps, epoch = 0, 0
    while steps < STEPS:
        epoch += 1
        if model.fixes_global and epoch > opt.niter_fix_global:
            model.start_stage(fix_global=False)
        for batch in loader.epoch(epoch):
            batch["image"] = batch["image"].to(torch.get_default_dtype())
            losses = model.step(batch, batch["weight"])
            assert model.finite
            if opt.amp == "bf16" and distributed.world_size() > 1:  # gradients were sent as bf16
                sums = [p.grad for net in model.networks().values() for p in net.parameters()]
                assert all(torch.equal(grad, grad.bfloat16().float()) for grad in sums)
            steps += 1
            if steps == STEPS:
                break
    values = distributed.mean(torch.stack(list(losses.values())) * batch["weight"])
    weights = {name: net.state_dict() for name, net in model.networks().items()}
    return {"weights": weights, "losses": dict(zip(losses, values.tolist()))}


def fingerprint(weights: dict) -> str:
    parts = [value.numpy().tobytes() for net in weights.values() for value in net.values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def without_cuda() -> patch:
    """PyTorch as built for CPUs only."""
    return patch.object(torch.version, "cuda", None)


def equality(opt: argparse.Namespace, device: torch.device) -> None:
    """Every case; process 0 writes the weights, and all must have the same. In float64, where equal
    arithmetic gives equal numbers to 1e-12."""
    from benchmarks.correctness import double_precision

    for name, flags in CASES.items():
        with without_cuda() if name == "bf16" else double_precision():
            result = train(options(opt.dataroot, flags), device)
        prints = distributed.gather(fingerprint(result["weights"]))
        assert len(set(prints)) == 1, f"{name}: weights and statistics differ between processes"
        if distributed.is_main():
            torch.save(result, Path(opt.out) / f"{name}_{distributed.world_size()}.pth")


def exit_statuses(opt: argparse.Namespace, device: torch.device) -> int:
    """The launcher ends with process 0's status."""
    return 40 + distributed.world_size() - distributed.rank()


def error_in_all(opt: argparse.Namespace, device: torch.device) -> None:
    raise UserError("all found a bad flag")


def one_fails(others: Callable[[], object]) -> Callable:
    """Work in which process 1 fails, a moment after the others began theirs."""

    def work(opt: argparse.Namespace, device: torch.device) -> None:
        distributed.wait_for_all()
        if distributed.rank() == 1:
            time.sleep(random.uniform(0, 0.3))
            raise UserError("process 1 found a bad file")
        others()

    return work


def reduce_forever() -> None:
    while True:
        distributed.mean(torch.ones(10))


def compute_forever() -> None:
    x = torch.ones(200, 200)
    while True:
        x = (x @ x).tanh()


class Scenes(torch.utils.data.Dataset):
    """Endless scenes, each of which takes a while to read."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return index


def read_forever() -> None:
    for batch in torch.utils.data.DataLoader(Scenes(), num_workers=2):
        distributed.gather(batch.shape)


error_in_waiting = one_fails(distributed.wait_for_all)
error_in_collective = one_fails(reduce_forever)
error_in_compute = one_fails(compute_forever)
error_in_loading = one_fails(read_forever)


def out_of_memory_in_one(opt: argparse.Namespace, device: torch.device) -> None:
    if distributed.rank() == 1:
        torch.empty(10**15)
    distributed.wait_for_all()


def bug_in_one(opt: argparse.Namespace, device: torch.device) -> None:
    """A bug, not a mistake of the user."""
    if distributed.rank() == 1:
        raise ZeroDivisionError
    distributed.wait_for_all()


def error_in_startup(opt: argparse.Namespace, device: torch.device) -> None:
    """Never called: process 1 fails before it joins the others; see main."""


def until_stopped(opt: argparse.Namespace, device: torch.device) -> int:
    """Short operations until asked to stop, as in training."""
    stop = Stop()
    out = Path(opt.out)
    (out / f"ready{distributed.rank()}").touch()
    highest = distributed.DelayedMaximum()
    while not (signal := highest(stop.signal)):
        distributed.mean(torch.ones(10))
    time.sleep(0.5)  # a save
    (out / f"saved{distributed.rank()}").touch()
    highest.finish()
    return 128 + signal


def unsaved_best(opt: argparse.Namespace, device: torch.device) -> int:
    """Training with ever worse validations, whose first best weights cannot be saved."""
    from evaluation.validation import Validation
    from train import train
    from util.run import resume

    measure, save_set = Validation.measure, resume.save_set
    values, failures = iter((3.0, 2.0, 1.0)), []

    def worse(self: Validation) -> tuple[dict, dict]:
        figures, images = measure(self)
        return figures | {"ssim": next(values)}, images

    def full_once(folder: Path, files: dict, copies: dict | None = None) -> None:
        if not failures and any("best" in name for name in copies or ()):
            failures.append(copies)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_set(folder, files, copies)

    Validation.measure, resume.save_set = worse, full_once
    return train(opt, device)


def random_states(opt: argparse.Namespace, device: torch.device) -> int:
    """Training in which each process writes its random state before the first step."""
    import train

    class Run(train.TrainingRun):
        def batches(self) -> Iterator[dict]:
            torch.save(torch.get_rng_state(), Path(opt.out) / f"random{distributed.rank()}.pth")
            return super().batches()

    train.TrainingRun = Run
    return train.train(opt, device)


def one_cannot_validate(opt: argparse.Namespace, device: torch.device) -> int:
    """Training in which only process 1 cannot measure an image."""
    from evaluation.validation import Validation
    from train import train

    def fail(self: Validation, batch: dict) -> None:
        raise UserError("process 1 has no memory for the segmenter")

    if distributed.rank() == 1:
        Validation._generate = fail
    return train(opt, device)


def one_lacks_weights(opt: argparse.Namespace, device: torch.device) -> int:
    """Training in which only process 1 does not find LPIPS's weights when it validates."""
    from torchmetrics import MeanMetric

    from evaluation import measures, validation
    from train import train

    class Distance(MeanMetric):
        def update(self, generated: torch.Tensor, real: torch.Tensor) -> None:
            super().update((generated - real).abs())

    def check(file: str, fetch: bool) -> None:
        if file != measures.ALEXNET or distributed.rank() == 1:
            raise UserError(f"{file} is missing")

    measures.SET_MEASURES["lpips"] = measures.ALEXNET, lambda count, others: Distance()
    measures._check_weights = check
    validation.why_missing = lambda name, folder: None if name == "lpips" else "not there"
    return train(opt, device)


def other_scenes(opt: argparse.Namespace, device: torch.device) -> int:
    """Training in which process 1 has another data set."""
    from train import train

    if distributed.rank() == 1:
        opt.max_dataset_size = 8
    return train(opt, device)


def other_validation(opt: argparse.Namespace, device: torch.device) -> int:
    """Training in which process 1 has no scenes to validate on."""
    from train import train

    opt.val_phase = "none" if distributed.rank() else "train"
    return train(opt, device)


def gradients(opt: argparse.Namespace, device: torch.device) -> None:
    """G's gradients of the first step, averaged over the processes."""
    torch.manual_seed(0)
    model = Pix2PixHDModel(opt, device)
    loader = create_loader(opt, create_dataset(opt, training=True))
    batch = next(iter(loader))
    model.step(batch, batch["weight"])
    if distributed.is_main():
        grads = {name: p.grad for name, p in model.networks()["G"].named_parameters()}
        torch.save(grads, Path(opt.out) / f"gradients_{distributed.world_size()}.pth")


def options(data: str, flags: str = "") -> argparse.Namespace:
    return TrainOptions().parse([*TINY.split(), "--dataroot", data, *flags.split()])


def main() -> object:
    what, data, out, *flags = sys.argv[1:]
    opt = options(data, " ".join(flags))
    opt.out = out
    rank = os.environ.get("RANK")
    if what.startswith("start:") and rank is None:  # as --gpu_ids 0,1 does, here on the CPU
        return distributed.start_processes(2)
    what = what.removeprefix("start:")
    if what == "error_in_startup" and rank == "1":
        raise UserError("process 1 found a bad file")
    return distributed.launch(globals()[what], opt)


if __name__ == "__main__":
    run(main)
