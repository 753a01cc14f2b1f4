"""Losses against values computed by hand, by numpy, or in another way."""

import http.client
import math
import urllib.error
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from models.losses import VGGLoss, feature_matching_loss, gan_loss, load_vgg19
from util.errors import UserError

# two scales, each a feature map and then the scores
OUTPUTS = [
    [torch.zeros(1, 4, 2, 2), torch.tensor([[[[1.0, 2.0], [0.0, -1.0]]]])],
    [torch.zeros(1, 4, 1, 1), torch.tensor([[[[3.0]]]])],
]


def test_least_squares_by_hand() -> None:
    # real: (0 + 1 + 1 + 4) / 4 + 4; fake: (1 + 4 + 0 + 1) / 4 + 9
    assert gan_loss(OUTPUTS, True).item() == pytest.approx(5.5)
    assert gan_loss(OUTPUTS, False).item() == pytest.approx(10.5)


def test_cross_entropy_by_hand() -> None:
    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    real = sum(softplus(-s) for s in (1, 2, 0, -1)) / 4 + softplus(-3)
    fake = sum(softplus(s) for s in (1, 2, 0, -1)) / 4 + softplus(3)
    assert gan_loss(OUTPUTS, True, use_lsgan=False).item() == pytest.approx(real, rel=1e-6)
    assert gan_loss(OUTPUTS, False, use_lsgan=False).item() == pytest.approx(fake, rel=1e-6)


def test_cross_entropy_takes_raw_scores_of_any_size() -> None:
    huge = [[torch.tensor([[[[-200.0]]]], requires_grad=True)]]
    loss = gan_loss(huge, True, use_lsgan=False)
    loss.backward()
    assert loss.item() == pytest.approx(200) and huge[0][0].grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("n_layers, num_D", [(3, 2), (3, 3), (2, 1), (5, 2)])
def test_feature_matching_equals_numpy(n_layers: int, num_D: int) -> None:
    rng = np.random.default_rng(0)

    def outputs() -> list[list[Tensor]]:
        shapes = [(2, 3 + n, 5, 4) for n in range(n_layers + 1)] + [(2, 1, 5, 4)]
        return [
            [torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes]
            for _ in range(num_D)
        ]

    fake, real = outputs(), outputs()
    total = 0.0
    for fake_maps, real_maps in zip(fake, real):
        for f, r in zip(fake_maps[:-1], real_maps[:-1]):
            total += np.abs(f.numpy() - r.numpy()).mean() * 4 / (n_layers + 1) / num_D
    assert feature_matching_loss(fake, real).item() == pytest.approx(total, rel=1e-6)


def test_feature_matching_trains_only_the_fake() -> None:
    fake = [[torch.ones(1, 1, 2, 2, requires_grad=True), torch.ones(1)]]
    real = [[torch.zeros(1, 1, 2, 2, requires_grad=True), torch.zeros(1)]]
    feature_matching_loss(fake, real).backward()
    assert fake[0][0].grad is not None and real[0][0].grad is None


# VGG -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg(vgg_file: Path) -> VGGLoss:
    return VGGLoss(str(vgg_file))


def plain_maps(vgg_file: Path, image: Tensor) -> list[Tensor]:
    """relu1_1 .. relu5_1 by torchvision's own network, layer by layer, up to its last layer."""
    with torch.device("meta"):
        features = torchvision.models.vgg19(weights=None).features
    state = torch.load(vgg_file, weights_only=True)
    prefix = "features."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    features.load_state_dict(own, assign=True)
    maps, block, first = [], 1, True
    for layer in features:
        image = layer(image.clone())
        if isinstance(layer, torch.nn.ReLU) and first:  # the first of each block
            maps.append(image.clone())
            first = False
        if isinstance(layer, torch.nn.MaxPool2d):
            block, first = block + 1, True
    assert block == 6 and len(maps) == 5
    return maps


def test_vgg_maps_are_the_first_of_each_block(vgg: VGGLoss, vgg_file: Path) -> None:
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        found = list(accumulate(vgg.slices, lambda x, part: part(x), initial=image))[1:]
        expected = plain_maps(vgg_file, image)
    assert [tuple(m.shape[1:]) for m in found] == [
        *((64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3))
    ]
    for ours, plain in zip(found, expected):
        assert torch.equal(ours, plain)


def test_vgg_loss_weights_the_maps(vgg: VGGLoss, vgg_file: Path) -> None:
    fake, real = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        distances = [
            (f - r).abs().mean().item()
            for f, r in zip(plain_maps(vgg_file, fake), plain_maps(vgg_file, real))
        ]
    weighted = np.dot([0.03125, 0.0625, 0.125, 0.25, 1], distances)
    assert vgg(fake, real).item() == pytest.approx(weighted, rel=1e-5)
    assert vgg(fake, fake).item() == 0


def test_vgg_loss_trains_only_the_fake(vgg: VGGLoss) -> None:
    fake = torch.rand(1, 3, 32, 32, requires_grad=True)
    real = torch.rand(1, 3, 32, 32, requires_grad=True)
    vgg(fake, real).backward()
    assert fake.grad.abs().max() > 0 and real.grad is None
    assert not any(p.requires_grad for p in vgg.parameters())


def test_missing_vgg_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--vgg_weights \S+none\.pth: no such file"):
        load_vgg19(str(tmp_path / "none.pth"))


def write_text(path: Path) -> None:
    path.write_text("weights")


def write_list(path: Path) -> None:
    torch.save([1, 2], path)


def write_other_network(path: Path) -> None:
    torch.save({"model.1.weight": torch.zeros(2)}, path)


def write_zeros(path: Path) -> None:  # what a power cut may leave
    path.write_bytes(bytes(1000))


@pytest.mark.parametrize(
    "write", [write_text, write_list, write_other_network, Path.mkdir, Path.touch, write_zeros]
)
def test_vgg_weights_file_with_other_content(tmp_path: Path, write) -> None:
    path = tmp_path / "other.pth"
    write(path)
    with pytest.raises(UserError, match="--vgg_weights") as error:
        load_vgg19(str(path))
    message = str(error.value)
    assert str(path) in message and "\n" not in message and "weights_only" not in message


def test_vgg_weights_file_with_a_changed_byte(tmp_path: Path) -> None:
    weights = torch.arange(64.0)
    torch.save({"features.0.bias": weights}, path := tmp_path / "vgg19.pth")
    path.write_bytes(path.read_bytes().replace(weights.numpy().tobytes(), bytes(256)))
    with pytest.raises(UserError, match="checksum"):  # which torch ignores
        load_vgg19(str(path))


@pytest.mark.parametrize("content", [b"", bytes(1000), b"<html>"])
def test_damaged_downloaded_vgg_weights(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # not TORCH_HOME: torch ignores it once torch.hub.set_dir was called in this process
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    path = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with torch.device("meta"), pytest.raises(UserError, match=f"{path}: .*delete it"):
        load_vgg19()


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("no route to host"),
        OSError("No space left on device"),
        http.client.IncompleteRead(b""),
        RuntimeError("invalid hash value"),
    ],
)
def test_a_failed_download_names_both_flags(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    # ignore earlier downloads
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr(torchvision.models.VGG19_Weights, "get_state_dict", fail)
    with torch.device("meta"), pytest.raises(UserError) as error:
        load_vgg19()
    message = str(error.value)
    assert "--vgg_weights" in message and "--no_vgg_loss" in message and "\n" not in message
