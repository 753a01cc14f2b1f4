"""Where a run's figures go besides its own files: TensorBoard, Weights & Biases, MLflow.

A logger has scalars(step, values), images(step, images) for (H, W, 3) uint8 by name,
forget_after(step), which drops what a killed run logged after its last save, start_anew(), which
replaces an earlier run in the same folder, and close(). Their packages are optional and imported
only on request. None of them needs network access: WANDB_MODE=offline keeps Weights & Biases' files
in the run's folder, and MLflow writes there unless MLFLOW_TRACKING_URI names a server.
"""

import argparse
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from util.errors import UserError, first_line
from util.files import write_text


class TensorBoard:
    def __init__(self, folder: Path, opt: argparse.Namespace, resume: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides earlier files' events from purge_step on
        self._open = lambda step: SummaryWriter(folder / "logs", purge_step=step)
        self._writer = self._open(None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def forget_after(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(step + 1)

    def start_anew(self) -> None:
        self.forget_after(-1)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """Keeps the service's id for this run in its folder, so that a resumed run continues under it.
    A new run, once it has begun, replaces an earlier run's id with its own."""

    def __init__(self, path: Path, resume: bool, create: Callable[[], str]) -> None:
        self._path = path
        known = path.read_text() if resume and path.is_file() else ""
        self._id = known or create()
        if resume:
            self.start_anew()

    def start_anew(self) -> None:
        write_text(self._path, self._id)

    def forget_after(self, step: int) -> None:
        """Do nothing: logged values cannot be removed. Weights & Biases keeps the first values of
        steps that are repeated; MLflow logs them once more."""


class WeightsAndBiases(_Service):
    def __init__(self, folder: Path, opt: argparse.Namespace, resume: bool) -> None:
        import wandb

        super().__init__(folder / "wandb_id.txt", resume, lambda: secrets.token_hex(4))
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "pix2pixHD"),
            name=opt.name,
            id=self._id,
            resume="allow",
            dir=folder,
            config=vars(opt),
            settings={"init_timeout": 30},  # seconds, if the server does not answer
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(_Service):
    def __init__(self, folder: Path, opt: argparse.Namespace, resume: bool) -> None:
        from mlflow import MlflowClient

        folder = folder.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place = None if uri else str(folder / "mlartifacts")  # not ./mlruns, wherever that is
        self._client = client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")

        def new_run() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pix2pixHD")
            known = client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else client.create_experiment(name, place)
            run = client.create_run(experiment, run_name=opt.name).info.run_id
            for flag, value in vars(opt).items():
                client.log_param(run, flag, value)
            return run

        super().__init__(folder / "mlflow_id.txt", resume, new_run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._client.log_image(self._id, image, f"{name}/{step:08d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._id)


Logger = TensorBoard | WeightsAndBiases | MLflow
# flag -> the logger that it asks for, and the package that this needs
LOGGERS: dict[str, tuple[type, str]] = {
    "tf_log": (TensorBoard, "tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def delete_unused_records(opt: argparse.Namespace, folder: Path) -> None:
    """Delete what loggers that are not used have kept of an earlier run in the same folder: used
    later, they would go on from it."""
    if not opt.tf_log:
        for path in (folder / "logs").glob("events.out.tfevents.*"):
            with suppress(PermissionError):  # on Windows, while TensorBoard shows it
                path.unlink()
    for flag in ("wandb", "mlflow"):
        if not getattr(opt, flag):
            (folder / f"{flag}_id.txt").unlink(missing_ok=True)


def create_loggers(opt: argparse.Namespace, folder: Path, resume: bool) -> list[Logger]:
    """The loggers that --tf_log, --wandb and --mlflow ask for. Raises UserError for a package that
    is missing."""
    loggers = []
    for flag, (kind, package) in LOGGERS.items():
        try:
            if getattr(opt, flag):
                loggers.append(kind(folder, opt, resume))
        except ImportError as error:
            raise UserError(
                f"--{flag} needs a package ({error}): run `pip install {package}`, or leave it out"
            ) from error
        except Exception as error:  # each service has its own error types
            line = first_line(error)
            raise UserError(f"--{flag}: cannot be started ({line}); leave it out") from error
    return loggers
