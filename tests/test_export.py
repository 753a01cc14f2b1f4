"""ONNX: the file that test.py writes generates PyTorch's images, at any size."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_command
from PIL import Image

import test as command  # test.py
from models import DEFAULTS, create_model
from models.build import build_generator
from models.inference_model import InferenceModel
from util.errors import UserError
from util.files import checksum_of

onnx = pytest.importorskip("onnx", reason="needs requirements-onnx.txt")
ort = pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
pytest.importorskip("torch", "2.8", reason="needs requirements-onnx.txt")

from models import export  # noqa: E402

SMALL = {"ngf": 4, "n_downsample_global": 1, "n_blocks_global": 1, "n_blocks_local": 1}


def save_run(folder: Path, **flags: object) -> argparse.Namespace:
    """A run with random weights: its folder and its options."""
    opt = argparse.Namespace(**{**DEFAULTS, **SMALL, **flags})
    vars(opt).setdefault("load_features", True)  # then E's stride does not matter
    folder.mkdir(parents=True)
    (folder / "opt.json").write_text(json.dumps(vars(opt)))
    torch.manual_seed(1)
    net = build_generator(opt)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # averages that would show if they were used
            layer.running_mean.fill_(3.0)
    torch.save(net.state_dict(), folder / "latest_net_G.pth")
    if flags.get("ema"):
        torch.save(build_generator(opt).state_dict(), folder / "latest_net_G_ema.pth")
    return opt


def load(folder: Path, opt: argparse.Namespace, data_type: int = 32) -> InferenceModel:
    running = {"which_epoch": "latest", "data_type": data_type, "compile": False, "amp": "off"}
    return InferenceModel(argparse.Namespace(**vars(opt), **running), torch.device("cpu"), folder)


def generated(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What plain ONNX Runtime generates: (B, 3, H, W) grey levels."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, inputs)
    assert found.dtype == np.float32
    return np.clip((found + 1) / 2 * 255, 0, 255)


CASES = {
    "labels": pytest.param({}, marks=pytest.mark.slow),  # covered by the commands' test
    "batch norm, noise": {
        **{"norm": "batch", "ignore_label": 255, "instance_noise": 3, "upsample": "nearest"}
    },
    "local, features": {
        **{"netG": "local", "instance_feat": True, "feat_num": 5, "use_dropout": True},
        **{"norm": "channel", "fit_features": True},
    },
    "RGB, no instances": {"label_nc": 0, "no_instance": True},
}


@pytest.mark.thorough
@pytest.mark.parametrize("flags", CASES.values(), ids=CASES)
def test_the_graph_generates_what_pytorch_does_at_any_size(tmp_path: Path, flags: dict) -> None:
    opt = save_run(tmp_path / "run", **flags)
    model = load(tmp_path / "run", opt)
    file = tmp_path / "graph.onnx"
    differences = export.export_onnx(model, file)
    assert len(differences) == 3 and max(differences.values()) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "run"]

    rng = np.random.default_rng(0)
    for batch, height, width in [(1, 16, 24), (3, 17, 23), (2, 1, 3), (1, 40, 9)]:
        size = (batch, 1, height, width)
        if opt.label_nc:
            label = rng.integers(opt.label_nc, size=size, dtype=np.int32)
            if opt.ignore_label is not None:
                label[..., 0] = opt.ignore_label
        else:
            label = rng.uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        inputs = {"label": label}
        if not opt.no_instance:
            inputs["inst"] = rng.integers(24_000, 24_003, size=size, dtype=np.int32)
        if opt.instance_feat:
            feat = rng.uniform(-1, 1, (batch, opt.feat_num, height, width)).astype(np.float32)
            maps = [torch.from_numpy(inputs[name]) for name in ("label", "inst")]
            inputs["feat"] = model.fitted(torch.from_numpy(feat), *maps).numpy()
        tensors = [torch.from_numpy(inputs[k]) if k in inputs else None for k in NAMES]
        expected = (model.generate(*tensors).numpy() + 1) / 2 * 255
        found = generated(file, inputs)
        assert found.shape == (batch, 3, height, width)
        assert np.abs(found - expected).max() <= 1, (batch, height, width)
        assert expected.std() > 5  # a flat image would be easy

    session = export.open_session(file)
    opt.which_epoch = "latest"
    export._check_description(session, opt, tmp_path)
    opt.output_nc = 1
    with pytest.raises(UserError, match="3 channels of the picture, here 1"):
        export._check_description(session, opt, tmp_path)
    opt.output_nc = 3
    if opt.instance_noise:  # a graph of another run
        opt.instance_noise = 0
        with pytest.raises(UserError, match="instance_noise 3, here None"):
            export._check_description(session, opt, tmp_path)


class Graph:
    """What _check_description asks of an onnxruntime.InferenceSession."""

    def __init__(self, description: str, *names: str) -> None:
        self.custom_metadata_map = {"pix2pixHD": description}
        self.ends = [argparse.Namespace(name=name, shape=["batch"]) for name in names]

    def get_modelmeta(self) -> "Graph":
        return self

    def get_inputs(self) -> list[argparse.Namespace]:
        return self.ends

    def get_outputs(self) -> list[argparse.Namespace]:
        return []


@pytest.mark.parametrize("text", ["{", "null", "3", "[1]"])
def test_a_graph_with_a_damaged_description_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"a\.onnx: not a generator of this project"):
        export._check_description(Graph(text, "label", "picture"), None, Path("a.onnx"))


def test_a_graph_whose_inputs_were_renamed_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.onnx: not a generator of this project"):
        export._check_description(Graph("{}", "input", "picture"), None, Path("a.onnx"))


NAMES = ("label", "inst", "feat")


@pytest.mark.thorough
def test_half_precision_is_near_float32_or_not_written(tmp_path: Path, monkeypatch) -> None:
    opt = save_run(tmp_path / "run")
    model, file = load(tmp_path / "run", opt, data_type=16), tmp_path / "half.onnx"
    program = export._trace(model)  # which takes long
    monkeypatch.setattr(export, "_trace", lambda model: program)
    export.export_onnx(model, file)
    weights = [w for w in onnx.load(file).graph.initializer if len(w.dims) == 4]
    assert weights and all(w.data_type == onnx.TensorProto.FLOAT16 for w in weights)
    label = np.random.default_rng(0).integers(35, size=(1, 1, 30, 50), dtype=np.int32)
    exact = load(tmp_path / "run", opt).generate(*[torch.from_numpy(label)] * 2)
    found = generated(file, {"label": label, "inst": label})
    assert 0 < np.abs(found - (exact.numpy() + 1) / 2 * 255).max() <= 2

    run_graph, written = export.run_graph, file.read_bytes()
    monkeypatch.setattr(export, "run_graph", lambda *args: run_graph(*args) * 0.95)
    with pytest.raises(UserError, match=r"differ from PyTorch's by .* nothing was written") as info:
        export.export_onnx(model, file)
    assert str(info.value).startswith(f"--export_onnx {file}: ")
    assert file.read_bytes() == written
    assert not list(tmp_path.glob(".*"))


def test_commands_write_the_file_and_a_page_from_it(
    tmp_path: Path, toy_data: Path, call, refused
) -> None:
    """With a run that has averaged weights, which are then exported and tested."""
    where = {"dataroot": str(toy_data), "loadSize": 50, "resize_or_crop": "scale_width"}
    save_run(tmp_path / "run", ema=0.9, **where)
    common = [*("--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1, "--nThreads", 0)]
    file = tmp_path / "graph.onnx"
    done = run_command("test.py", *common, "--export_onnx", file)
    assert done.returncode == 0, done.stderr
    assert "0 grey levels" in done.stdout and done.stderr == ""

    call(command.main, *common, "--results_dir", tmp_path / "torch")
    for weights in (tmp_path / "run").glob("*.pth"):
        weights.unlink()  # not needed any more
    call(command.main, *common, "--onnx", file, "--results_dir", tmp_path / "onnx")
    images = sorted((tmp_path / "onnx").rglob("*_synthesized_image.png"))
    assert len(images) == 2
    assert list((tmp_path / "onnx").rglob("index.html"))
    for path in images:
        same = tmp_path / "torch" / path.relative_to(tmp_path / "onnx")
        found, expected = (np.asarray(Image.open(p)).astype(int) for p in (path, same))
        assert found.shape == (25, 50, 3)  # no multiples of the stride
        assert np.abs(found - expected).max() <= 1

    torch.save({}, tmp_path / "run" / "latest_net_G_ema.pth")  # trained since
    line = refused(command.main, *common, "--onnx", file)
    assert "was exported from weights other than" in line and "latest_net_G_ema.pth" in line
    line = refused(command.main, *common, "--onnx", file, "--label_nc", 36)
    assert "label_nc 35, here 36" in line
    line = refused(command.main, *common, "--onnx", file, "--which_epoch", "best", "--ema", 0)
    assert "ema 0.9, here 0.0; which_epoch 'latest', here 'best'" in line


def test_a_graph_names_the_weights_that_were_loaded(tmp_path: Path, monkeypatch, call) -> None:
    """Training may save others while the graph is made."""
    save_run(tmp_path / "run")
    weights = tmp_path / "run" / "latest_net_G.pth"
    loaded = checksum_of(weights)

    def then_trained(*args) -> InferenceModel:
        model = create_model(*args)
        torch.save({}, weights)
        return model

    program = SimpleNamespace(
        model=SimpleNamespace(metadata_props={}), save=lambda path, external_data: path.touch()
    )
    monkeypatch.setattr(command, "create_model", then_trained)
    monkeypatch.setattr(export, "_trace", lambda model: program)
    monkeypatch.setattr(export, "_check", lambda *args: {(1, 16, 32): 0})
    where = ["--name", "run", "--checkpoints_dir", tmp_path, "--gpu_ids", -1]
    call(command.main, *where, "--export_onnx", tmp_path / "graph.onnx")
    description = json.loads(program.model.metadata_props["pix2pixHD"])
    assert description["weights_crc32"] == loaded != checksum_of(weights)


REFUSED = {
    "no such file": ("--onnx nowhere.onnx", "nowhere.onnx: no such file"),
    "not a graph": ("--onnx README.md", "not a graph"),
    "no such folder": ("--export_onnx nowhere/graph.onnx", "a folder that exists"),
    "both": ("--onnx a.onnx --export_onnx b.onnx", "cannot be combined"),
    "provider alone": ("--ort_provider cpu", "needs --onnx"),
    "unknown provider": ("--onnx a.onnx --ort_provider npu", "invalid choice"),
    "precision of a file": ("--onnx a.onnx --data_type 16", "the file sets the precision"),
    "compiled": ("--export_onnx a.onnx --compile", "leave out --compile"),
}


@pytest.mark.parametrize("flags, expected", REFUSED.values(), ids=REFUSED)
def test_refused(refused, tmp_path: Path, monkeypatch, flags: str, expected: str) -> None:
    save_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no graph")
    flags = f"--name run --checkpoints_dir {tmp_path} --gpu_ids -1 {flags}"
    assert expected in refused(command.main, *flags.split())


def test_an_unavailable_provider_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="--ort_provider cuda: this ONNX Runtime has cpu"):
        export.open_session(tmp_path / "a.onnx", "cuda")
