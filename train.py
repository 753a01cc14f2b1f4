"""Train a generator that turns label maps into photographs.

The 512p stage on Cityscapes, then the 1024p stage on top of it:

    python train.py --name label2city_512p
    python train.py --name label2city_1024p --netG local --ngf 32 --num_D 3 \
        --load_pretrain checkpoints/label2city_512p --niter 50 --niter_decay 50 \
        --niter_fix_global 10 --resize_or_crop crop --fineSize 1024

Go on with a run that was stopped (add the flags that it was started with):

    python train.py --name label2city_512p --continue_train

On four GPUs: add --gpu_ids 0,1,2,3 --batchSize 4, or start it with torchrun.
"""

import argparse
import time

import torch

from data.create import count_labels, create_loader
from models import create_model
from models.build import smallest_side
from options.base_options import run_dir, write_options
from options.train_options import TrainOptions
from util import distributed
from util.errors import UserError, run
from util.files import cannot_write, make_folder
from util.pages.colours import label_picture, to_image
from util.progress import Pace, bar, log, peak_memory, warn_if_unwritable
from util.run.resume import FOLDER_FLAGS, Position, load_weights, save
from util.run.stop import Stop
from util.run.visualizer import Visualizer
from util.run.watch import Watch
from util.setup import seed_everything, set_up_torch


def train(opt: argparse.Namespace, device: torch.device) -> int:
    """The whole of training, in each process. Returns the exit status."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if opt.label_nc == "auto":
        opt.label_nc = count_labels(opt.dataroot, opt.phase, opt.ignore_label)
        log_main(f"--label_nc {opt.label_nc}")
    loader = create_loader(opt, smallest_side(opt))
    folder = make_folder(run_dir(opt), FOLDER_FLAGS)
    model = create_model(opt, device, loader.dataset.has_one_size)
    scenes = len(loader.dataset)
    at = load_weights(model, opt, folder, scenes)
    visualizer = start_records(opt, at, scenes, device)
    if opt.verbose:
        log_main(str(model))

    epochs = opt.niter + opt.niter_decay
    saved = True
    watch, stop = Watch(), Stop()
    pace = Pace(total=epochs * scenes, done=at.step)
    while at.epoch <= epochs:
        if model.fixes_global and at.epoch > opt.niter_fix_global:
            model.start_stage(fix_global=False)
            log_main("from here on all of the generator is trained")
        rate = model.set_learning_rate(at.epoch)

        progress = bar(total=len(loader), initial=at.batch, desc=f"epoch {at.epoch}/{epochs}")
        waiting = time.perf_counter()
        for batch in loader.epoch(at.epoch, start=at.batch):
            pace.waited(time.perf_counter() - waiting)
            losses = model.step(batch, batch["weight"])
            at.advance(batch["pictures"])
            progress.update()
            watch.add(model.finite, at.step, losses, batch["path"])
            if device.type == "cpu":  # on a GPU, looking would mean waiting for it
                watch.check()

            if at.passed(opt.print_freq):
                values = mean_over_processes(losses, batch["weight"])
                watch.check()
                if visualizer:
                    with warn_if_unwritable("the logs"):
                        report(visualizer, at, rate, values, pace, device)
                    for warning in watch.warnings(values, model.fake):
                        log(warning)
            if visualizer and at.passed(opt.display_freq):
                with warn_if_unwritable("the pictures"):
                    visualizer.display(current_visuals(model, batch, opt), at.epoch, at.step)
            if at.batch < len(loader):  # the epoch's end is saved below
                stopping = stop.asked()
                if stopping or at.passed(opt.save_latest_freq):
                    saved = save(model, watch, opt, folder, at, scenes)
                if stopping:
                    close(visualizer)
                    log_main(f"stopped at step {at.step}; {how_to_go_on(saved)}")
                    return stop.status
            waiting = time.perf_counter()

        progress.close()
        crossed = at.passed(opt.save_latest_freq)
        ended = at.epoch
        at.next_epoch()
        stopping = stop.asked() and ended < epochs
        if ended % opt.save_epoch_freq == 0 or ended == epochs:
            saved = save(model, watch, opt, folder, at, scenes, name=str(ended))
        elif crossed or stopping:
            saved = save(model, watch, opt, folder, at, scenes)
        if stopping:
            close(visualizer)
            log_main(f"stopped behind epoch {ended}; {how_to_go_on(saved)}")
            return stop.status

    if not saved:
        raise UserError(f"{folder}: the end of training could not be saved; {how_to_go_on(saved)}")
    close(visualizer)
    if visualizer:
        page = "" if opt.no_html else f", pictures in {folder / 'web' / 'index.html'}"
        log(f"done: weights in {folder}{page}")
    return 0


def start_records(
    opt: argparse.Namespace, at: Position, scenes: int, device: torch.device
) -> Visualizer | None:
    """Open the run's logs and page and write down its options, in the main process alone."""
    if not distributed.is_main():
        return None
    try:
        visualizer = Visualizer(
            run_dir(opt),
            write_html=not opt.no_html,
            tf_log=opt.tf_log,
            display_winsize=opt.display_winsize,
            resume=at.step > 0,
        )
        visualizer.truncate_after(at.step)
        write_options(opt)
    except OSError as error:
        raise cannot_write(run_dir(opt), error, FOLDER_FLAGS) from error
    epochs = opt.niter + opt.niter_decay
    where = f"epoch {at.epoch} of {epochs}" if at.epoch <= epochs else f"all {epochs} epochs done"
    log(f"{scenes} scenes, {where}, on {device}")
    return visualizer


def close(visualizer: Visualizer | None) -> None:
    """Let TensorBoard's last rows reach the disk."""
    if visualizer:
        visualizer.close()


def report(
    visualizer: Visualizer,
    at: Position,
    rate: float,
    losses: dict[str, float],
    pace: Pace,
    device: torch.device,
) -> None:
    """Log the losses and print them with the pace of training."""
    seconds, waited, left = pace.look(at.step)
    line = visualizer.log(at.epoch, at.pictures, at.step, seconds, waited, rate, losses)
    memory = peak_memory(device)
    log(f"{line}  [{1 / seconds:.3g} iters/s, data {waited:.3f} s, {memory:.1f} GB, {left} left]")


def current_visuals(model: torch.nn.Module, batch: dict, opt: argparse.Namespace) -> dict:
    """The batch's first scene as pictures (H, W, 3) uint8: label map, generated, real."""
    return {
        "input_label": label_picture(batch["label"][0], opt.label_nc, opt.ignore_label),
        "synthesized_image": to_image(model.fake[0]),
        "real_image": to_image(batch["image"][0]),
    }


def mean_over_processes(losses: dict[str, torch.Tensor], weight: float) -> dict[str, float]:
    """The losses as numbers, averaged over the pictures of all processes."""
    values = distributed.mean(weight * torch.stack(list(losses.values())))
    return dict(zip(losses, values.tolist()))


def how_to_go_on(saved: bool) -> str:
    return f"--continue_train goes on from {'here' if saved else 'the last checkpoint'}"


def log_main(message: str) -> None:
    if distributed.is_main():
        log(message)


def main() -> int:
    return distributed.launch(train, TrainOptions().parse())


if __name__ == "__main__":
    run(main)
