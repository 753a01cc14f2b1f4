"""Train a generator that turns label maps into photographs.

The 512p stage on Cityscapes, then the 1024p stage on top of it:

    python train.py --name label2city_512p
    python train.py --name label2city_1024p --netG local --ngf 32 --num_D 3 \
        --load_pretrain checkpoints/label2city_512p --niter 50 --niter_decay 50 \
        --niter_fix_global 10 --resize_or_crop crop --fineSize 1024

Resume a run that was stopped (add the flags that it was started with):

    python train.py --name label2city_512p --continue_train

On four GPUs: add --gpu_ids 0,1,2,3 --batchSize 4, or start it with torchrun.
Where to change what: docs/architecture.md.
"""

from util.run.stop import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # importing torch takes seconds

import argparse
from functools import partial

import torch

from data.create import create_dataset, create_loader, resolve_data_flags
from evaluation.validation import create_validation
from models import create_model
from models.build import min_training_side
from options.train_options import TrainOptions, flags_without_effect
from util import distributed
from util.errors import run
from util.files import make_folder
from util.pages.colours import scene_images
from util.progress import log_main
from util.run.checkpoints import run_dir
from util.run.resume import FOLDER_FLAGS
from util.run.training_run import TrainingRun
from util.run.turns import Turn
from util.setup import seed_everything, set_up_torch


def train(opt: argparse.Namespace, device: torch.device) -> int:
    """Train from start to end, in each process. Returns the exit status."""
    seed_everything(opt.seed)
    for line in flags_without_effect(opt) + resolve_data_flags(opt):
        log_main(line)
    dataset = create_dataset(opt, training=True, min_side=min_training_side(opt))
    loader = create_loader(opt, dataset)
    set_up_torch(opt.deterministic, opt.tf32, dataset.has_one_size)
    folder = make_folder(run_dir(opt), FOLDER_FLAGS)
    model = create_model(opt, device, dataset.has_one_size)
    validation, message = create_validation(opt, model)
    if distributed.rank():  # from here on, each process draws its own dropout masks
        seed_everything(opt.seed + distributed.rank())
    training = TrainingRun(opt, folder, model, loader, validation)
    log_main(message)
    if opt.verbose:
        log_main(str(model))

    position = training.position
    turn = Turn(device)  # trainings that share a CPU alternate
    while not training.is_over():
        fix_global = position.epoch <= opt.niter_fix_global
        if model.fixes_global != fix_global:
            model.start_stage(fix_global)
            part = "only the outermost enhancer" if fix_global else "all of the generator"
            log_main(f"from now on {part} is trained")
        rate = model.set_learning_rate(position.epoch)
        for batch in training.batches():
            with turn:
                losses = model.step(batch, batch["weight"])
            training.advance(batch, losses)
            if position.passed(opt.print_freq):
                training.log_losses(losses, batch["weight"], rate)
            if training.shows_images and position.passed(opt.display_freq):
                fake, real = model.fake[0].cpu(), model.real[0].cpu()
                training.show(partial(scene_images, batch["label"][0], fake, real, opt))
            if training.epoch_is_complete():
                position.next_epoch()
                training.validate_if_due()
            stopping = training.stop_requested()
            training.save_if_due(stopping)
            if stopping:
                return training.stop()
    return training.finish()


def main() -> int:
    return distributed.launch(train, TrainOptions().parse())


if __name__ == "__main__":
    run(main)
