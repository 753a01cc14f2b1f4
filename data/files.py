"""Finding and pairing the files of a data set by name, and reading them exactly."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from util.errors import UserError, brief

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # Pillow has others that start programs
MOST_CLASSES = 65536  # what --label_nc takes

# What one scene's files differ by: Cityscapes' endings and the everyday ones.
_ENDING = re.compile(
    r"(_leftImg8bit|_gt(Fine|Coarse)_(labelIds|labelTrainIds|instanceIds|color)"
    r"|[_-](labels?|inst|instances?|img|image|photo|feat|A|B))$"
)


def scene_key(path: Path, folder: Path) -> str:
    """What the files of one scene have in common: the name in its folder without its ending."""
    relative = path.relative_to(folder)
    return (relative.parent / _ENDING.sub("", relative.stem)).as_posix()


def find_folder(root: Path, names: Iterable[str]) -> Path:
    """The first of the named folders under root that exists; UserError names them all."""
    names = list(names)
    if not root.is_dir():
        raise UserError(f"--dataroot {root}: no such folder")
    for name in names:
        if (root / name).is_dir():
            return root / name
    remedy = ""
    if names[0].endswith("_inst"):
        remedy = "; without instance maps give --no_instance"
    elif names[0].startswith("test_"):
        remedy = "; --phase train takes the training scenes"
    raise UserError(f"{root}: holds no folder {' or '.join(names)}{remedy}")


def list_files(folder: Path) -> dict[str, Path]:
    """All pictures below a folder, by scene key, sorted. Two files of one scene are an error."""
    found, problems = scan_folder(folder)
    if problems:
        raise UserError(brief(problems))
    return found


def scan_folder(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """All pictures below a folder, by scene key, sorted; and what is wrong with their names."""
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
            continue
        key = scene_key(path, folder)
        if not path.is_file():
            problems.append(f"{path}: named like a picture but not a file; move it away")
        elif key in found:
            problems.append(
                f"{folder}: {found[key].name} and {path.name} would both be the scene {key!r}; "
                "keep one of them"
            )
        else:
            found[key] = path
    if not found and not problems:
        problems.append(f"{folder}: holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return found, problems


def picture_names(labels: dict[str, Path]) -> dict[str, str]:
    """What test.py calls a scene's pictures: the label map's stem, or, where stems repeat in
    several folders, the scene key. labels: scene key -> label map."""
    stems = {scene: path.stem for scene, path in labels.items()}
    if len(set(stems.values())) == len(stems):
        return stems
    return {scene: scene.replace("/", "__") for scene in labels}


def pairing_problems(files: dict[str, dict[str, Path]]) -> list[str]:
    """One line for each file that a kind lacks or has too many, against the union of all kinds.

    files: kind ("label", "image", ...) -> scene key -> path.
    """
    scenes = sorted(set().union(*files.values()))
    problems = []
    for scene in scenes:
        there = [kind for kind in files if scene in files[kind]]
        missing = [kind for kind in files if scene not in files[kind]]
        problems += [f"no {kind} for the {there[0]} {files[there[0]][scene]}" for kind in missing]
    return problems


def open_image(path: Path) -> Image.Image:
    """Open and decode a picture; UserError names a file that is missing or damaged."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.format == "PNG":
                picture.verify()  # its checksums, which decoding does not look at
        picture = Image.open(path, formats=_FORMATS)
        picture.load()
    except Exception as error:  # damaged files make Pillow raise many kinds
        raise UserError(f"{path}: cannot be read as a picture ({_first_line(error)})") from error
    return picture


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's header tells, without decoding."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return picture.size
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a picture ({_first_line(error)})") from error


def read_rgb(path: Path) -> Image.Image:
    """A photograph (or, with --label_nc 0, a drawing) as an RGB picture."""
    picture = open_image(path)
    if picture.mode[0] in "IF":  # Pillow would cut everything above 255 off
        raise UserError(f"{path}: has more than 8 bits a pixel ({picture.mode}); save it with 8")
    return picture.convert("RGB")


def read_integers(path: Path, what: str) -> Image.Image:
    """A label or instance map as a picture whose pixels are its exact integers.

    Modes L (8-bit) and I (int32) come back; 16-bit and palette files become one of them.
    Raises UserError for colour pictures and lossy files.
    """
    picture = open_image(path)
    if picture.format in ("JPEG", "MPO"):
        raise UserError(f"{path}: a {what} map in JPEG has blurred its integers; save it as PNG")
    if picture.mode == "1":
        return Image.fromarray(np.asarray(picture).astype(np.uint8))
    if picture.mode == "P":  # the palette's indices are the integers
        return Image.fromarray(np.asarray(picture))
    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(picture).astype(np.int32))
    if picture.mode in ("L", "I"):
        return picture
    raise UserError(
        f"{path}: a {what} map must have one integer for each pixel, but this file is "
        f"{picture.mode}; python -m data.convert_labels makes one from colours"
    )


def read_features(path: Path, feat_num: int) -> Image.Image:
    """A feature map of precompute_feature_maps.py: feat_num channels, 1 to 4, 8-bit each."""
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    picture = open_image(path)
    if picture.mode != modes.get(feat_num):
        raise UserError(
            f"{path}: {len(picture.getbands())} features ({picture.mode}), but --feat_num is "
            f"{feat_num}; make it anew with precompute_feature_maps.py"
        )
    return picture


def label_problem(
    label: np.ndarray, path: Path, label_nc: int, ignore_label: int | None
) -> str | None:
    """What is wrong with the values of a label map (H, W), or None."""
    if label.min() >= 0 and label.max() < label_nc:  # the usual case, cheap
        return None
    values, counts = np.unique(label, return_counts=True)
    wrong = ((values < 0) | (values >= label_nc)) & (values != ignore_label)
    if not wrong.any():
        return None
    found = [f"{v} ({n} pixels)" for v, n in zip(values[wrong], counts[wrong])]
    enough = int(values[wrong].max()) + 1
    more = f"give --label_nc {enough}, " if label_nc < enough <= MOST_CLASSES else ""
    return (
        f"{path}: label {brief(found)}, but --label_nc {label_nc} allows 0 to {label_nc - 1}; "
        f"mend the file, {more}or leave such pixels out by --ignore_label"
    )


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
