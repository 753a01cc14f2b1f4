"""The generator as a library: any kind of map, one or many, any size, and what is refused."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tiny_run import write_run

import test as test_command  # test.py
from models import DEFAULTS, load_generator
from models.build import build_generator
from models.inference_model import InferenceModel
from models.run_encoder import run_and_pretrained
from models.styles import StyleChooser, instance_classes, paint
from models.tiling import Tiling
from options.test_options import TestOptions
from util.errors import UserError

SMALL = {"ngf": 4, "n_downsample_global": 1, "n_blocks_global": 1, "n_blocks_local": 1}


def save_run(folder: Path, epoch: str = "latest", **flags: object) -> Path:
    """A run with random weights."""
    opt = argparse.Namespace(**{**DEFAULTS, **SMALL, **flags, "load_features": False})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opt.json").write_text(json.dumps(vars(opt)))
    torch.manual_seed(len(epoch))
    torch.save(build_generator(opt).state_dict(), folder / f"{epoch}_net_G.pth")
    return folder


@pytest.fixture
def G(tmp_path: Path) -> InferenceModel:
    return load_generator(save_run(tmp_path / "run"))


def maps(height: int = 17, width: int = 22, batch: tuple = ()) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    size = (*batch, height, width)
    return rng.integers(0, 35, size, np.uint8), rng.integers(24_000, 24_004, size, np.int32)


KINDS = {
    "arrays": lambda label, inst: (label, inst),
    "16 bit": lambda label, inst: (label.astype(np.uint16), inst.astype(np.uint16)),
    "tensors": lambda label, inst: (torch.from_numpy(label), torch.from_numpy(inst)),
    "big-endian": lambda label, inst: (label.astype(">u2"), inst.astype(">i4")),
    "PIL images": lambda label, inst: (Image.fromarray(label), Image.fromarray(inst)),
    "read-only": lambda label, inst: (np.broadcast_to(label, label.shape), inst[::-1][::-1]),
}


def test_images_are_padded_as_in_training_where_features_are_read(tmp_path: Path) -> None:
    """To the encoder's stride as well, whatever the flags of the command."""
    flags = {"instance_feat": True, "load_features": True, "n_downsample_E": 3}
    run = write_run(tmp_path, "run", n_downsample_global=1, **flags)
    command = ["--name", "run", "--checkpoints_dir", str(tmp_path), "--gpu_ids", "-1"]
    for more in ([], ["--load_features"]):
        opt = TestOptions().parse([*command, *more])
        assert InferenceModel(opt, torch.device("cpu"), run).multiple == 8
    assert load_generator(run).multiple == 8


def test_the_encoder_takes_instances_of_any_integer_type(tmp_path: Path) -> None:
    G = load_generator(write_run(tmp_path, "run", fit_features=True))
    label, inst = (torch.from_numpy(m)[None, None] for m in maps())
    image = torch.rand(1, 3, *label.shape[-2:]) * 2 - 1
    features = G.encode(image, inst)
    expected = G.generate(label, inst, features)
    for kind in (torch.uint16, torch.uint32, torch.uint64, torch.int64):
        assert torch.equal(G.encode(image, inst.to(kind)), features)
        assert torch.equal(G.encode_regions(image, inst.to(kind)), features)
        assert torch.equal(G.generate(label, inst.to(kind), features), expected)


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run")
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    load_generator(run).load_encoder()
    assert torch.equal(torch.rand(1), first)


