"""Segmentation networks, to measure what can be recognized in an image.

    hf:NAME_OR_DIR      a semantic segmentation model of the transformers library
    torchscript:FILE    a torch.jit module
    onnx:FILE           an ONNX graph, run by ONNX Runtime

A torchscript or onnx network takes (1, 3, H, W) float32, RGB in [0, 1] (its own normalization is
inside it), and returns scores (1, classes, h, w) or classes (1, H, W) as integers; scores of
another size are scaled bilinearly to the image's. A torchscript module may have a method
features(x) -> (1, C, h, w) of floats, its deepest maps, for KID. Load only files that you trust.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.files import MAX_CLASSES
from util.errors import UserError, first_line
from util.run.checkpoints import verify_checksums

_Network = Callable[[np.ndarray], object]  # (H, W, 3) uint8 -> scores or classes, as above


class Segmenter:
    """A segmentation network for images (H, W, 3) uint8.

    features(image): its deepest feature maps (C, h, w); None if it does not offer them.
    """

    def __init__(self, spec: str, network: _Network, features: _Network | None = None) -> None:
        """spec: for error messages."""
        self.spec, self.network = spec, network
        self.features = features and partial(self._deepest, features)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The classes of an image's pixels, (H, W) integers from 0 to 65535. Raises UserError for
        any failure of the network."""
        height, width = image.shape[:2]
        classes = output = self._run(self.network, image)
        has_scores = output.is_floating_point() and output.ndim == 4 and output.shape[1] > 1
        at_size = output.shape[2:] == (height, width)
        channels_last = output.shape[1:3] == (height, width) and not at_size
        if has_scores and not channels_last:
            if not at_size:
                output = F.interpolate(output.float(), (height, width), mode="bilinear")
            highest, classes = output.max(1)
            if highest.isnan().any():  # would count as the first class
                raise self._error("returns scores that are not a number")
        not_integers = classes.dtype.is_floating_point or classes.dtype == torch.bool
        if classes.shape != (1, height, width) or not_integers:
            found = f"{output.dtype} {tuple(output.shape)} for an image of {width}x{height}"
            expected = "expected scores (1, classes, h, w) or integers (1, H, W)"
            raise self._error(f"returns {found}, {expected}")
        classes = classes.long()  # aminmax does not support uint16 and the like
        low, high = (int(end) for end in classes.aminmax())
        if low < 0 or high >= MAX_CLASSES:
            expected = f"expected 0 to {MAX_CLASSES - 1}"
            raise self._error(f"returns classes {low} to {high}, {expected}")
        return classes[0].cpu().numpy()

    @torch.inference_mode()
    def _deepest(self, features: _Network, image: np.ndarray) -> Tensor:
        """The network's features of an image, (C, h, w)."""
        maps = self._run(features, image)
        if maps.ndim != 4 or len(maps) != 1 or not maps.is_floating_point():
            found = f"{maps.dtype} {tuple(maps.shape)}"
            raise self._error(f"features returns {found}, expected floats (1, C, h, w)")
        return maps[0]

    def _run(self, function: _Network, image: np.ndarray) -> Tensor:
        height, width = image.shape[:2]
        try:
            output = function(image)
        except UserError:
            raise
        except Exception as error:  # each library has its own types; the last line is the reason
            line = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise self._error(f"an image of {width}x{height}: {line}") from error
        if not isinstance(output, Tensor):
            raise self._error(f"returns a {type(output).__name__}, expected a tensor")
        return output

    def _error(self, problem: str) -> UserError:
        return UserError(f"--segmenter {self.spec}: {problem}")


def load_segmenter(spec: str, device: torch.device) -> Segmenter:
    """The network that KIND:WHICH names. Raises UserError if it cannot be loaded."""
    kind, _, which = spec.partition(":")
    if kind not in _LOADERS or not which:
        raise UserError(
            f"--segmenter {spec}: expected one of hf:NAME_OR_DIR, torchscript:FILE, onnx:FILE"
        )
    if kind != "hf" and not Path(which).is_file():
        raise UserError(f"--segmenter: {which}: no such file")
    try:
        networks = _LOADERS[kind](which, device)
    except ImportError as error:
        packages = "onnx" if kind == "onnx" else "eval"
        raise UserError(
            f"--segmenter {spec}: needs a package ({error}); "
            f"pip install -r requirements-{packages}.txt"
        ) from error
    except UserError:
        raise
    except Exception as error:  # each library has its own error types
        raise UserError(f"--segmenter {spec}: cannot be loaded ({first_line(error)})") from error
    return Segmenter(spec, *networks)


def _from_torchscript(file: str, device: torch.device) -> tuple[_Network, ...]:
    verify_checksums(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript's format stays readable
        net = torch.jit.load(file, map_location=device).eval()

    def run(function: Callable[[Tensor], Tensor]) -> _Network:
        return lambda image: function(_network_input(image).to(device))

    features = getattr(net, "features", None)
    return (run(net), run(features)) if _takes_a_tensor(features) else (run(net),)


def _takes_a_tensor(method: object) -> bool:
    """Whether this is a method of a TorchScript module, not a submodule, and takes a tensor."""
    if not isinstance(method, torch.ScriptMethod):
        return False
    _, *arguments = method.schema.arguments  # self
    return [str(one.type) for one in arguments if not one.has_default_value()] == ["Tensor"]


def _from_onnx(file: str, device: torch.device) -> tuple[_Network, ...]:
    from models.export import open_session

    try:
        provider = "cuda" if device.type == "cuda" else "cpu"
        session = open_session(Path(file), provider, device.index or 0)
    except UserError:  # many have the package that only runs on CPUs
        session = open_session(Path(file))
    taken, *others = session.get_inputs()
    if others or taken.type != "tensor(float)" or len(taken.shape) != 4:
        inputs = ", ".join(f"{one.name} {one.type} {one.shape}" for one in (taken, *others))
        raise UserError(f"--segmenter onnx:{file}: takes {inputs}, not float32 (1, 3, H, W)")

    def network(image: np.ndarray) -> Tensor:
        given = _network_input(image).numpy()
        if any(isinstance(a, int) and a != b for a, b in zip(taken.shape, given.shape)):
            raise UserError(
                f"--segmenter onnx:{file}: takes {taken.shape}, but there is an image of "
                f"{image.shape[1]}x{image.shape[0]}; see --segmenter_width"
            )
        return torch.from_numpy(session.run(None, {taken.name: given})[0])

    return (network,)


def _from_transformers(name: str, device: torch.device) -> tuple[_Network, ...]:
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

    def network(image: np.ndarray) -> Tensor:
        # at the image's own size, not at the network's training size
        whole = {"do_resize": False, "do_center_crop": False}
        inputs = processor(Image.fromarray(image), **whole, return_tensors="pt")
        (height, width), seen = image.shape[:2], tuple(inputs["pixel_values"].shape[-2:])
        if seen != (height, width):  # classes would be misplaced
            raise UserError(
                f"--segmenter hf:{name}: its preprocessing makes {seen[1]}x{seen[0]} of an image "
                f"of {width}x{height}, so its classes would be misplaced; turn that off in its "
                "preprocessor_config.json"
            )
        output = net(**inputs.to(device))
        return processor.post_process_semantic_segmentation(output, [image.shape[:2]])[0][None]

    return (network,)


_LOADERS = {"hf": _from_transformers, "torchscript": _from_torchscript, "onnx": _from_onnx}


def _network_input(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
