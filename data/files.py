"""Finding and pairing the files of a data set by name, and reading them exactly."""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unicodedata import normalize

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin as Tiff

from util.errors import UserError, brief, first_line, out_of_memory

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}
EXTENSIONS |= {".npy", ".npz"}
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")  # some other formats start programs
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice that size is an error
warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged tags; Pillow raises what matters
for library in "PIL", "tifffile":  # what they log, they raise as well
    logging.getLogger(library).addHandler(logging.NullHandler())
ORIENTATION = 274  # a tag of TIFF and EXIF
MAX_CLASSES = 65536  # what --label_nc takes

# Endings by which the files of one scene differ: Cityscapes' and common ones.
_ENDING = re.compile(
    r"(_leftImg8bit|_gt(Fine|Coarse)_(labelIds|labelTrainIds|instanceIds|color)"
    r"|[_-](labels?|inst|instances?|img|image|photo|feat|cond|depth|disparity|weight|A|B))$"
)


def scene_key(path: Path, folder: Path) -> str:
    """What the files of one scene have in common: the path in the folder without the ending, and
    with accented letters as one character each, which macOS writes as two."""
    relative = path.relative_to(folder)
    return normalize("NFC", (relative.parent / _ENDING.sub("", relative.stem)).as_posix())


def list_files(folder: Path) -> dict[str, Path]:
    """All images below a folder, by scene key, sorted. Two files for one scene are an error."""
    found, problems = scan_folder(folder)
    if problems:
        raise UserError(brief(problems))
    return found