def test_fitted_features_are_means_over_instances(tmp_path: Path) -> None:
    """In blocks of two pixels, as encoded at half the size, or averaged by hand: the same image."""
    flags = {"instance_feat": True, "fit_features": True}
    fits = load_generator(save_run(tmp_path / "fits", **flags))
    plain = load_generator(save_run(tmp_path / "plain", **flags | {"fit_features": False}))
    label, inst = maps()
    feat = np.random.default_rng(0).normal(size=(3, 9, 11)).astype(np.float32)
    blocks = feat.repeat(2, 1).repeat(2, 2)[:, :17]
    means = np.empty_like(blocks)
    for i in np.unique(inst):
        means[:, inst == i] = blocks[:, inst == i].mean(1, keepdims=True)
    expected = plain(label, inst, means)
    np.testing.assert_allclose(fits(label, inst, blocks).astype(int), expected, atol=1)
    assert (plain(label, inst, blocks) != expected).mean() > 0.5
    fits.tiling = Tiling(4)
    np.testing.assert_allclose(fits(label, inst, blocks).astype(int), expected, atol=1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_map_gives_the_same_image(G: InferenceModel, kind: Callable) -> None:
    label, inst = maps()
    tensors = [torch.from_numpy(m)[None, None] for m in (label, inst)]
    images = G.generate(*tensors)
    assert images.is_inference()  # no graph is built
    generated = (images[0].permute(1, 2, 0).numpy() + 1) / 2 * 255
    image = G(*kind(label, inst))
    assert image.shape == (17, 22, 3) and image.dtype == np.uint8
    assert image.std() > 5
    np.testing.assert_array_equal(image, np.clip(generated, 0, 255).astype(np.uint8))


def test_a_batch_equals_its_images(G: InferenceModel) -> None:
    label, inst = maps(batch=(3,))
    singles = np.stack([G(*pair) for pair in zip(label, inst)]).astype(int)
    as_data_set = [torch.from_numpy(m)[:, None] for m in (label, inst)]
    listed = [list(label), [Image.fromarray(one) for one in inst]]
    for batch in ((label, inst), as_data_set, listed):
        images = G(*batch)
        assert images.shape == (3, 17, 22, 3)
        assert np.abs(images - singles).max() <= 1
    assert G(label[:1], inst[:1]).shape == (1, 17, 22, 3)


@pytest.mark.parametrize(
    "flags",
    [
        *({}, {"netG": "local"}, {"n_downsample_global": 4}),
        {"netG": "local", "n_downsample_global": 0, "n_local_enhancers": 2},
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 32), (33, 31)])
def test_any_size(tmp_path: Path, flags: dict, size: tuple) -> None:
    G = load_generator(save_run(tmp_path / "run", **flags))
    assert G(*maps(*size)).shape == (*size, 3)


