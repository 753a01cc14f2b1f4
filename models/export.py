"""The generator as one ONNX graph: exported, checked against PyTorch, run by ONNX Runtime.

The graph takes a data set's maps and returns the image. One-hot labels, instance edges, and
padding to the networks' multiple are part of it; batch, height and width are dynamic.

    input   label    (B, 1, H, W) int32; with label_nc 0 (B, input_nc, H, W) float32 in [-1, 1]
            inst     (B, 1, H, W) int32                 unless no_instance
            feat     (B, feat_num, H, W) float32        for models with features
            cond     (B, cond_nc, H, W) float32         for models with conditions
    output  picture  (B, output_nc, H, W) float32 in [-1, 1]

Needs the packages of requirements-onnx.txt; to run a graph, onnxruntime is enough.
"""

import argparse
import copy
import json
import logging
import warnings
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from models.build import uses_features
from models.inference_model import InferenceModel, to_uint8
from util.errors import UserError, optional_package
from util.files import checksum_of, replacing
from util.run.checkpoints import weights_file

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_LARGEST_FILE = 2**31  # bytes that protobuf, and so a graph in one file, can hold
_DESCRIPTION = "pix2pixHD"  # key of describe's result in the graph's metadata
_WEIGHTS = ("which_epoch", "ema")  # which of the run's weights; older graphs do not say
_CHECKSUM = "weights_crc32"  # of their file; older graphs lack it


class OnnxModel(InferenceModel):
    """An InferenceModel whose generator runs in ONNX Runtime, and its encoder in PyTorch."""

    def __init__(
        self, opt: argparse.Namespace, device: torch.device, folder: Path, file: Path, provider: str
    ) -> None:
        """folder: the run's, for its encoder and styles. Raises UserError if file is not the graph
        of a generator with opt's inputs, or provider (a key of PROVIDERS) is not available."""
        super().__init__(opt, device, folder, with_generator=False)
        self.session = open_session(file, provider, device.index or 0)
        saved = _check_description(self.session, opt, file)
        weights = weights_file(folder, opt.which_epoch, "G", opt.ema)
        checksum = checksum_of(weights)
        if checksum is not None and saved.get(_CHECKSUM, checksum) != checksum:
            raise UserError(
                f"{file}: was exported from weights other than {weights}; export it again, "
                "or give the flags of its run"
            )

    def _generate_padded(self, *maps: Tensor | None) -> Tensor:
        """The graph's images, on the CPU."""
        self.require_maps(*maps[2:])
        return run_graph(self.session, graph_inputs(self.opt, *maps))


def export_onnx(
    model: InferenceModel, path: Path, checksum: int | None = None
) -> dict[tuple[int, int, int], int]:
    """Write a model's generator to path, once it has been checked with ONNX Runtime.

    Returns for each size (B, H, W) checked by how many grey levels the images differ from
    PyTorch's: one at most. model: on the CPU, not compiled; one with data_type 16 gives a graph
    in half precision, which may differ from float32 by one more than PyTorch's own does.
    checksum: of the file of its weights, as it was before they were loaded.
    Raises UserError if a package or the folder is missing, PyTorch is too old, the graph would be
    too large for one file, or the check fails.
    """
    if torch.__version__ < "2.8":
        raise UserError(
            f"--export_onnx needs PyTorch 2.8 or newer, and this is {torch.__version__}; "
            "pip install -r requirements-onnx.txt"
        )
    _package("onnxscript")
    _package("onnxruntime")
    if not path.parent.is_dir() or path.is_dir():
        raise UserError(f"--export_onnx {path}: expected a file in a folder that exists")
    size = sum(p.numel() * p.element_size() for p in model.netG.parameters())
    if size >= _LARGEST_FILE:
        raise UserError(
            f"--export_onnx {path}: {size / 1e9:.1f} GB of weights do not fit into one ONNX file "
            f"({_LARGEST_FILE / 1e9:.1f} GB); export half precision with --data_type 16"
        )
    program = _trace(model)
    described = describe(model.opt) | ({} if checksum is None else {_CHECKSUM: checksum})
    program.model.metadata_props[_DESCRIPTION] = json.dumps(described)
    with replacing(path) as unchecked:
        program.save(unchecked, external_data=False)
        return _check(model, unchecked, path)