def scan_folder(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """All images below a folder, by scene key, sorted; and what is wrong with their names."""
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(all_below(folder)):
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith("."):
            continue
        key = scene_key(path, folder)
        if not path.is_file():
            problems.append(f"{path}: named like an image but not a file; move it away")
        elif key in found:
            problems.append(
                f"{folder}: {found[key].name} and {path.name} would both be the scene {key!r}, "
                "as endings like _A, _label and .png do not count; rename or remove one of them"
            )
        else:
            found[key] = path
    if not found and not problems:
        problems.append(f"{folder}: holds no images ({', '.join(sorted(EXTENSIONS))})")
    return found, problems


def all_below(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder, following links, but not in hidden folders. Raises
    UserError for a folder that may not be read."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise UserError(f"{error.filename}: {error.strerror}; grant access") from error

    for name, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(name)
        above = (here.resolve(), *here.resolve().parents)
        shown = (one for one in folders if not one.startswith("."))  # no .ipynb_checkpoints
        folders[:] = [one for one in shown if (here / one).resolve() not in above]  # no cycles
        yield from (here / one for one in (*folders, *files))


def image_names(labels: dict[str, Path]) -> dict[str, str]:
    """What test.py calls a scene's images: the label map's stem, or, where stems repeat in
    several folders (in any case: disks may ignore it), the scene key. labels: scene key -> label
    map. Raises UserError if two scenes would have one name."""
    names = {key: path.stem for key, path in labels.items()}
    if len({name.casefold() for name in names.values()}) < len(names):
        names = {key: key.replace("/", "__") for key in labels}
    first: dict[str, Path] = {}
    for key, name in names.items():
        if first.setdefault(name, labels[key]) != labels[key]:
            raise UserError(
                f"{first[name]} and {labels[key]}: their images would both be called {name}; "
                "rename one"
            )
    return names


def pairing_problems(files: dict[str, dict[str, Path]], label_nc: int | str) -> list[str]:
    """One line for each file that a kind lacks, compared with the union of all kinds.

    files: kind ("label", "image", ...) -> scene key -> path.
    """
    problems = []
    files = {shown_kind(kind, label_nc): paths for kind, paths in files.items()}
    for scene in sorted(set().union(*files.values())):
        first = next(kind for kind in files if scene in files[kind])
        missing = [kind for kind in files if scene not in files[kind]]
        problems += [f"no {kind} for the {first} {files[first][scene]}" for kind in missing]
    return problems


def shown_kind(kind: str, label_nc: int | str) -> str:
    """What a kind of files is called: with --label_nc 0, images take the place of labels."""
    return "input" if kind == "label" and label_nc == 0 else kind


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever the libraries raise for a damaged file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {first_line(error)} Crop it, or scale it down") from error
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(f"{path}: cannot be read as an image ({reason}); save it again") from error


def open_image(path: Path) -> Image.Image:
    """Open and decode an image.

    Raises UserError for a file that is missing or damaged, or of which Pillow would return less
    than it holds: one page of several, fewer channels, or rescaled values.
    """
    with reading(path):
        with Image.open(path, formats=_FORMATS) as image:
            if image.format == "PNG":
                image.verify()  # its checksums, which decoding does not check
        image = Image.open(path, formats=_FORMATS)
        if dropped := _dropped_by_pillow(image):
            raise UserError(f"{path}: {dropped}")
        image.load()
    return image


def _dropped_by_pillow(image: Image.Image) -> str | None:
    """What decoding would drop or change, whatever the file's use; by its header alone."""
    pages, read = getattr(image, "n_frames", 1), len(image.getbands())
    if pages > 1:
        return f"has {pages} pages or frames, expected one; save the one you need to its own file"
    if image.format == "TIFF":
        stored = len(image.tag_v2.get(Tiff.BITSPERSAMPLE, (1,)))
        if stored > read:
            return f"has {stored} channels, expected {read}; save it without the others"
        if image.mode == "L" and _is_signed(image):
            return "has signed 8-bit values, which would be read as unsigned; save it as PNG"
        if is_turned(image.tag_v2.get(ORIENTATION)):
            return "has a rotation in its Orientation tag; save it upright"
    if image.format == "PPM":
        codec, _, _, arguments = image.tile[0]
        if codec != "raw" and arguments[-1] != 255:
            return f"has a maximum of {arguments[-1]}, and would be scaled to 255; save it as PNG"
    return None


def is_turned(orientation: object) -> bool:
    """Whether a value of the Orientation tag asks for a turned or mirrored image."""
    return orientation in range(2, 9)  # 1: upright


def _bits(image: Image.Image, path: Path) -> int:
    """Bits per channel in the file: Pillow cuts 16 to 8 in colour, and scales up 2 and 4 to 8."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(Tiff.BITSPERSAMPLE, (1,)))
    return png_bits(path)


def png_bits(path: Path) -> int:
    """Bits per channel of a PNG file: in the IHDR chunk, which always comes first. 8 for other
    files, whatever their names."""
    with open(path, "rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG") else 8


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header, without decoding."""
    with reading(path), Image.open(path, formats=_FORMATS) as image:
        return image.size


def read_rgb(path: Path) -> Image.Image:
    """A photograph (or, with --label_nc 0, an input image) as 8-bit RGB.

    Grey, palette and 1-bit images, and an alpha channel that is 255 everywhere, convert to RGB
    without loss. Raises UserError for what does not: more bits, transparency, CMYK and the like.
    """
    image = open_image(path)
    found = []
    bits = _bits(image, path)
    if bits > 8:
        found.append(f"{bits} bits per channel")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        found.append(f"mode {image.mode}")
    elif image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        found.append(f"transparency (alpha below 255, mode {image.mode})")
    elif image.mode == "P" and image.format == "TIFF" and _has_deep_palette(image):
        found.append("a palette of 16 bits per channel")
    if found:
        raise UserError(
            f"{path}: has {' and '.join(found)}, which 8-bit RGB cannot hold; save it as 8-bit RGB "
            "without alpha"
        )
    return image.convert("RGB")


def read_integers(path: Path, what: str) -> Image.Image:
    """A label or instance map ("label" or "instance") as an image of its exact integers.

    It has mode L (8-bit) or I (int32); fewer bits, 16 bits and palette indices are converted to one
    of them, and instance ids from 2**31 on to the negative number with the same 32 bits (ids are
    only compared). Raises UserError for colour images, lossy files and integers that Pillow would
    change.
    """
    image = open_image(path)
    compression = image.info.get("compression", "") if image.format == "TIFF" else ""
    if image.format == "JPEG" or "jpeg" in compression:
        raise UserError(f"{path}: the {what} map is a JPEG, which blurs integers; save it as PNG")
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        remedy = "python -m data.convert_labels makes one from colours"
        if what == "instance":  # that command numbers the colours of all files, soon too many
            remedy = "number its colours from 0 in each file, and save it as 16-bit PNG"
        if image.mode in ("LA", "RGB", "RGBA") and is_grey(np.asarray(image.convert("RGB"))):
            remedy = "its channels are equal: save one of them, e.g. by Pillow's getchannel(0)"
        raise UserError(
            f"{path}: {what} maps must have one integer for each pixel, but this file is "
            f"{image.mode}; {remedy}"
        )
    changed = _changed_by_pillow(image)
    if not changed and what == "label" and _is_wrapped(image):
        changed = "integers above 2147483647"
    if changed:
        raise UserError(f"{path}: {what} map with {changed}; save it as 8- or 16-bit PNG")
    if image.mode in ("1", "P"):  # a palette's indices are the integers
        return Image.fromarray(np.asarray(image).astype(np.uint8))
    if image.mode == "L":
        scale = 255 // (2 ** _bits(image, path) - 1)  # 85 and 17 for 2 and 4 bits
        return image if scale == 1 else Image.fromarray(np.asarray(image) // scale)
    return image if image.mode == "I" else Image.fromarray(np.asarray(image).astype(np.int32))


def is_grey(colours: np.ndarray) -> bool:
    """Whether all colours (..., 3) have three equal channels."""
    return bool((colours == colours[..., :1]).all())


def read_features(path: Path, feat_num: int) -> Image.Image:
    """A feature map of precompute_feature_maps.py: feat_num channels, 1 to 4, 8-bit each."""
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    image = open_image(path)
    bits, changed = _bits(image, path), _changed_by_pillow(image)
    if image.mode != modes.get(feat_num):
        problem = f"{len(image.getbands())} features ({image.mode}), but --feat_num is {feat_num}"
    elif bits != 8:
        problem = f"features of {bits} bits, expected 8"
    elif changed:
        problem = f"a feature map with {changed}"
    else:
        return image
    raise UserError(f"{path}: {problem}; create it again with precompute_feature_maps.py")


def _is_signed(image: Image.Image) -> bool:
    return image.tag_v2.get(Tiff.SAMPLEFORMAT, (1,))[0] == 2


def _has_deep_palette(image: Image.Image) -> bool:
    """Whether a TIFF's palette uses more than the upper 8 of its 16 bits, all that Pillow keeps."""
    return any(value % 256 and value % 257 for value in image.tag_v2[Tiff.COLORMAP])


def _changed_by_pillow(image: Image.Image) -> str | None:
    """How the values of a decoded map differ from those in the file, if they do."""
    if image.format == "PPM" and image.mode == "1":
        return "1 for black (PBM), which would be read as 0"
    if image.format != "TIFF":
        return None
    if image.tag_v2.get(Tiff.PHOTOMETRIC_INTERPRETATION) == 0 and image.mode != "P":
        return "inverted values (TIFF's WhiteIsZero)"
    if 1 in image.tag_v2.get(Tiff.EXTRASAMPLES, ()):
        return "premultiplied alpha"
    return None


def _is_wrapped(image: Image.Image) -> bool:
    """Whether unsigned integers from 2**31 on became negative ones."""
    unsigned = image.format == "TIFF" and image.mode == "I" and not _is_signed(image)
    return unsigned and image.getextrema()[0] < 0


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
    remedies = ["fix the file"]
    if label_nc < enough <= MAX_CLASSES:
        remedies.append(f"give --label_nc {enough} (of a run: from its start)")
    if ignore_label is None and (len(found) == 1 or 255 in values[wrong]):
        ignored = values[wrong][0] if len(found) == 1 else 255
        remedies.append(f"leave the pixels of {ignored} out with --ignore_label {ignored}")
    return (
        f"{path}: label {brief(found)}, but --label_nc {label_nc} allows 0 to {label_nc - 1}; "
        f"{', or '.join(remedies)}"
    )
