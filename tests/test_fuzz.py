"""Damaged data sets and checkpoints: correct training or one clear line that names the file.

Each kind of damage is tried with several seeds. Correct means: the items of all scenes are, bit for
bit and file for file, those of the undamaged data set.
"""

import io
import os
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import thorough
from crafted_images import png, tiff
from PIL import Image
from torch import nn
from trainer import Training, train

from data.aligned_dataset import AlignedDataset, Geometry
from data.check import check
from data.files import read_integers
from options.train_options import TrainOptions
from util.errors import UserError, one_line
from util.run.checkpoints import load_file, load_network, load_pretrained

KINDS = {"label": "label", "inst": "inst", "image": "img"}
SEEDS = range(8)
REFUSED, CORRECT, EITHER = "refused", "correct", "either"


class DataSet:
    """A data set to be damaged: a copy of the toy scenes, and the random choice of a victim."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self.kind = rng.choice(list(KINDS))
        self.victim = rng.choice(self.files(self.kind))
        self.named = [str(self.victim)]  # the message must hold one of these

    def files(self, kind: str) -> list[Path]:
        return sorted((self.root / f"train_{KINDS[kind]}").glob("*.png"))

    def choose(self, *kinds: str) -> None:
        """Choose the victim among these kinds."""
        self.kind = self.rng.choice(kinds)
        self.victim = self.rng.choice(self.files(self.kind))
        self.named = [str(self.victim)]

    def scene(self) -> dict[str, Path]:
        """All files of the victim's scene."""
        index = self.files(self.kind).index(self.victim)
        return {kind: self.files(kind)[index] for kind in KINDS}

    def resave(self, change: Callable[[Image.Image], Image.Image], suffix: str = ".png") -> None:
        image = change(Image.open(self.victim))
        self.victim.unlink()
        self.victim = self.victim.with_suffix(suffix)
        image.save(self.victim)
        self.named = [str(self.victim)]

    def replace(self, content: bytes, suffix: str) -> None:
        """Put a file with this content in the victim's place."""
        self.victim.unlink()
        self.victim = self.victim.with_suffix(suffix)
        self.victim.write_bytes(content)
        self.named = [str(self.victim)]


# Damage to the bytes of a file --------------------------------------------------------------------


def truncated(data: DataSet) -> str:
    content = data.victim.read_bytes()
    data.victim.write_bytes(content[: data.rng.randrange(len(content))])
    return EITHER  # without its last bytes a file may still have every pixel


def flipped_bit(data: DataSet) -> str:
    content = bytearray(data.victim.read_bytes())
    content[data.rng.randrange(len(content))] ^= 1 << data.rng.randrange(8)
    data.victim.write_bytes(content)
    return EITHER


def zeroed_stretch(data: DataSet) -> str:
    content = bytearray(data.victim.read_bytes())
    start = data.rng.randrange(len(content))
    end = min(len(content), start + data.rng.randint(1, 60))
    content[start:end] = bytes(end - start)
    data.victim.write_bytes(content)
    return EITHER


def trailing_garbage(data: DataSet) -> str:
    data.victim.write_bytes(data.victim.read_bytes() + data.rng.randbytes(50))
    return CORRECT


def empty(data: DataSet) -> str:
    data.victim.write_bytes(b"")
    return REFUSED


def noise(data: DataSet) -> str:
    data.victim.write_bytes(data.rng.randbytes(data.rng.randint(1, 300)))
    return REFUSED


def another_file_type(data: DataSet) -> str:
    texts = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n",
        b"<svg/>",
        b"GIF89a",
        b"\x93NUMPY",
    ]
    data.victim.write_bytes(data.rng.choice(texts) + bytes(100))
    return REFUSED


def decompression_bomb(data: DataSet) -> str:
    content = png(np.zeros((1, 1_000_000), np.uint8), 8, 0)
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    head += struct.pack(">I", zlib.crc32(head))
    data.victim.write_bytes(content[:12] + head + content[12 + len(head) :])
    return REFUSED


def text_bomb(data: DataSet) -> str:
    text = b"zTXt", b"bomb\0\0" + zlib.compress(bytes(20_000_000), 1)
    data.victim.write_bytes(png(np.zeros((32, 64), np.uint8), 8, 0, text))
    return REFUSED


# Damage to modes and values -----------------------------------------------------------------------


def colours_for_integers(data: DataSet) -> str:
    data.choose("label", "inst")
    mode = data.rng.choice(["RGB", "RGBA", "LA", "CMYK", "F"])
    suffix = ".tif" if mode in ("CMYK", "F") else ".png"
    data.resave(lambda image: image.convert("L").convert(mode), suffix)
    return REFUSED


