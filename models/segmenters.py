"""Segmentation networks, to judge pictures by: what a network finds in them.

    hf:NAME_OR_DIR      a semantic segmentation model of the transformers library
    torchscript:FILE    a torch.jit module
    onnx:FILE           an ONNX graph, run by ONNX Runtime

A torchscript or onnx network takes (1, 3, H, W) float32, RGB in [0, 1] (its own normalization is
inside it), and gives scores (1, classes, h, w) or classes (1, H, W) as integers; scores of another
size are scaled to the picture's, bilinearly. Load only files that you trust.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from util.errors import UserError

Segmenter = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> (H, W) integers


def load_segmenter(spec: str, device: torch.device) -> Segmenter:
    """The network that KIND:WHICH names. Raises UserError if it cannot be loaded."""
    kind, _, which = spec.partition(":")
    if kind not in _KINDS or not which:
        known = ", ".join(f"{name}:{what}" for name, (_, what) in _KINDS.items())
        raise UserError(f"--segmenter {spec}: expected one of {known}")
    try:
        segment = _KINDS[kind][0](which, device)
    except ImportError as error:
        raise UserError(
            f"--segmenter {spec}: needs a package ({error}); pip install -r requirements-eval.txt"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"--segmenter {spec}: cannot be loaded ({lines[0]})") from error

    def checked(picture: np.ndarray) -> np.ndarray:
        output = segment(picture)
        if output.shape != picture.shape[:2] or output.dtype.kind not in "iu":
            raise UserError(
                f"--segmenter {spec}: gives {output.dtype} {output.shape} for a picture of "
                f"{picture.shape[:2]}, expected scores (1, classes, h, w) or integers (1, H, W)"
            )
        return output

    return checked


def _from_torchscript(file: str, device: torch.device) -> Segmenter:
    path = _existing(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript's format stays readable
        net = torch.jit.load(path, map_location=device).eval()

    @torch.inference_mode()
    def segment(picture: np.ndarray) -> np.ndarray:
        try:
            output = net(_network_input(picture).to(device))
        except RuntimeError as error:  # its last line tells what, the others where
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"--segmenter {file}: {_size(picture)}: {last}") from error
        if not isinstance(output, Tensor):
            raise UserError(f"--segmenter {file}: gives a {type(output).__name__}, not a tensor")
        return _classes(output, picture)

    return segment


def _from_onnx(file: str, device: torch.device) -> Segmenter:
    import onnxruntime

    from models.export import open_session

    # many have the package that runs on CPUs alone
    known = onnxruntime.get_available_providers()
    on_gpu = device.type == "cuda" and "CUDAExecutionProvider" in known
    provider = "cuda" if on_gpu else "cpu"
    session = open_session(_existing(file), provider, device.index or 0)
    taken, *others = session.get_inputs()
    if others or taken.type != "tensor(float)" or len(taken.shape) != 4:
        inputs = ", ".join(f"{one.name} {one.type} {one.shape}" for one in (taken, *others))
        raise UserError(f"--segmenter {file}: takes {inputs}, expected float32 (1, 3, H, W) alone")

    def segment(picture: np.ndarray) -> np.ndarray:
        given = _network_input(picture).numpy()
        if any(isinstance(a, int) and a != b for a, b in zip(taken.shape, given.shape)):
            raise UserError(
                f"--segmenter {file}: takes {taken.shape}, but there is {_size(picture)}; "
                "see --segmenter_width"
            )
        try:
            output = session.run(None, {taken.name: given})[0]
        except Exception as error:  # ONNX Runtime's own kinds of errors
            line = str(error).strip().splitlines()[0]
            raise UserError(f"--segmenter {file}: {_size(picture)}: {line}") from error
        return _classes(torch.from_numpy(output), picture)

    return segment


def _from_transformers(name: str, device: torch.device) -> Segmenter:
    from transformers import AutoImageProcessor, logging
    from transformers import AutoModelForSemanticSegmentation as Semantic
    from transformers import AutoModelForUniversalSegmentation as Universal

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    processor = AutoImageProcessor.from_pretrained(name)
    try:
        net = Semantic.from_pretrained(name)
    except ValueError:  # Mask2Former and its like
        net = Universal.from_pretrained(name)
    net = net.to(device).eval()

    @torch.inference_mode()
    def segment(picture: np.ndarray) -> np.ndarray:
        # at the picture's own size, not at the one that the network was trained with
        inputs = processor(Image.fromarray(picture), do_resize=False, return_tensors="pt")
        output = net(**inputs.to(device))
        sizes = [picture.shape[:2]]
        return processor.post_process_semantic_segmentation(output, sizes)[0].cpu().numpy()

    return segment


_KINDS = {
    "hf": (_from_transformers, "NAME_OR_DIR"),
    "torchscript": (_from_torchscript, "FILE"),
    "onnx": (_from_onnx, "FILE"),
}


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise UserError(f"--segmenter: {file}: no such file")
    return Path(file)


def _size(picture: np.ndarray) -> str:
    return f"a picture of {picture.shape[1]}x{picture.shape[0]}"


def _network_input(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def _classes(output: Tensor, picture: np.ndarray) -> np.ndarray:
    """(H, W) integers from what a network gave, if it gave what it should."""
    if output.is_floating_point() and output.ndim == 4:
        if output.shape[-2:] != picture.shape[:2]:
            size = picture.shape[:2]
            output = F.interpolate(output.float(), size, mode="bilinear", align_corners=False)
        output = output.argmax(1)
    return output.cpu().numpy()[0] if len(output) == 1 else output.cpu().numpy()
