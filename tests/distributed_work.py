"""What test_distributed.py runs in one, two and four processes: python THIS WHAT DATA OUT."""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch

from data.create import create_loader
from models.pix2pixHD_model import Pix2PixHDModel
from options.train_options import TrainOptions
from util import distributed
from util.errors import UserError, run
from util.run.stop import Stop

STEPS = 10
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
    "pool": "--pool_size 6",
    "bf16": "--amp bf16",
}


def train(opt: argparse.Namespace, device: torch.device) -> dict:
    """STEPS steps; the weights by network, and the losses of the last step over all pictures."""
    torch.manual_seed(0)
    loader = create_loader(opt)
    model = Pix2PixHDModel(opt, device)
    steps, epoch = 0, 0
    while steps < STEPS:
        epoch += 1
        if model.fixes_global and epoch > opt.niter_fix_global:
            model.start_stage(fix_global=False)
        for batch in loader.epoch(epoch):
            losses = model.step(batch, batch["weight"])
            assert model.finite
            steps += 1
            if steps == STEPS:
                break
    values = distributed.mean(torch.stack(list(losses.values())) * batch["weight"])
    weights = {name: net.state_dict() for name, net in model.networks().items()}
    return {"weights": weights, "losses": dict(zip(losses, values.tolist()))}


def fingerprint(weights: dict) -> str:
    parts = [value.numpy().tobytes() for net in weights.values() for value in net.values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def equality(opt: argparse.Namespace, device: torch.device) -> None:
    """Every case; process 0 writes the weights, and all must have the same."""
    for name, flags in CASES.items():
        result = train(options(opt.dataroot, flags), device)
        prints = distributed.gather(fingerprint(result["weights"]))
        assert len(set(prints)) == 1, f"{name}: weights and statistics differ between processes"
        if distributed.is_main():
            torch.save(result, Path(opt.out) / f"{name}_{distributed.world()}.pth")


def answers(opt: argparse.Namespace, device: torch.device) -> int:
    """Process 0's answer is the launcher's."""
    return 40 + distributed.world() - distributed.rank()


def error_of_one(opt: argparse.Namespace, device: torch.device) -> None:
    """One process finds a mistake while the others wait for it."""
    if distributed.rank() == 1:
        raise UserError("the second process found a bad file")
    distributed.wait_for_all()


def error_of_all(opt: argparse.Namespace, device: torch.device) -> None:
    raise UserError("all found a bad flag")


def until_stopped(opt: argparse.Namespace, device: torch.device) -> int:
    """Work that ends as training does when it is asked to."""
    stop = Stop()
    (Path(opt.out) / f"ready{distributed.rank()}").touch()
    while not stop.asked():
        time.sleep(0.1)
    (Path(opt.out) / f"saved{distributed.rank()}").touch()
    return stop.status


def options(data: str, flags: str = "") -> argparse.Namespace:
    return TrainOptions().parse([*TINY.split(), "--dataroot", data, *flags.split()])


def main() -> object:
    what, data, out, *flags = sys.argv[1:]
    opt = options(data, " ".join(flags))
    opt.out = out
    if what.startswith("start:"):  # as --gpu_ids 0,1 does, here on the CPU
        return distributed.start(2, globals()[what.removeprefix("start:")], opt)
    return distributed.launch(globals()[what], opt)


if __name__ == "__main__":
    run(main)