def open_session(path: Path, provider: str = "cpu", device_index: int = 0) -> object:
    """An onnxruntime.InferenceSession. Raises UserError if path or provider cannot be used."""
    ort = _package("onnxruntime")
    if not path.is_file():
        raise UserError(f"{path}: no such file; write one with --export_onnx")
    wanted = PROVIDERS[provider]
    remedy = "install onnxruntime-gpu with the CUDA (and TensorRT) that it asks for"
    available = ort.get_available_providers()
    if wanted not in available:
        found = ", ".join(name for name, full in PROVIDERS.items() if full in available)
        raise UserError(f"--ort_provider {provider}: this ONNX Runtime has {found}; {remedy}")
    chain = ["tensorrt", "cuda"] if provider == "tensorrt" else [provider]
    providers = [
        (PROVIDERS[name], {} if name == "cpu" else {"device_id": device_index}) for name in chain
    ]
    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors
    try:
        session = ort.InferenceSession(path, settings, providers=providers)
    except Exception as error:  # its exceptions have no common class
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a graph that ONNX Runtime can run ({reason})") from error
    if session.get_providers()[0] != wanted:  # it falls back silently
        raise UserError(f"--ort_provider {provider}: cannot be started here; {remedy}")
    return session


def graph_inputs(
    opt: argparse.Namespace,
    label: Tensor,
    inst: Tensor | None,
    feat: Tensor | None,
    cond: Tensor | None = None,
) -> dict[str, Tensor]:
    """The graph's inputs by name, in its types, from maps as InferenceModel.generate takes them."""
    inputs = {"label": label.to(torch.int32) if opt.label_nc else label.float()}
    if not opt.no_instance:
        inputs["inst"] = inst.to(torch.int32)
    if uses_features(opt):
        inputs["feat"] = feat.float()
    if opt.cond_nc:
        inputs["cond"] = cond.float()
    return inputs


def run_graph(session: object, inputs: dict[str, Tensor]) -> Tensor:
    """The images (B, output_nc, H, W) float32 in [-1, 1], on the CPU."""
    arrays = {name: value.cpu().numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(["picture"], arrays)[0])


def describe(opt: argparse.Namespace) -> dict[str, object]:
    """What a graph's user must know; stored in the file."""
    described = {
        "label_nc": opt.label_nc,
        "no_instance": opt.no_instance,
        "feat_num": opt.feat_num if uses_features(opt) else 0,
        "ignore_label": opt.ignore_label,
        **{name: getattr(opt, name) for name in _WEIGHTS},
    }
    # left out if off, as in graphs that are older than these flags
    later = {"cond_nc": opt.cond_nc, "instance_noise": opt.instance_noise}
    return described | {name: count for name, count in later.items() if count}


# -- export ----------------------------------------------------------------------------------


class _Graph(nn.Module):
    """From integer maps to the image, as one module."""

    def __init__(self, model: InferenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        label: Tensor,
        inst: Tensor | None = None,
        feat: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        height, width = label.shape[-2:]
        x = self.model.generator_input(label, inst, feat, cond)
        image = self.model.netG(x).float()
        for dim, side in ((-2, height), (-1, width)):  # a slice would fix whether there is padding
            image = image.index_select(dim, torch.arange(side, device=image.device))
        return image


def _trace(model: InferenceModel) -> torch.onnx.ONNXProgram:
    # distinct sizes: an axis of size 1, or two axes of the same size, would be taken as fixed
    inputs = _random_scene(model.opt, 2, 2 * model.min_side + 1, 3 * model.min_side + 2)
    dims = {0: "batch", 2: "height", 3: "width"}
    free = {axis: torch.export.Dim(name) for axis, name in dims.items()}
    model.to(memory_format=torch.contiguous_format)  # the layout that ONNX knows
    # silence warnings about the exporter's internals
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(model).eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["picture"],
            dynamic_shapes=dict.fromkeys(inputs, free),
            dynamo=True,
            verbose=False,
        )
    for axis, name in dims.items():
        program.model.graph.outputs[0].shape[axis] = name  # the exporter writes formulas
    return program


