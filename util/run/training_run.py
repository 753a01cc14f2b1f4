"""The bookkeeping of a training run: its position, what it logs, when it saves and stops."""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from util import distributed
from util.errors import UserError
from util.files import lock_folder, remove_abandoned, writing_to
from util.parallel import Writer
from util.progress import Pace, bar, log_main, peak_memory, warn_if_unwritable
from util.run.checkpoints import is_saved
from util.run.flags import write_options
from util.run.loggers import create_loggers, delete_unused_records
from util.run.page import RunPage
from util.run.resume import FOLDER_FLAGS, load, save, set_aside, snapshot
from util.run.stop import Stop
from util.run.visualizer import Visualizer
from util.run.watch import Watch

WARN_AFTER = 10  # validations in a row without a better one


class TrainingRun:
    """A run that is new, continued, or starts from other weights, as the flags say.

    All processes have one and call its methods together; only the main process writes and prints.
    visualizer: the run's logs and page, None in other processes.
    """

    def __init__(
        self, opt: argparse.Namespace, folder: Path, model, loader, validation=None
    ) -> None:
        """Load what the run starts from, then open its logs. An earlier run of this name is
        replaced only after the first step: a start that fails leaves it intact.

        model: a Pix2PixHDModel; loader: a data.loader.Loader; validation: an
        evaluation.validation.Validation, if there is one.
        """
        self.opt, self.folder, self.model, self.loader = opt, folder, model, loader
        self.validation = validation
        self.scenes = len(loader.dataset)
        self.epochs = opt.niter + opt.niter_decay
        self._lock = lock_folder(folder, "training", "--name") if distributed.is_main() else None
        self.position = pos = load(model, opt, folder, loader.dataset)
        note = ""
        if validation:  # --patience counts comparable validations only
            note = pos.set_metric(validation.metric, validation.measured_on)
        self._continues = pos.step > 0 or pos.epoch > 1
        self.visualizer = self._open_logs() if distributed.is_main() else None
        self._log_start()
        if note:
            log_main(note)
        self._has_begun = False
        self._watch, self._stop = Watch(), Stop()
        self._highest_signal, self._stopped_by = distributed.DelayedMaximum(), 0
        begun = pos.step - pos.pictures  # earlier epochs may have had other scenes
        left = (self.epochs - pos.epoch + 1) * self.scenes
        self._pace = Pace(total=begun + left, done=pos.step)
        self._writer = Writer()
        self._shown = 0  # the step of the newest images
        self._pending_save: tuple[Future | None, list[str]] | None = None  # and its names
        self._save_succeeded = True
        self._best_is_unsaved = False
        self._best_on_disk = pos.best, pos.best_epoch

    def _open_logs(self) -> Visualizer:
        opt, pos = self.opt, self.position
        with writing_to(self.folder, FOLDER_FLAGS):
            remove_abandoned(self.folder)
            page = None if opt.no_html else RunPage(self.folder, opt.display_winsize)
            loggers = create_loggers(opt, self.folder, self._continues)
            visualizer = Visualizer(self.folder, page, self._continues, loggers)
        if pos.best_epoch:
            visualizer.facts["best"] = str(pos.best_epoch)
        return visualizer

    def _begin(self) -> None:
        """After the first step: record the flags, and either replace an earlier run or remove what
        a continued one has logged about steps that are repeated."""
        self._has_begun = True
        if not self.visualizer:
            return
        pos = self.position
        with writing_to(self.folder, FOLDER_FLAGS):
            if not self.opt.continue_train:
                set_aside(self.folder)
            if not self._continues:
                self.visualizer.start_anew()
                delete_unused_records(self.opt, self.folder)
            elif pos.step > pos.newest:
                step, done = pos.step - pos.newest, pos.pictures - pos.newest
                self.visualizer.truncate_after(step, pos.epoch, done)
            if self.visualizer.page and self._continues:
                self.visualizer.page.forget_after(pos.epoch if pos.batch > 1 else pos.epoch - 1)
            write_options(self.folder, self.opt)

    def _log_start(self) -> None:
        device = self.model.device
        state = f"epoch {self.position.epoch} of {self.epochs}"
        if self._out_of_patience():
            state = f"ended after epoch {self.position.epoch - 1} (--patience {self.opt.patience})"
        elif self.is_over():
            state = f"all {self.epochs} epochs done"
        log_main(f"{self.scenes} scenes, {state}, on {device}")
        if device.type == "cpu" and torch.backends.mps.is_available():
            log_main("this machine's GPU is not used: it has no float64, which training needs")
        if device.type == "cuda" and self.opt.amp == "off" and not self.opt.tf32:
            log_main("float32 without TF32; --tf32 or --amp bf16 is faster")

    def is_over(self) -> bool:
        return self.position.epoch > self.epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.opt.patience is not None and self.position.worse >= self.opt.patience

    def batches(self) -> Iterator[dict]:
        """The rest of the epoch's batches, with a progress bar. Raises UserError for a file that
        cannot be read; a single process first saves what was trained."""
        pos = self.position
        batches = self._pace.timed(self.loader.epoch(pos.epoch, start=pos.batch))
        description = f"epoch {pos.epoch}/{self.epochs}"
        try:
            yield from bar(batches, total=len(self.loader), initial=pos.batch, desc=description)
        except UserError as error:
            if distributed.world_size() > 1 or not self._has_begun:  # saving takes all processes
                raise
            self.save_if_due(stopping=True)
            self._close()
            raise UserError(f"{error}; then {self._how_to_continue()}") from error

    def advance(self, batch: dict, losses: dict[str, torch.Tensor]) -> None:
        """Record a step. Raises UserError if a loss or gradient was not finite; on a GPU, which the
        check would have to wait for, only before losses are logged and networks saved."""
        self.position.advance(batch["pictures"])
        self._watch.add(self.model.finite, self.position.step, losses, batch["path"])
        if self.model.device.type == "cpu":
            self._watch.check()
        if not self._has_begun:
            self._begin()

    def log_losses(self, losses: dict[str, torch.Tensor], weight: float, rate: float) -> None:
        """Log the losses, averaged over the images of all processes, and warn if they look wrong.

        weight: of this process's losses in the mean; rate: the learning rate.
        """
        mean = distributed.mean(weight * torch.stack(list(losses.values()))).tolist()
        values = dict(zip(losses, mean))
        self._watch.check()
        if not self.visualizer:
            return
        pos = self.position
        seconds, waited, left = self._pace.lap(pos.step)
        memory = f"{peak_memory(self.model.device):.1f} GB"
        row = {"epoch": pos.epoch, "iters": pos.pictures, "step": pos.step, "time": seconds}
        with warn_if_unwritable("the logs"):
            line = self.visualizer.log(row | {"data_time": waited, "lr": rate}, values)
            self.visualizer.facts["time left"] = str(left)
            pace = f"{1 / seconds:.3g} iters/s, data {waited:.3f} s"
            log_main(f"{line}  [{pace}, {memory}, {left} left]")
        for warning in self._watch.warnings(values, self.model.fake, self.model.real):
            log_main(warning)

    @property
    def shows_images(self) -> bool:
        """Whether this process has a page or a logger for them."""
        return bool(self.visualizer and (self.visualizer.page or self.visualizer.loggers))

    def show(self, images: Callable[[], dict[str, np.ndarray]]) -> None:
        """Put images (H, W, 3) uint8 on the run's page. images: a function that makes them, called
        while training continues."""
        epoch, step = self.position.epoch, self.position.step
        self._shown = step

        def display() -> None:
            with warn_if_unwritable("the images"):
                self.visualizer.display(images(), epoch, step, newest=step == self._shown)

        if self.visualizer.loggers:  # which accept steps only in order
            display()
        else:
            self._writer.submit(display)

    def epoch_is_complete(self) -> bool:
        return self.position.batch == len(self.loader)

    def validate_if_due(self) -> None:
        """Validate every --val_freq epochs and after the last one; note whether it is the best."""
        pos, ended = self.position, self.position.epoch - 1
        if not self.validation or (ended % self.opt.val_freq and ended < self.epochs):
            return
        self._wait_for_save()  # this one is compared with the best that is on disk
        start = time.perf_counter()
        try:
            figures, images = self.validation.measure()
        except UserError as error:  # no reason to stop training
            log_main(f"warning: validation failed and is turned off: {error}")
            self.validation = None
            return
        value = figures[self.validation.metric]
        self._best_is_unsaved = pos.add_validation(value, self.validation.more_is_better)
        if not self.visualizer:
            return
        with warn_if_unwritable("the validation"):
            self._writer.finish()  # the images of earlier steps
            self.visualizer.show_validation(ended, pos.step, figures, images, pos.best_epoch)
        self._log_validation(figures, time.perf_counter() - start)

    def _log_validation(self, figures: dict[str, float], seconds: float) -> None:
        """Log the validation after the epoch that has just ended, and warn of what looks wrong."""
        pos, ended, metric = self.position, self.position.epoch - 1, self.validation.metric
        value = figures[metric]
        so_far = f"best: epoch {pos.best_epoch}" if pos.best_epoch else "none is the best"
        best = "the best" if self._best_is_unsaved else so_far
        log_main(f"validation after epoch {ended}: {metric} {value:.4g} ({best}), {seconds:.1f} s")
        if math.isnan(value):
            log_main(
                f"warning: {metric} cannot be measured on these scenes (do they have the classes "
                "of the segmenter?), so no epoch is the best: choose another --best_metric"
            )
        if warning := self._watch.gap_warning(figures["l1"]):
            log_main(warning)
        if pos.worse == WARN_AFTER:
            log_main(
                f"warning: no validation was better than that of epoch {pos.best_epoch} for "
                f"{WARN_AFTER} validations; D may have memorized the training images: use "
                "--which_epoch best, or see docs/validation.md"
            )
        if self._out_of_patience() and ended < self.epochs:
            log_main(
                f"no better {metric} since epoch {pos.best_epoch}, in {pos.worse} validations "
                "(--patience): training ends here"
            )

    def stop_requested(self) -> bool:
        """Whether a signal has asked any process to stop before the end of training."""
        self._stopped_by = self._highest_signal(self._stop.signal)
        return self._stopped_by > 0 and not self.is_over()

    def save_if_due(self, stopping: bool) -> None:
        """Save every --save_latest_freq images, after every --save_epoch_freq epochs, when a
        validation was the best, before a stop and at the end of training."""
        ended = self.position.epoch - 1  # the last complete epoch
        names = ["best"] if self._best_is_unsaved else []
        self._best_is_unsaved = False
        if self.position.batch == 0 and (ended % self.opt.save_epoch_freq == 0 or self.is_over()):
            names.append(str(ended))
        if not (names or stopping or self.position.passed(self.opt.save_latest_freq)):
            return
        self._watch.check()
        self._wait_for_save()  # so that there is one copy at a time
        files = snapshot(self.model, self.opt, self.position, self.loader.dataset)
        writing = None
        if files is not None:  # in the main process; written while training continues
            keep = self.opt.keep_checkpoints
            writing = self._writer.submit(save, files, self.folder, names, keep)
        self._pending_save = writing, names

    def _wait_for_save(self) -> None:
        """All processes together: wait until the last save is on disk, or known to have failed."""
        if self._pending_save is None:
            return
        (writing, names), self._pending_save = self._pending_save, None
        self._save_succeeded = distributed.gather(writing.result() if writing else True)[0]
        if "best" in names and self._save_succeeded:
            self._best_on_disk = self.position.best, self.position.best_epoch
        elif "best" in names:  # the next one is compared with what is on disk
            self.position.best, self.position.best_epoch = self._best_on_disk

    def stop(self) -> int:
        """Log where the run stopped and how to continue it; returns the signal's exit status."""
        self._close()
        pos = self.position
        where = f"at step {pos.step}" if pos.batch else f"after epoch {pos.epoch - 1}"
        log_main(f"stopped {where}; {self._how_to_continue()}")
        return 128 + self._stopped_by

    def finish(self) -> int:
        """Log where the results are; returns the exit status. UserError if they are not saved."""
        self._close()
        if not self._save_succeeded:
            raise UserError(
                f"{self.folder}: the end of training could not be saved; {self._how_to_continue()}"
            )
        page = "" if self.opt.no_html else f", images in {self.folder / 'web' / 'index.html'}"
        log_main(f"done: weights in {self.folder}{page}")
        return 0

    def _how_to_continue(self) -> str:
        if self._save_succeeded:
            return "--continue_train resumes from here"
        if is_saved(self.folder / "latest_net_G.pth"):
            return "--continue_train resumes from the last checkpoint"
        return "there is no checkpoint: training starts again"

    def _close(self) -> None:
        """Wait until the last save, the page and the loggers' last rows are written, and the last
        message between processes has arrived."""
        self._wait_for_save()
        self._highest_signal.finish()
        self._writer.finish()
        if self.visualizer:
            with warn_if_unwritable("the page"):
                self.visualizer.close()
        if self._lock:  # nothing is written from here on
            Path(self._lock.name).unlink(missing_ok=True)