def test_batch_norm_uses_each_images_own_statistics(tmp_path: Path) -> None:
    """Against torch's own batch norm in training mode, one image at a time."""
    folder = save_run(tmp_path / "run", norm="batch")
    G = load_generator(folder)
    label, inst = maps(16, 32, (2,))
    net = build_generator(G.opt)
    net.load_state_dict(torch.load(folder / "latest_net_G.pth"))
    tensors = [torch.from_numpy(m)[:, None] for m in (label, inst)]
    x = G.generator_input(*tensors, None, None)
    with torch.no_grad():
        expected = torch.cat([net.train()(one) for one in x.split(1)])
    torch.testing.assert_close(G.generate(*tensors), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("device, ordered", [("cpu", False), ("mps", False), ("cuda", True)])
def test_maps_are_copied_asynchronously_only_by_cuda(
    G: InferenceModel, device: str, ordered: bool
) -> None:
    """A Mac's GPU reads a map later, when its memory may hold something else."""
    label, copied = torch.from_numpy(maps()[0])[None, None], []

    def to(self: torch.Tensor, place: torch.device, non_blocking: bool) -> torch.Tensor:
        copied.append((place.type, non_blocking))
        return self

    G.device = torch.device(device)
    with patch.object(torch.Tensor, "to", to):
        G._padded(label)
    assert copied == [(device, ordered)]


def test_half_precision_and_epochs(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    save_run(folder, epoch="10")
    pair = maps()
    exact, half = (load_generator(folder, data_type=bits)(*pair) for bits in (32, 16))
    assert 0 < np.abs(exact.astype(int) - half).max() <= 2
    assert np.abs(load_generator(folder, epoch=10)(*pair).astype(int) - exact).max() > 10


def test_models_of_other_inputs(tmp_path: Path) -> None:
    label, inst = maps()
    plain = load_generator(save_run(tmp_path / "plain", no_instance=True))
    np.testing.assert_array_equal(plain(label), plain(label, inst))
    rgb = load_generator(save_run(tmp_path / "rgb", label_nc=0, no_instance=True))
    rgb_image = np.random.default_rng(0).integers(0, 256, (17, 22, 3), np.uint8)
    assert rgb(rgb_image).shape == (17, 22, 3)
    np.testing.assert_array_equal(rgb(Image.fromarray(rgb_image)), rgb(rgb_image[None])[0])
    grey = load_generator(save_run(tmp_path / "grey", label_nc=0, input_nc=1, no_instance=True))
    image = rgb_image[..., 0]
    assert grey(image).shape == (17, 22, 3)
    np.testing.assert_array_equal(grey(Image.fromarray(image)), grey(image[None, ..., None])[0])
    np.testing.assert_array_equal(
        grey([image, Image.fromarray(image)]), grey(np.stack([image] * 2)[..., None])
    )
    ignoring = load_generator(save_run(tmp_path / "ignoring", ignore_label=255))
    label[0] = 255
    assert ignoring(label, inst).shape == (17, 22, 3)


def test_features_choose_the_appearance(tmp_path: Path) -> None:
    G = load_generator(save_run(tmp_path / "run", instance_feat=True))
    styles = {k: np.float32([[0, 0, 0], [1, -1, 1]]) for k in range(35)}
    label, inst = maps()
    inst[:, :8] = 24_000
    label[:, :8] = 24
    images = []
    for number in (0, 1):
        fixed = {24: styles[24][number]}
        chosen = StyleChooser({}, fixed).choose(instance_classes(inst, label), "scene")
        images.append(G(label, inst, paint(inst, chosen, G.opt.feat_num)))
    assert np.abs(images[0].astype(int) - images[1]).max() > 10
    batch = G([label] * 2, [inst] * 2, np.zeros((2, 3, 17, 22)))
    np.testing.assert_allclose(batch[1].astype(int), images[0].astype(int), atol=1)


def test_the_command_generates_what_the_library_does(
    tmp_path: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test.py's image of a scene is G(label, inst) of the scene's files."""
    save_run(tmp_path / "run")
    flags = f"--name run --checkpoints_dir {tmp_path} --results_dir {tmp_path / 'results'}"
    flags += f" --dataroot {toy_data} --resize_or_crop none --gpu_ids -1 --nThreads 0"
    monkeypatch.setattr("sys.argv", ["test.py", *flags.split()])
    test_command.main()
    G = load_generator(tmp_path / "run")
    generated = sorted((tmp_path / "results").rglob("*_synthesized_image.png"))
    assert len(generated) == 2
    for path in generated:
        stem = path.name.removesuffix("_synthesized_image.png")
        label = Image.open(toy_data / "test_label" / f"{stem}.png")
        inst_name = f"{stem.replace('labelIds', 'instanceIds')}.png"
        inst = Image.open(toy_data / "test_inst" / inst_name)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), G(label, inst))


LABEL, INST = maps()
REFUSED = {
    "no instances": ((LABEL,), "needs an instance map"),
    "other size": ((LABEL, INST[1:]), r"instance maps \(1, 16, 22\) for label maps \(1, 17"),
    "other count": ((LABEL, np.stack([INST] * 2)), "instance maps"),
    "floats": ((LABEL / 2, INST), "label map of float64: expected integers"),
    "colours": ((Image.fromarray(LABEL).convert("RGB"), INST), r"expected \(H, W\) or"),
    "colours of numpy": ((np.stack([LABEL] * 3, -1), INST), r"shape \(17, 22, 3\)"),
    "one row": ((LABEL[0], INST[0]), r"shape \(22,\)"),
    "nothing": ((LABEL[:0], INST[:0]), "shape"),
    "too large a label": ((LABEL + 1, INST), "labels 1 to 35, but the model knows 0 to 34"),
    "features": ((LABEL, INST, np.zeros((3, 17, 22))), "takes no feature map"),
    "mixed sizes": (([LABEL, LABEL[1:]], [INST, INST[1:]]), "in one batch"),
}


@pytest.mark.parametrize("given, expected", REFUSED.values(), ids=REFUSED)
def test_maps_that_do_not_fit(G: InferenceModel, given: tuple, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        G(*given)


def test_inputs_of_other_models_that_do_not_fit(tmp_path: Path) -> None:
    rgb = load_generator(save_run(tmp_path / "rgb", label_nc=0, no_instance=True))
    for image in (LABEL, np.zeros((17, 22, 4), np.uint8), np.zeros((17, 22, 3))):
        with pytest.raises(UserError, match=r"expected \(H, W, 3\)"):
            rgb(image)
    with pytest.raises(UserError, match=r"shape \(0, 17, 22, 3\)"):
        rgb(np.zeros((0, 17, 22, 3), np.uint8))
    with pytest.raises(UserError, match="takes no conditions"):
        rgb(np.zeros((17, 22, 3), np.uint8), cond=np.zeros((17, 22), np.uint8))
    styled = load_generator(save_run(tmp_path / "styled", instance_feat=True))
    with pytest.raises(UserError, match="needs a feature map"):
        styled(LABEL, INST)
    with pytest.raises(UserError, match=r"feature maps \(1, 17, 22\) for .* expected 3 feat"):
        styled(LABEL, INST, np.zeros((2, 17, 22)))
    with pytest.raises(UserError, match="feature maps: NaN or infinite numbers"):
        styled(LABEL, INST, np.full((3, 17, 22), np.nan))
    for dtype in (complex, object):
        with pytest.raises(UserError, match=f"feature maps of {np.dtype(dtype)}: expected floats"):
            styled(LABEL, INST, np.zeros((3, 17, 22), dtype))


def test_features_of_any_float_type(tmp_path: Path) -> None:
    styled = load_generator(save_run(tmp_path / "styled", instance_feat=True))
    feat = torch.linspace(-1, 1, 3)[:, None, None].expand(3, *LABEL.shape)
    expected = styled(LABEL, INST, feat)
    for same in (feat.bfloat16(), feat.half(), feat.double(), feat.clone().requires_grad_()):
        np.testing.assert_array_equal(styled(LABEL, INST, same), expected)


def test_photographs_of_any_float_type(tmp_path: Path) -> None:
    """Pixels become float64 as soon as numpy computes with them."""
    E = load_generator(write_run(tmp_path, "run"))
    image, inst = torch.rand(1, 3, *INST.shape) * 2 - 1, torch.from_numpy(INST)[None, None]
    expected = E.encode(image, inst)
    torch.testing.assert_close(E.encode(image.double(), inst), expected)
    torch.testing.assert_close(E.encode(image.half(), inst), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_files_of_pytorch_before_0_4_load(norm: str, tmp_path: Path) -> None:
    """They hold statistics of instance normalization, and no batch count of batch normalization."""
    folder = save_run(tmp_path / "run", norm=norm)
    expected = load_generator(folder)(LABEL, INST)
    state = torch.load(folder / "latest_net_G.pth")
    if norm == "batch":
        old = {name: value for name, value in state.items() if "num_batches" not in name}
        assert len(old) < len(state)
    else:
        statistics = ("model.2.running_mean", "model.2.running_var", "model.5.running_mean")
        old = state | {name: torch.rand(4) for name in statistics}
    torch.save(old, folder / "latest_net_G.pth")
    np.testing.assert_array_equal(load_generator(folder)(LABEL, INST), expected)


def test_loading_refuses(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    with pytest.raises(UserError, match="no such folder"):
        load_generator(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"7_net_G\.pth: no such file"):
        load_generator(folder, epoch=7)
    with pytest.raises(UserError, match="weights of another architecture"):
        load_generator(folder, ngf=8)
    with pytest.raises(TypeError, match="unknown flag ngff; known:"):
        load_generator(folder, ngff=8)
    with pytest.raises(UserError, match="data_type 8: expected 16 or 32"):
        load_generator(folder, data_type=8)
    with pytest.raises(UserError, match=r"device cuda:99: .*; device=.cpu. works"):
        load_generator(folder, device="cuda:99")
    with pytest.raises(UserError, match="device nonsense: "):
        load_generator(folder, device="nonsense")
    wrong = {"ngf": "4"}, {"ngf": True}, {"norm": 3}, {"use_dropout": 1}, {"ema": "x"}, {"ngf": -1}
    for flags in wrong:
        with pytest.raises(UserError, match=f"{next(iter(flags))} is .*, expected a value like"):
            load_generator(folder, **flags)
    for flags in ({"norm": "foo"}, {"netG": "foo"}, {"output_type": "float16"}):
        with pytest.raises(UserError, match=f"{next(iter(flags))} is .*, expected one of"):
            load_generator(folder, **flags)
    for given in ("0,100", [100], (3, 2)):
        with pytest.raises(UserError, match=r"output_range is .*, expected \[low, high\]"):
            load_generator(folder, output_range=given)


def test_defaults_are_those_of_the_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no run to inherit from
    opt = vars(TestOptions().parse(["--gpu_ids", "-1"]))
    assert {flag: opt[flag] for flag in DEFAULTS} == DEFAULTS


def test_pretrained_runs_are_found_from_any_folder(tmp_path: Path) -> None:
    below = save_run(tmp_path / "below", load_pretrain="")
    run = save_run(tmp_path / "run", load_pretrain="checkpoints/below")  # as given to train.py
    assert run_and_pretrained(run) == [run, below]


def test_weights_without_opt_json_need_flags(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run")
    pair = maps()
    expected = load_generator(folder)(*pair)
    (folder / "opt.json").unlink()
    np.testing.assert_array_equal(load_generator(folder, **SMALL)(*pair), expected)


@pytest.mark.thorough
def test_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of docs/library.md, from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    label, inst = maps()
    label[:, :8], inst[:, :8] = 26, 26_000
    Image.fromarray(label).save("label.png")
    Image.fromarray(inst.astype(np.uint16)).save("inst.png")
    plain = save_run(tmp_path / "checkpoints" / "label2city_512p")
    styled = save_run(tmp_path / "checkpoints" / "label2city_512p_feat", instance_feat=True)
    np.save(styled / "features_clustered_010.npy", np.float32([[26, 1, -1, 1]]))
    scope: dict = {}
    exec(blocks[0], scope)
    written = Path("image.png")
    generated = np.asarray(Image.open(written)).astype(int)
    assert generated.shape == (17, 22, 3)
    exec(blocks[1], scope)
    assert scope["image"].shape == (17, 22, 3)

    pytest.importorskip("onnxruntime", reason="needs requirements-onnx.txt")
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    from models.export import export_onnx

    export_onnx(load_generator(plain), Path("label2city.onnx"))
    written.unlink()
    exec(blocks[2], {})
    assert np.abs(np.asarray(Image.open(written)).astype(int) - generated).max() <= 1
