"""Convert label maps in colours into label maps of integers, as training needs them.

    python -m data.convert_labels --input colours/ --output datasets/mine/train_label

The default palette is Cityscapes'; others are --palette voc and --palette FILE (a line "red green
blue" for each class, from class 0 on). If there is no list of the colours, --palette auto numbers
them as they appear and writes the list to OUTPUT/palette.txt, for the test set's maps:

    python -m data.convert_labels --input train/ --output datasets/mine/train_label --palette auto
    python -m data.convert_labels --input test/ --output datasets/mine/test_label \\
        --palette datasets/mine/train_label/palette.txt

JPEG and antialiased maps have colours between the classes': --nearest takes the nearest. PNG files
with a palette whose indices are the classes need --from_indexed. Names and subfolders are kept.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import MAX_CLASSES, is_grey, open_image, read_rgb
from data.input_files import find_inputs
from util.errors import UserError, brief, run
from util.files import lock_folder, make_folder, replacing, write_text
from util.pages.colours import palette
from util.parallel import parallel
from util.parser import Parser, integer
from util.progress import log

PALETTES = {"cityscapes": 35, "voc": 256}  # name -> classes
GREY = "if they are the classes themselves, use the maps as they are (one channel of several)"


def read_palette(name: str) -> np.ndarray:
    """The colour of every class, (classes, 3) uint8: of "cityscapes", "voc", or a file."""
    if name in PALETTES:
        return palette(PALETTES[name])
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--palette {name}: cannot be read ({error}); expected cityscapes, voc, auto or a "
            "text file with a line 'red green blue' for each class"
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) < 3 or not all(w.isdecimal() and int(w) <= 255 for w in words[:3]):
            raise UserError(f"--palette {name}: line {number} is {line!r}, expected 'R G B'")
        rows.append([int(word) for word in words[:3]])
    if not 1 <= len(rows) <= MAX_CLASSES:
        raise UserError(f"--palette {name}: {len(rows)} colours, expected 1 to {MAX_CLASSES}")
    return np.array(rows, np.uint8)


def find_colours(path: Path) -> np.ndarray:
    """The distinct colours of an image in the order in which they appear, (N,) codes."""
    if open_image(path).format == "JPEG":
        raise UserError(
            f"{path}: JPEG has blurred the colours, so they cannot be listed; give the list with "
            "--palette, and --nearest"
        )
    codes, first = np.unique(_codes(np.asarray(read_rgb(path))), return_index=True)
    return codes[np.argsort(first)]


def to_labels(image: np.ndarray, colours: np.ndarray, nearest: bool, path: Path) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) classes: uint8, or uint16 where there are more than 256.

    Of classes with the same colour the first counts. Other colours raise UserError, or with nearest
    get the class of the nearest colour.
    """
    found, places, counts = np.unique(_codes(image), return_inverse=True, return_counts=True)
    known, classes = np.unique(_codes(colours), return_index=True)
    at = np.searchsorted(known, found).clip(max=len(known) - 1)
    labels, strange = classes[at], known[at] != found
    if strange.any() and not nearest:
        unknown = zip(found[strange], counts[strange])
        listed = [f"{_rgb(code).tolist()} ({count} pixels)" for code, count in unknown]
        remedy = "add these to it, or give --nearest to take the nearest"
        if is_grey(image):
            remedy = f"{GREY}; otherwise {remedy}"
        raise UserError(f"{path}: colours that are not in the palette: {brief(listed)}; {remedy}")
    for index in np.flatnonzero(strange):
        distance = ((colours.astype(int) - _rgb(found[index])) ** 2).sum(1)
        labels[index] = distance.argmin()
    dtype = np.uint8 if len(colours) <= 256 else np.uint16
    return labels[places].reshape(image.shape[:2]).astype(dtype)