def lossy_integers(data: DataSet) -> str:
    data.choose("label", "inst")
    data.resave(lambda image: image.convert("L"), ".jpg")
    return REFUSED


def lossy_under_a_png_name(data: DataSet) -> str:
    data.choose("label", "inst")
    Image.open(data.victim).convert("L").save(data.victim, "JPEG")
    return REFUSED


def deep_photograph(data: DataSet) -> str:
    """16 bits per channel: grey, RGB and RGBA, of which Pillow keeps 8."""
    data.choose("image")
    suffix, write = data.rng.choice([(".png", png), (".tif", tiff)])
    channels, colour, photometric = data.rng.choice([(0, 0, 1), (3, 2, 2), (4, 6, 2)])
    array = np.full((32, 64, channels) if channels else (32, 64), 60_001, np.uint16)
    data.replace(write(array, 16, colour if write is png else photometric), suffix)
    return REFUSED


def extra_channels(data: DataSet) -> str:
    array = np.full((32, 64, data.rng.choice([4, 5])), 7, np.uint8)
    data.replace(tiff(array, 8, 2, extra=(0,) * (array.shape[2] - 3)), ".tif")
    return REFUSED


def transparency(data: DataSet) -> str:
    mode = data.rng.choice(["LA", "RGBA"])
    suffix = data.rng.choice([".png", ".tif"] + [".webp"] * (mode == "RGBA"))

    def change(image: Image.Image) -> Image.Image:
        image = image.convert("L").convert(mode)
        image.putalpha(data.rng.randrange(255))
        return image

    data.resave(change, suffix)
    return REFUSED


def pages(data: DataSet) -> str:
    array = np.array(Image.open(data.victim).convert("L"))
    page, *others = (Image.fromarray(np.roll(array, i, 1)) for i in range(data.rng.randint(2, 6)))
    suffix = data.rng.choice([".tif", ".png"])
    content = io.BytesIO()
    page.save(content, {".tif": "TIFF", ".png": "PNG"}[suffix], save_all=True, append_images=others)
    data.replace(content.getvalue(), suffix)
    return REFUSED


def cmyk(data: DataSet) -> str:
    data.resave(lambda image: image.convert("RGB").convert("CMYK"), ".tif")
    return REFUSED


def wrong_labels(data: DataSet) -> str:
    data.choose("label")
    label = np.array(Image.open(data.victim))
    label[data.rng.randrange(32), data.rng.randrange(64)] = data.rng.randint(35, 255)
    Image.fromarray(label).save(data.victim)
    return REFUSED


def negative_labels(data: DataSet) -> str:
    data.choose("label")
    label = np.array(Image.open(data.victim)).astype(np.int32)
    label[0, 0] = -data.rng.randint(1, 2**31)
    data.resave(lambda image: Image.fromarray(label), ".tif")
    return REFUSED


def other_depth(data: DataSet) -> str:
    """Integers in another type of file are still the same integers."""
    data.choose("label", "inst")
    values = np.array(Image.open(data.victim)).astype(np.int32)
    data.resave(lambda image: Image.fromarray(values), data.rng.choice([".tif", ".tiff"]))
    return CORRECT


# Damage to sizes ----------------------------------------------------------------------------------


def other_size(data: DataSet) -> str:
    sizes = [(1, 1), (63, 32), (64, 33), (5000, 3), (3, 5000), (128, 64)]
    size = data.rng.choice(sizes)
    data.resave(lambda image: image.resize(size, Image.Resampling.NEAREST))
    return REFUSED


def rotated(data: DataSet) -> str:
    data.resave(lambda image: image.transpose(Image.Transpose.ROTATE_90))
    return REFUSED


# Damage to names and folders ----------------------------------------------------------------------


def lost(data: DataSet) -> str:
    data.named = [str(path) for path in data.scene().values()]
    data.victim.unlink()
    return REFUSED


def extra(data: DataSet) -> str:
    added = data.victim.with_name(f"more{data.rng.randint(0, 9)}.png")
    shutil.copy(data.victim, added)
    data.named = [str(added)]
    return REFUSED


def renamed(data: DataSet) -> str:
    """Like a shift by one, which pairing by sorted position would not notice."""
    data.named = [data.victim.name[:10]]
    data.victim.rename(data.victim.with_name("aaaa.png"))
    return REFUSED


def duplicated(data: DataSet) -> str:
    shutil.copy(data.victim, data.victim.with_suffix(data.rng.choice([".PNG", ".bmp", ".tif"])))
    data.named = [data.victim.name]
    return REFUSED