def _check(model: InferenceModel, unchecked: Path, path: Path) -> dict[tuple[int, int, int], int]:
    """Generate random scenes with both; returns the largest difference of their images in grey
    levels, by size. path: the final name of the file unchecked."""
    session = open_session(unchecked)
    exact = model  # in half precision both results are rounded: compare each with float32
    if model.dtype != torch.float32:
        exact = copy.deepcopy(model).float()
        exact.dtype = torch.float32
    side = model.min_side
    differences = {}
    for size in [(1, side, 2 * side), (2, 2 * side, side), (3, side + 3, 2 * side - 1)]:
        inputs = _random_scene(model.opt, *size)
        if "feat" in inputs:  # with --fit_features the graph expects fitted ones
            feat = model.fitted(inputs["feat"], inputs["label"], inputs.get("inst"))
            inputs["feat"] = feat.cpu()
        maps = [inputs.get(name) for name in ("label", "inst", "feat", "cond")]
        expected = exact.generate(*maps)
        limit = 1 + (_grey_levels(model.generate(*maps), expected) if exact is not model else 0)
        differences[size] = _grey_levels(run_graph(session, inputs), expected)
        if differences[size] > limit:
            raise UserError(
                f"--export_onnx {path}: the graph's images of size {size} differ from PyTorch's "
                f"by up to {differences[size]} grey levels, expected at most {limit}; nothing was "
                "written"
            )
    return differences


def _grey_levels(images: Tensor, expected: Tensor) -> int:
    """The largest difference between images, as they would be saved."""
    if images.shape != expected.shape or not images.isfinite().all():
        return 255
    return int(np.abs(to_uint8(images).astype(int) - to_uint8(expected)).max())


def _random_scene(
    opt: argparse.Namespace, batch: int, height: int, width: int
) -> dict[str, Tensor]:
    """Random inputs in blocks of a few pixels, from all labels and ignore_label."""
    generator = torch.Generator().manual_seed(height * width)

    def blocks(count: int, channels: int = 1) -> Tensor:
        small = (batch, channels, -(-height // 3), -(-width // 3))
        values = torch.randint(count, small, generator=generator)
        return values.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :height, :width]

    label = blocks(opt.label_nc) if opt.label_nc else blocks(256, opt.input_nc) / 127.5 - 1
    if opt.ignore_label is not None:
        label = torch.where(blocks(8) == 0, opt.ignore_label, label)
    feat, cond = (blocks(256, count) / 127.5 - 1 for count in (opt.feat_num, opt.cond_nc or 1))
    return graph_inputs(opt, label, blocks(34_000), feat, cond)


def _check_description(session: object, opt: argparse.Namespace, path: Path) -> dict:
    """Refuse a graph that was exported from a model with other inputs or weights. Returns what is
    stored in it."""
    saved = None
    with suppress(ValueError):
        saved = json.loads(session.get_modelmeta().custom_metadata_map.get(_DESCRIPTION, ""))
    ports = {port.name: port for port in (*session.get_inputs(), *session.get_outputs())}
    if not (isinstance(saved, dict) and {"label", "picture"} <= ports.keys()):
        raise UserError(f"{path}: not a generator of this project; write one with --export_onnx")
    here = describe(opt)
    keys = sorted({*saved, *here} - {n for n in _WEIGHTS if n not in saved} - {_CHECKSUM})
    wrong = [
        f"{k} {saved.get(k)!r}, here {here.get(k)!r}" for k in keys if saved.get(k) != here.get(k)
    ]
    expected = {"label": 1 if opt.label_nc else opt.input_nc, "picture": opt.output_nc}
    wrong += [
        f"{ports[name].shape[1]} channels of the {name}, here {count}"
        for name, count in expected.items()
        if ports[name].shape[1] != count
    ]
    if wrong:
        raise UserError(
            f"{path}: was exported from a model with {'; '.join(wrong)}; give its flags or --name"
        )
    return saved


def _package(name: str) -> ModuleType:
    return optional_package(name, "this needs", "-r requirements-onnx.txt")
