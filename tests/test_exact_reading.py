"""Images of every kind are read exactly or refused in one line, in every role.

Each file holds known numbers, written byte by byte or losslessly by Pillow; what must come back is
computed from these numbers with numpy.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, save_png
from crafted_images import png, tiff
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.check import check
from data.convert_labels import main as convert_main
from data.files import read_features, read_integers, read_rgb
from options.train_options import TrainOptions
from util.errors import UserError

SIZE = (6, 8)  # height, width
rng = np.random.default_rng(0)


def numbers(most: int, channels: int = 0, dtype: type = np.uint8) -> np.ndarray:
    shape = (*SIZE, channels) if channels else SIZE
    return rng.integers(0, most, shape, endpoint=True).astype(dtype)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def opaque(colours: np.ndarray) -> np.ndarray:
    return np.concatenate([colours, np.full((*SIZE, 1), 255, np.uint8)], 2)


GREY, COLOUR, FOUR, TWO = numbers(255), numbers(255, 3), numbers(255, 4), numbers(255, 2)
BITS, CRUMBS, NIBBLES = numbers(1), numbers(3), numbers(15)
DEEP, DEEP_COLOUR = numbers(65535, 0, np.uint16), numbers(65535, 3, np.uint16)
SIGNED = numbers(60000, 0, np.int32) - 30000
WIDE = SIGNED * 70_000  # 32-bit ids, also negative
FLOATS = rng.random(SIZE).astype(np.float32)
PALETTE = numbers(255, 3).reshape(-1, 3)[:16]
PLTE = b"PLTE", PALETTE.tobytes()
COLORMAP = (PALETTE.T.astype(int) * 257).reshape(-1).tolist()  # 16 entries of 4 bits
INDICES = Image.fromarray(NIBBLES)
INDICES.putpalette(PALETTE.tobytes())
GREY_JPEG = saved(Image.new("L", (8, 6), 77), "JPEG")
PAGES = [Image.fromarray(np.roll(COLOUR, i, 1)) for i in range(6)]
MAP_PAGES = [Image.fromarray(np.roll(GREY, i, 1)) for i in range(6)]
ANIMATED = {"save_all": True, "append_images": PAGES[1:]}

DEPTH, ALPHA, ONE, CHANNELS = "bits per channel", "alpha", "one integer", "channels"
MODE, JPEG, PAGE, BITS_8 = "mode", "JPEG", "pages", "bits, expected 8"
FEATURES = "--feat_num is 3"

# name: (suffix, content, as a photograph, as a map of integers, as features); each of the last
# three is the numbers expected back, or a part of the error message; a tuple puts a --feat_num
# other than 3 before it; None: not tested
CASES = {
    # more than 8 bits
    "48-bit PNG": (".png", png(DEEP_COLOUR, 16, 2), DEPTH, ONE, BITS_8),
    "48-bit TIFF": (".tif", tiff(DEEP_COLOUR, 16, 2), DEPTH, ONE, BITS_8),
    "64-bit RGBA PNG": (".png", png(numbers(65535, 4, np.uint16), 16, 6), DEPTH, ONE, (4, BITS_8)),
    "32-bit LA PNG": (".png", png(numbers(65535, 2, np.uint16), 16, 4), DEPTH, ONE, FEATURES),
    "16-bit grey PNG": (".png", png(DEEP, 16, 0), DEPTH, DEEP, FEATURES),
    "16-bit grey TIFF": (".tif", tiff(DEEP, 16, 1), DEPTH, DEEP, FEATURES),
    "signed 16-bit TIFF": (
        *(".tif", tiff(SIGNED.astype(np.int16), 16, 1, sample_format=2)),
        *(DEPTH, SIGNED, FEATURES),
    ),
    "32-bit TIFF": (".tif", tiff(WIDE, 32, 1, sample_format=2), DEPTH, WIDE, FEATURES),
    "unsigned 32-bit TIFF": (
        *(".tif", tiff(np.full(SIZE, 3_000_000_000, np.uint32), 32, 1)),
        *(DEPTH, {"label": "above 2147483647", "instance": np.full(SIZE, -1294967296)}, FEATURES),
    ),
    "float TIFF": (".tif", tiff(FLOATS, 32, 1, sample_format=3), DEPTH, ONE, FEATURES),
    "12-bit JPEG": (
        *(".jpg", GREY_JPEG.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc0\0\x0b\x0c")),
        *("cannot be read", "cannot be read", "cannot be read"),
    ),
    "16-bit PPM": (
        *(".ppm", b"P6 8 6 65535\n" + DEEP_COLOUR.astype(">u2").tobytes()),
        *("maximum of 65535", "maximum", "maximum"),
    ),
    # fewer than 8 bits: grey levels for a photograph, integers for a map
    "1-bit PNG": (".png", png(BITS, 1, 0), rgb(BITS * 255), BITS, FEATURES),
    "2-bit PNG": (".png", png(CRUMBS, 2, 0), rgb(CRUMBS * 85), CRUMBS, (1, "2 bits")),
    "4-bit PNG": (".png", png(NIBBLES, 4, 0), rgb(NIBBLES * 17), NIBBLES, (1, "4 bits")),
    "1-bit TIFF": (".tif", tiff(BITS, 1, 1), rgb(BITS * 255), BITS, FEATURES),
    "4-bit TIFF": (".tif", tiff(NIBBLES, 4, 1), rgb(NIBBLES * 17), NIBBLES, (1, "4 bits")),
    "1-bit PBM": (
        *(".ppm", b"P4 8 6\n" + np.packbits(BITS).tobytes()),
        *(rgb(255 - BITS * 255), "read as 0", FEATURES),
    ),
    "PGM up to 100": (
        *(".ppm", b"P5 8 6 100\n" + (GREY // 3).tobytes()),
        *("maximum of 100", "maximum", "maximum"),
    ),
    # more channels and alpha
    "4 bands TIFF": (".tif", tiff(FOUR, 8, 2, extra=(0,)), CHANNELS, CHANNELS, CHANNELS),
    "4 bands TIFF, undeclared": (".tif", tiff(FOUR, 8, 2), ALPHA, ONE, FOUR),
    "5 bands TIFF": (".tif", tiff(numbers(255, 5), 8, 2, extra=(0, 0)), *[CHANNELS] * 3),
    "RGBA PNG": (".png", png(FOUR, 8, 6), ALPHA, ONE, FOUR),
    "RGBA TIFF": (".tif", tiff(FOUR, 8, 2, extra=(2,)), ALPHA, ONE, FOUR),
    "premultiplied TIFF": (".tif", tiff(FOUR, 8, 2, extra=(1,)), ALPHA, ONE, (4, "premultiplied")),
    "RGBA WebP": (
        *(".webp", saved(Image.fromarray(FOUR), "WEBP", lossless=True, exact=True)),
        *(ALPHA, ONE, FOUR),
    ),
    "opaque PNG": (".png", png(opaque(COLOUR), 8, 6), COLOUR, ONE, opaque(COLOUR)),
    "opaque LA PNG": (".png", png(opaque(GREY[..., None]), 8, 4), rgb(GREY), ONE, FEATURES),
    "LA PNG": (".png", png(TWO, 8, 4), ALPHA, ONE, TWO),
    "LA TIFF": (".tif", tiff(TWO, 8, 1, extra=(2,)), ALPHA, ONE, TWO),
    "transparent grey": (
        *(".png", png(GREY, 8, 0, (b"tRNS", bytes([0, GREY[0, 0]])))),
        *(ALPHA, GREY, GREY),
    ),
    "transparent colour": (
        *(".png", png(COLOUR, 8, 2, (b"tRNS", COLOUR[0, 0].astype(">u2").tobytes()))),
        *(ALPHA, ONE, COLOUR),
    ),
    "transparent palette": (
        *(".png", png(NIBBLES, 4, 3, PLTE, (b"tRNS", bytes(16)))),
        *(ALPHA, NIBBLES, FEATURES),
    ),
    # pages
    "TIFF of 6 pages": (".tif", saved(PAGES[0], "TIFF", **ANIMATED), PAGE, PAGE, PAGE),
    "PNG of 6 frames": (".png", saved(PAGES[0], "PNG", **ANIMATED), PAGE, PAGE, PAGE),
    "WebP of 6 frames": (".webp", saved(PAGES[0], "WEBP", **ANIMATED), PAGE, PAGE, PAGE),
    "JPEG of 6 images": (".jpg", saved(PAGES[0], "MPO", **ANIMATED), PAGE, PAGE, PAGE),
    "maps on 6 pages": (
        *(".tif", saved(MAP_PAGES[0], "TIFF", save_all=True, append_images=MAP_PAGES[1:])),
        *(PAGE, PAGE, PAGE),
    ),
    # colour models
    "CMYK JPEG": (".jpg", saved(Image.fromarray(FOUR, "CMYK"), "JPEG"), MODE, JPEG, FEATURES),
    "CMYK TIFF": (".tif", tiff(FOUR, 8, 5), MODE, ONE, FEATURES),
    "palette PNG": (".png", png(NIBBLES, 4, 3, PLTE), PALETTE[NIBBLES], NIBBLES, FEATURES),
    "palette TIFF": (
        *(".tif", tiff(NIBBLES, 4, 3, palette=COLORMAP)),
        *(PALETTE[NIBBLES], NIBBLES, FEATURES),
    ),
    "deep palette TIFF": (
        *(".tif", tiff(NIBBLES, 4, 3, palette=[1000] * 48)),
        *("palette of 16 bits", NIBBLES, FEATURES),
    ),
    "palette BMP": (".bmp", saved(INDICES, "BMP"), PALETTE[NIBBLES], NIBBLES, FEATURES),
    "white is zero TIFF": (
        ".tif",
        tiff(GREY, 8, 0),
        rgb(255 - GREY),
        "WhiteIsZero",
        (1, "WhiteIsZero"),
    ),
    "signed 8-bit TIFF": (
        *(".tif", tiff(GREY.view(np.int8), 8, 1, sample_format=2)),
        *("signed", "signed", "signed"),
    ),
    # everyday files
    "grey PNG": (".png", png(GREY, 8, 0), rgb(GREY), GREY, GREY),
    "RGB PNG": (".png", png(COLOUR, 8, 2), COLOUR, ONE, COLOUR),
    "RGB TIFF": (".tif", tiff(COLOUR, 8, 2), COLOUR, ONE, COLOUR),
    "lossless WebP": (
        *(".webp", saved(Image.fromarray(COLOUR), "WEBP", lossless=True)),
        *(COLOUR, ONE, COLOUR),
    ),
    "grey JPEG": (
        ".jpg",
        saved(Image.new("L", (8, 6), 77), "JPEG"),
        rgb(GREY * 0 + 77),
        JPEG,
        None,
    ),
    "grey JPEG in TIFF": (
        *(".tif", saved(Image.new("L", (8, 6), 77), "TIFF", compression="jpeg")),
        *(rgb(GREY * 0 + 77), JPEG, None),
    ),
}
READERS = {
    "photograph": lambda path, _: read_rgb(path),
    "label": lambda path, _: read_integers(path, "label"),
    "instance": lambda path, _: read_integers(path, "instance"),
    "features": read_features,
}


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("name", CASES)
def test_read_exactly_or_refused(name: str, role: str, tmp_path: Path) -> None:
    suffix, content, photograph, integers, features = CASES[name]
    expected = {"photograph": photograph, "features": features}.get(role, integers)
    expected = expected[role] if isinstance(expected, dict) else expected
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    if expected is None:
        return
    feat_num = 3
    if isinstance(expected, tuple):
        feat_num, expected = expected
    if isinstance(expected, np.ndarray):
        feat_num = expected.shape[2] if expected.ndim == 3 else 1
        got = np.asarray(READERS[role](path, feat_num))
        assert got.shape == expected.shape and np.array_equal(got, expected)
        return
    with pytest.raises(UserError) as error:
        READERS[role](path, feat_num)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and expected in message
    remedies = "save it", "save the one", "save one of", "create it", "makes one"
    assert any(remedy in message for remedy in remedies)


# in training and data.check ---------------------------------------------------------------------


def scene(root: Path, stem: str, **damaged: str) -> dict[str, Path]:
    """A scene of all four kinds; damaged: kind -> the case that replaces its file."""
    folders = {"label": "train_label", "inst": "train_inst", "image": "train_img"}
    folders["feat"] = "train_feat"
    whole = {"label": BITS, "inst": DEEP, "image": COLOUR, "feat": COLOUR}
    paths = {}
    for kind, folder in folders.items():
        paths[kind] = root / folder / f"{stem}.png"
        if kind in damaged:
            suffix, content, *_ = CASES[damaged[kind]]
            paths[kind] = paths[kind].with_suffix(suffix)
            paths[kind].parent.mkdir(exist_ok=True, parents=True)
            paths[kind].write_bytes(content)
        else:
            save_png(paths[kind], whole[kind])
    return paths


DAMAGED = [
    {"image": "48-bit PNG", "label": "4 bands TIFF"},
    {"image": "TIFF of 6 pages", "inst": "RGBA PNG"},
    {"label": "maps on 6 pages", "feat": "48-bit TIFF"},
    {"label": "unsigned 32-bit TIFF", "image": "CMYK JPEG"},
    {"image": "RGBA WebP", "feat": "PNG of 6 frames"},
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=str)
def test_training_refuses_in_one_line(damaged: dict[str, str], tmp_path: Path) -> None:
    for kind, case in damaged.items():
        paths = scene(tmp_path / kind, "a", **{kind: case})
        geometry = Geometry("none")
        item = AlignedDataset(tmp_path / kind, "train", 35, geometry, load_features=True)[0]
        assert isinstance(item, UserError) and str(paths[kind]) in str(item)
        assert "\n" not in str(item)


def test_check_reports_every_such_file(tmp_path: Path) -> None:
    bad = []
    for index, damaged in enumerate(DAMAGED):
        paths = scene(tmp_path, f"scene{index}", **damaged)
        bad += [paths[kind] for kind in damaged]
    flags = [*TINY, "--dataroot", str(tmp_path), "--load_features", "--label_feat"]
    found = check(TrainOptions().parse([*flags, "--resize_or_crop", "none"])).problems
    for path in bad:
        assert any(problem.startswith(f"{path}: ") for problem in found), (path, found)


def test_exact_values_reach_the_items(tmp_path: Path) -> None:
    cases = {"image": "palette PNG", "label": "4-bit PNG", "inst": "32-bit TIFF"}
    scene(tmp_path, "a", **cases)
    item = AlignedDataset(tmp_path, "train", 35, Geometry("none"))[0]
    assert np.array_equal(item["label"][0], NIBBLES) and np.array_equal(item["inst"][0], WIDE)
    image = (item["image"].numpy().transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(image - PALETTE[NIBBLES]).max() < 1e-3


def test_convert_labels_refuses_images_that_lose_colours(tmp_path: Path, refused) -> None:
    for name in ("48-bit PNG", "RGBA PNG", "TIFF of 6 pages"):
        suffix, content, *_ = CASES[name]
        source = tmp_path / name
        source.mkdir()
        (source / f"x{suffix}").write_bytes(content)
        flags = ["--input", source, "--output", tmp_path / "out", "--workers", 0]
        assert f"x{suffix}: has" in refused(convert_main, *flags, "--nearest")
        assert not list((tmp_path / "out").glob("x*"))