ODD = [
    "a b",
    "é",
    "日本",
    "it's",
    'say "hi"',
    "a\nb",
    "-x",
    "$(id)",
    "%s{}",
    "..x",
    "<b>",
    "a;b&c",
    "\udcff",
]


def odd_name(data: DataSet) -> str:
    name = data.rng.choice(ODD)
    for path in data.scene().values():
        path.rename(path.with_name(f"{name}.png"))
    return CORRECT


def odd_name_of_a_bad_file(data: DataSet) -> str:
    odd_name(data)
    name = data.rng.choice(data.files(data.kind))
    name.write_bytes(b"x")
    data.named = [one_line(name)]
    return REFUSED


def everyday_names(data: DataSet) -> str:
    endings = {"label": "_label.PNG", "inst": "-inst.png", "image": "_photo.png"}
    for kind, path in data.scene().items():
        path.rename(path.with_name("scene" + endings[kind]))
    return CORRECT


def subfolder(data: DataSet) -> str:
    for path in data.scene().values():
        (path.parent / "town").mkdir()
        path.rename(path.parent / "town" / "x.png")
    return CORRECT


def subfolder_of_one_kind(data: DataSet) -> str:
    data.named = [data.victim.name[:10], "town"]
    (data.victim.parent / "town").mkdir()
    data.victim.rename(data.victim.parent / "town" / data.victim.name)
    return REFUSED


def swapped_everywhere(data: DataSet) -> str:
    """Two scenes that exchange their names in every folder are still pairs."""
    other = data.rng.randrange(4)
    here = data.files(data.kind).index(data.victim)
    for kind in KINDS:
        paths = data.files(kind)
        first, second = paths[here].read_bytes(), paths[other].read_bytes()
        paths[here].write_bytes(second)
        paths[other].write_bytes(first)
    return CORRECT


def directory_like_an_image(data: DataSet) -> str:
    data.victim.unlink()
    data.victim.mkdir()
    return REFUSED


def broken_link(data: DataSet) -> str:
    data.victim.unlink()
    data.victim.symlink_to(data.rng.choice(["nowhere.png", data.victim.name]))
    return REFUSED


def device(data: DataSet) -> str:
    data.victim.unlink()
    if data.rng.random() < 0.5:
        data.victim.symlink_to("/dev/zero")
    else:
        os.mkfifo(data.victim)
    return REFUSED


def hidden_files(data: DataSet) -> str:
    (data.victim.parent / f"._{data.victim.name}").write_bytes(b"\0\5\x16\7")
    (data.victim.parent / "Thumbs.db").write_bytes(b"x")
    return CORRECT


def no_folder(data: DataSet) -> str:
    data.named = [data.victim.parent.name]
    shutil.rmtree(data.victim.parent)
    return REFUSED


def empty_folder(data: DataSet) -> str:
    data.named = [data.victim.parent.name]
    for path in data.victim.parent.iterdir():
        path.unlink()
    return REFUSED


DAMAGE_KINDS = [
    *(truncated, flipped_bit, zeroed_stretch, trailing_garbage, empty, noise, another_file_type),
    *(decompression_bomb, text_bomb, colours_for_integers, lossy_integers, lossy_under_a_png_name),
    *(
        deep_photograph,
        extra_channels,
        transparency,
        pages,
        cmyk,
        wrong_labels,
        negative_labels,
        other_depth,
        other_size,
        rotated,
        lost,
        extra,
    ),
    *(renamed, duplicated, odd_name, odd_name_of_a_bad_file, everyday_names, subfolder),
    *(subfolder_of_one_kind, swapped_everywhere, directory_like_an_image, broken_link, device),
    *(hidden_files, no_folder, empty_folder),
]


def read_all(root: Path) -> list[dict]:
    """Every item. Raises UserError as the loader does."""
    dataset = AlignedDataset(root, "train", 35, Geometry("none"))
    items = [dataset[index] for index in range(len(dataset))]
    for item in items:
        if isinstance(item, UserError):
            raise item
    return items


def as_bytes(item: dict) -> tuple[bytes, ...]:
    return tuple(item[kind].numpy().astype(np.float32).tobytes() for kind in KINDS)


@pytest.fixture(scope="session")
def whole_items(toy_data) -> set[tuple[bytes, ...]]:
    return {as_bytes(item) for item in read_all(toy_data)}


def copy_set(source: Path, target: Path) -> Path:
    for kind in KINDS.values():
        shutil.copytree(source / f"train_{kind}", target / f"train_{kind}")
    return target