def _codes(colours: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) one integer for each colour."""
    return (colours.astype(np.int64) * (65536, 256, 1)).sum(-1)


def _rgb(code: int) -> np.ndarray:
    return np.array([code >> 16, code >> 8 & 255, code & 255])


def convert(files: tuple[Path, Path], colours: np.ndarray | None, nearest: bool) -> set[int]:
    """Convert one file to another; returns its classes. colours None: it is indexed."""
    path, target = files
    if colours is not None:
        labels = to_labels(np.asarray(read_rgb(path)), colours, nearest, path)
    else:
        image = open_image(path)
        if image.mode != "P":
            raise UserError(f"{path}: has no palette ({image.mode}); leave --from_indexed out")
        labels = np.asarray(image)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        Image.fromarray(labels).save(temporary, "PNG")
    return set(np.unique(labels).tolist())


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, required=True, help="folder of coloured label maps")
    add("--output", type=Path, required=True, help="folder to write PNG files to")
    add("--palette", help="cityscapes (the default), voc, auto, or a file of colours")
    add("--nearest", action="store_true", help="for inexact colours: JPEG, edges")
    add("--from_indexed", action="store_true", help="the palette's indices are the classes")
    add("--workers", type=integer(0), metavar="N", default=2, help="worker processes; 0: none")
    args = parser.parse_args()
    if not args.input.is_dir():
        raise UserError(f"--input {args.input}: no such folder")
    if args.output.resolve() == args.input.resolve():
        raise UserError("--output: expected a folder other than --input")
    if args.nearest and args.palette == "auto":
        raise UserError("--nearest needs a list of the colours: --palette FILE, cityscapes or voc")
    if args.from_indexed and (args.nearest or args.palette is not None):
        raise UserError("--from_indexed takes the indices, without --palette or --nearest")
    args.palette = args.palette or "cityscapes"
    return args


def main() -> int:
    args = parse_args()
    paths = [*find_inputs("--input", str(args.input), args.output).values()]
    make_folder(args.output, "--output")
    # held while the variable lives: two commands would mix their palettes
    _lock = lock_folder(args.output, "data.convert_labels")
    colours = None
    if not args.from_indexed:
        automatic = args.palette == "auto"
        colours = _list_colours(paths, args) if automatic else read_palette(args.palette)
    targets = [(args.output / path.relative_to(args.input)).with_suffix(".png") for path in paths]
    for target in set(targets).difference(paths):  # if killed, leave no maps of two palettes
        if target.is_file():
            target.unlink()
    work = partial(convert, colours=colours, nearest=args.nearest)
    files = list(zip(paths, targets))
    found = set().union(*parallel(work, files, args.workers, "converting"))
    log(f"{len(paths)} label maps in {args.output}")
    log(f"next: train with {_label_flags(found, None if args.palette == 'voc' else colours)}")
    return 0


def _label_flags(found: set[int], colours: np.ndarray | None) -> str:
    """The flags of training for the classes found; colours None: these determine how many."""
    if colours is not None:
        return f"--label_nc {len(colours)}"
    if 255 in found:  # borders and unlabelled pixels, in VOC and most others
        largest = max(found - {255}, default=0)
        return f"--label_nc {largest + 1} --ignore_label 255 (unless 255 is a class)"
    return f"--label_nc {max(found) + 1}"


def _list_colours(paths: list[Path], args: argparse.Namespace) -> np.ndarray:
    """All colours in order of appearance; they are written to OUTPUT/palette.txt as well."""
    found: dict[int, None] = {}  # an ordered set
    for codes in parallel(find_colours, paths, args.workers, "looking for colours"):
        found |= dict.fromkeys(codes.tolist())
        if len(found) > MAX_CLASSES:
            raise UserError(
                f"--palette auto: more than {MAX_CLASSES} colours in {args.input}: these are not "
                "label maps, or their edges are antialiased; list the colours and give --nearest"
            )
    colours = np.array([_rgb(code) for code in found], np.uint8)
    listing = args.output / "palette.txt"
    write_text(listing, "".join(f"{r} {g} {b}\n" for r, g, b in colours.tolist()))
    log(f"{len(colours)} colours, listed in {listing}")
    if is_grey(colours):
        log(f"all of them are grey: {GREY}")
    if len(colours) > 256:
        log("that is a lot: if the edges are antialiased, list the colours and give --nearest")
    return colours


if __name__ == "__main__":
    run(main)