@pytest.mark.parametrize("damage", [*DAMAGE_KINDS[::2], *thorough(*DAMAGE_KINDS[1::2])])
def test_damaged_data_sets(damage, toy_data, whole_items, tmp_path):
    for seed in SEEDS:
        data = DataSet(copy_set(toy_data, tmp_path / str(seed)), random.Random(seed))
        expected = damage(data)
        found = check(options(data.root)).problems
        try:
            items = read_all(data.root)
        except UserError as error:
            message = one_line(error)
            assert expected != CORRECT, message
            assert any(name in message for name in data.named), (data.named, message)
            assert any(name in one_line("".join(found)) for name in data.named), found
        else:
            assert expected != REFUSED, (seed, data.victim)
            assert {as_bytes(item) for item in items} == whole_items, (seed, data.victim)
            assert expected == EITHER or not found, found


def test_no_flipped_bit_goes_unnoticed(toy_data, tmp_path):
    """Pillow alone lets 6 in 100 through into the pixels of such a label map."""
    content = sorted((toy_data / "train_label").iterdir())[0].read_bytes()
    path, rng = tmp_path / "x.png", random.Random(0)
    path.write_bytes(content)
    whole, refused = np.asarray(read_integers(path, "label")), 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert np.array_equal(read_integers(path, "label"), whole)
        except UserError:
            refused += 1
    assert refused > 250


def test_there_are_200_cases_of_damage():
    assert len(DAMAGE_KINDS) * len(SEEDS) >= 200


def options(root: Path):
    return TrainOptions().parse(["--dataroot", str(root), "--gpu_ids", "-1", "--nThreads", "0"])


RUN = ["--niter", 1, "--niter_decay", 0]


@pytest.mark.parametrize(
    "damage",
    [truncated, directory_like_an_image, wrong_labels, odd_name, odd_name_of_a_bad_file, lost],
)
@pytest.mark.parametrize("workers", [*thorough(0), 1])
def test_damage_ends_training_in_one_line(damage, workers, toy_data, tmp_path):
    data = DataSet(copy_set(toy_data, tmp_path / "data"), random.Random(3))
    expected = damage(data)
    training = Training(tmp_path / "run", "--dataroot", data.root, "--nThreads", workers, *RUN)
    status, output = training.end(), training.output()
    assert "Traceback" not in output
    if expected == CORRECT:
        assert status == 0, output
    else:
        assert status == 2, output
        last = output.splitlines()[-1]
        assert last.startswith("error: ") and any(name in last for name in data.named)


@pytest.mark.parametrize("size", [(1, 1), (2, 64), (5000, 32), (32, 5000), (17, 33), (5000, 1)])
@pytest.mark.parametrize("mode", ["none", *thorough("scale_width")])
def test_sizes_train_or_are_refused(size, mode, toy_data, tmp_path):
    """All images of one odd size."""
    data = copy_set(toy_data, tmp_path / "data")
    for path in sorted(data.rglob("*.png"))[::-1]:
        if "000000" in path.name:
            Image.open(path).resize(size, Image.Resampling.NEAREST).save(path)
        else:
            path.unlink()
    training = Training(tmp_path / "run", "--dataroot", data, *RUN, "--resize_or_crop", mode)
    status, output = training.end(), training.output()
    final = size if mode == "none" else (64, max(1, 64 * size[1] // size[0]))
    assert "Traceback" not in output
    if min(final) < 4:  # the first layer reflects three pixels
        assert status == 2 and "need at least" in output.splitlines()[-1], output
    else:
        assert status == 0, output


# Checkpoints --------------------------------------------------------------------------------------


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.fixture(scope="module")
def trained(toy_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    train(folder, "--dataroot", toy_data, *RUN)
    return folder


def net_like(path: Path) -> nn.Module:
    """A module with the parameters of a checkpoint."""
    net = nn.Module()
    for name, value in torch.load(path, weights_only=True).items():
        net.register_buffer(name.replace(".", "_"), torch.zeros_like(value))
    return net


@pytest.fixture
def network(tmp_path) -> tuple[nn.Module, Path]:
    """A network of two layers and its file."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    torch.save(net.state_dict(), tmp_path / "latest_net_G.pth")
    return net, tmp_path / "latest_net_G.pth"


def damaged_weights(path: Path) -> list[bytes]:
    """The file cut off anywhere, with any bit flipped, and with stretches of zeros."""
    content, rng = path.read_bytes(), random.Random(0)
    cuts = [content[: rng.randrange(len(content))] for _ in range(30)]
    flips, holes = [], []
    for _ in range(60):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        flips.append(bytes(flipped))
    for _ in range(20):
        start = rng.randrange(len(content))
        holes.append(content[:start] + bytes(100) + content[start + 100 :])
    return [b"", b"x", bytes(1000), *cuts, *flips, *holes]


def test_damaged_weights_are_refused_or_whole(network):
    net, path = network
    whole = {name: value.clone() for name, value in net.state_dict().items()}
    refused = 0
    for content in damaged_weights(path):
        path.write_bytes(content)
        for load in (load_network, partial(load_pretrained, adapt=lambda state, own: state)):
            try:
                load(net, path)
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
            for name, value in net.state_dict().items():
                assert torch.equal(value, whole[name]), name
    assert refused > 100


@pytest.mark.filterwarnings("ignore:Validating sparse")  # torch's own, before the refusal
def test_foreign_contents_are_refused(network):
    net, path = network
    state = net.state_dict()
    contents = {
        "nothing": {},
        "a list": [1, 2],
        "no tensors": {"0.weight": "x"},
        "nested": {"model": state},
        "another shape": {**state, "0.weight": torch.zeros(4, 3, 5, 5)},
        "missing": {"0.weight": state["0.weight"]},
        "unknown": {**state, "9.weight": torch.zeros(1)},
        "NaN": {**state, "0.bias": torch.full((4,), float("nan"))},
        "infinite": {**state, "1.bias": torch.tensor([0.0, float("inf")])},
        "sparse": {**state, "1.bias": torch.ones(2).to_sparse()},
        "meta": {**state, "1.bias": torch.ones(2, device="meta")},
        "integers": {**state, "0.weight": state["0.weight"].long()},
        "complex": {**state, "0.weight": state["0.weight"].cfloat()},
        "infinite in float32": {**state, "0.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        "NaN in float8": {**state, "0.bias": torch.full((4,), torch.nan).to(torch.float8_e4m3fn)},
        "numbers for names": dict(enumerate(state.values())),
    }
    before = {name: value.clone() for name, value in state.items()}
    for what, content in contents.items():
        torch.save(content, path)
        with pytest.raises(UserError) as refusal:
            load_network(net, path)
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value), what
        assert all(torch.equal(before[name], net.state_dict()[name]) for name in before), what


def bombs(marker: Path) -> list[bytes]:
    """A harmful object in a zip checkpoint, in the older format, and as a bare pickle."""
    found = []
    for new_format in (True, False):
        buffer = io.BytesIO()
        torch.save({"x": Bomb(marker)}, buffer, _use_new_zipfile_serialization=new_format)
        found.append(buffer.getvalue())
    found += [pickle.dumps(Bomb(marker), protocol) for protocol in (0, 2, 4)]
    return found


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickle_bombs_do_not_go_off(tmp_path):
    marker = tmp_path / "it went off"
    for content in bombs(marker):
        path = tmp_path / "latest_net_G.pth"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"latest_net_G\.pth") as refusal:
            load_file(path)
        assert "weights_only" not in str(refusal.value)  # no advice to run the code
        assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()  # it would have


@pytest.mark.parametrize("name", ["latest_state.pth", "latest_net_G.pth", "latest_net_D.pth"])
def test_damaged_runs_are_not_continued(name, trained, toy_data, tmp_path):
    """On the command line: one line that names the file, and nothing of the run is touched."""
    marker = tmp_path / "it went off"
    buffer = io.BytesIO()
    torch.save({"position": 5}, buffer)
    whole = (trained / name).read_bytes()
    contents = [b"", whole[: len(whole) // 2], bombs(marker)[0], buffer.getvalue()]
    for number, content in enumerate(contents):
        run = tmp_path / f"run{number}"
        shutil.copytree(trained, run)
        (run / name).write_bytes(content)
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        training = Training(run, "--dataroot", toy_data, *RUN, "--continue_train")
        assert training.end() == 2, training.output()
        output = training.output()
        assert output.count("\n") == 1 and str(run / name) in output, output
        assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
        assert not marker.exists()


def test_incomplete_states_are_refused(trained, toy_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    state = load_file(run / "latest_state.pth")
    for key in sorted(state.keys() - {"names_crc", "checksums"}):  # which older states lack
        torch.save({k: v for k, v in state.items() if k != key}, run / "latest_state.pth")
        training = Training(run, "--dataroot", toy_data, *RUN, "--continue_train")
        assert training.end() == 2 and training.output().count("\n") == 1, (key, training.output())
