"""Images of any number of channels and depth, as arrays (H, W, C) exactly as stored in the file.

PNG (8 and 16 bits), TIFF (bands or pages become channels), npy, npz, and the 8-bit formats. TIFF
beyond what Pillow reads needs tifffile, 48-bit PNG needs imagecodecs: requirements-images.txt.
"""

import io
import zipfile
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image

from data.files import ORIENTATION, image_size, is_turned, open_image, png_bits, reading
from data.values import TYPES
from util.errors import UserError, brief, optional_package
from util.files import replacing
from util.pages.colours import save_image

NUMPY = (".npy", ".npz")
TIFF = (".tif", ".tiff")
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, GeoDoubleParams and
# GeoAsciiParams (GeoTIFF 1.1)
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
MAX_NUMBERS = 2**31  # in one file


def read_array(path: Path) -> np.ndarray:
    """An image file as (H, W, C), of a type in data.values.TYPES.

    Raises UserError for files that are damaged, hold numbers of other types, or NaN or infinity.
    """
    array = _read(path)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.name not in TYPES:
        raise UserError(
            f"{path}: numbers of type {array.dtype.name}, expected {', '.join(TYPES)}; save it as "
            "one of these"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise UserError(f"{path}: {count} numbers are NaN or infinite; replace them")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_integer_array(path: Path, what: str) -> np.ndarray:
    """A label or instance map ("label" or "instance") in an npy or npz file: (H, W) int32.

    Instance ids of 2**31 to 2**32 - 1 become the negative number of the same 32 bits.
    """
    array = _read(path)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise UserError(
            f"{path}: an array of shape {array.shape} and type {array.dtype.name}; {what} maps "
            "must have one integer for each pixel"
        )
    low, high = int(array.min()), int(array.max())
    unsigned = what == "instance" and low >= 0
    if low < -(2**31) or high >= (2**32 if unsigned else 2**31):
        raise UserError(f"{path}: {what} values {low} to {high}, beyond 32 bits; renumber them")
    return array.astype(np.int32)


def array_shape(path: Path) -> tuple[int, int, int]:
    """(H, W, C) of a file, from its header where the format has one. Raises UserError."""
    suffix = path.suffix.lower()
    with reading(path):
        if suffix in NUMPY:
            shape = _numpy_shape(path)
        elif suffix in TIFF:
            with _package("tifffile").TiffFile(path) as tiff:
                _, shape, _ = _only_series(tiff, path)
        else:
            with Image.open(path, formats=("PNG", "JPEG", "BMP", "PPM", "WEBP")) as image:
                shape = (image.height, image.width, len(image.getbands()))
    if len(shape) not in (2, 3):
        raise UserError(f"{path}: an array of shape {shape}, expected (H, W) or (H, W, C)")
    if np.prod(shape, dtype=np.int64) > MAX_NUMBERS or min(shape) < 1:
        raise UserError(f"{path}: an image of shape {shape} cannot be held in memory")
    return (*shape, 1) if len(shape) == 2 else shape


def array_size(path: Path) -> tuple[int, int]:
    """(width, height) of a file that read_array reads, by its header. Raises UserError."""
    return array_shape(path)[1::-1]


def file_size(path: Path) -> tuple[int, int]:
    """(width, height) of a file that Pillow or numpy reads, by its header. Raises UserError."""
    return array_size(path) if path.suffix.lower() in NUMPY else image_size(path)


def _read(path: Path) -> np.ndarray:
    """The numbers of a file, (H, W) or (H, W, C)."""
    array_shape(path)  # refuses what does not fit into memory
    suffix = path.suffix.lower()
    with reading(path):
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[arrays.files[0]]
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix in TIFF:
            with _package("tifffile").TiffFile(path) as tiff:
                series, shape, order = _only_series(tiff, path)
                array = series.asarray().transpose(order)
                if changed := _not_samples(tiff.pages[0]):
                    raise UserError(f"{path}: {changed}; convert it")
            return np.ascontiguousarray(array.reshape(shape))
        bits = png_bits(path)
        if bits == 16:
            return _package("imagecodecs").png_decode(path.read_bytes())
        image = open_image(path)  # which refuses what Pillow would change
        if image.mode not in ("L", "LA", "RGB", "RGBA") or bits < 8:
            raise UserError(
                f"{path}: {bits} bits per channel, mode {image.mode}, expected grey or RGB of 8 or "
                "16 bits per channel; save it as that"
            )
        return np.asarray(image)


def _not_samples(page: object) -> str | None:
    """Why the numbers of a TIFF's page are not its pixels' values, if they are not."""
    if page.photometric == 0:
        return "inverted numbers (TIFF's WhiteIsZero)"
    if page.photometric == 3:
        return "a palette, expected the numbers themselves"
    if is_turned(page.tags.valueof(ORIENTATION)):
        return "a rotation in its Orientation tag, expected an upright image"
    if page.bitspersample not in (8, 16, 32, 64):
        return f"{page.bitspersample} bits a channel, expected 8, 16 or 32"
    return None


def _only_series(tiff: object, path: Path) -> tuple[object, tuple[int, ...], list[int]]:
    """A TIFF's only series of images, its shape (H, W, C) with bands or pages as channels, and the
    axis order for that."""
    if len(tiff.series) != 1:
        raise UserError(
            f"{path}: holds {len(tiff.series)} images of different kinds, expected one image or "
            "pages of the same size and type; save the one you need to its own file"
        )
    (series,) = tiff.series
    shape, axes = series.shape, series.axes
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise UserError(f"{path}: a TIFF with axes {axes}, expected height, width and channels")
    rows, columns = axes.index("Y"), axes.index("X")
    others = [axis for axis in range(len(axes)) if axis not in (rows, columns)]
    if len([axis for axis in others if shape[axis] > 1]) > 1:
        raise UserError(f"{path}: has pages of several channels; expected one page, or one channel")
    channels = int(np.prod([shape[axis] for axis in others]))
    return series, (shape[rows], shape[columns], channels), [rows, columns, *others]


def _numpy_shape(path: Path) -> tuple[int, ...]:
    """The shape of the one array in an npy or npz file, by its header."""
    if path.suffix.lower() == ".npy":
        with open(path, "rb") as file:
            return npy_header(file)[0]
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise UserError(f"{path}: holds {len(names)} arrays ({brief(names)}), expected one")
        with archive.open(names[0]) as file:
            return npy_header(file)[0]


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, order (True: Fortran's) and type of an npy file's array; reads up to its data."""
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return read(file)


def geo_tags(path: Path, width: int, height: int) -> list[tuple]:
    """A TIFF's georeference, as tifffile.imwrite takes it (extratags), for an image of the same
    area in this size; [] for other files."""
    if path.suffix.lower() not in TIFF:
        return []
    try:
        with _package("tifffile").TiffFile(path) as tiff:
            page = tiff.pages[0]
            step = page.imagewidth / width, page.imagelength / height
            tags = [tag for code in GEO_TAGS if (tag := page.tags.get(code))]
            values = [_in_steps(tag.code, tag.value, *step) for tag in tags]
            return [(tag.code, tag.dtype, tag.count, v, True) for tag, v in zip(tags, values)]
    except Exception:  # a PNG, a TIFF that only Pillow reads, or damaged tags
        return []


def _in_steps(code: int, value: object, x: float, y: float) -> object:
    """A tag of a georeference (GeoTIFF 1.1) for pixels that are x times as wide and y as high."""
    factors = {
        33550: (x, y, 1),  # pixel scale
        33922: (1 / x, 1 / y, 1, 1, 1, 1),  # tie points
        34264: (x, y, 1, 1) * 4,  # matrix
    }.get(code)
    if factors is None:
        return value
    numbers = np.asarray(value, float).reshape(-1, len(factors)) * factors
    return tuple(numbers.flatten().tolist())


def write_array(array: np.ndarray, path: Path, tags: list[tuple] | None = None) -> None:
    """Write (H, W, C) exactly: .png (uint8, or uint16 with 1 or 3 channels), .tif or .npy; a killed
    process leaves no partial file. tags: what geo_tags returned, for a TIFF."""
    array = np.ascontiguousarray(array)
    plain = array[..., 0] if array.shape[2:] == (1,) else array
    if path.suffix == ".png" and array.dtype == np.uint8:
        save_image(plain, path)
        return
    file = io.BytesIO()  # numpy and tifffile do not always notice a full disk
    with replacing(path) as temporary:
        if path.suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        elif path.suffix == ".tif":
            rgb = array.shape[2] == 3 and array.dtype in (np.uint8, np.uint16)
            _package("tifffile").imwrite(
                file,
                plain,
                photometric="rgb" if rgb else "minisblack",
                planarconfig="contig" if array.shape[2] > 1 else None,
                extratags=tags or (),
                metadata=None,
            )
        else:
            file.write(_package("imagecodecs").png_encode(array))
        temporary.write_bytes(file.getvalue())


def require_packages(ending: str, dtype: str) -> None:
    """Raise UserError if write_array lacks a package for files with this ending and type."""
    if ending == "tif":
        _package("tifffile")
    elif ending == "png" and dtype == "uint16":
        _package("imagecodecs")


def resize_array(array: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """An array scaled to (width, height): (H, W, C) bicubic with antialiasing, or, also (H, W),
    nearest."""
    height, width = array.shape[:2]
    if (width, height) == size:
        return array
    if not smooth:
        return array[_nearest(height, size[1])[:, None], _nearest(width, size[0])]
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    out = np.empty((size[1], size[0], array.shape[2]), np.float32)
    for k in range(array.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(array[..., k], np.float32))
        out[..., k] = np.asarray(plane.resize(size, Image.Resampling.BICUBIC))
    if array.dtype == np.float32:  # the kernel may overshoot the range of the file's numbers
        return out.clip(array.min(), array.max())
    return out.round().clip(*TYPES[array.dtype.name]).astype(array.dtype)


def _nearest(old: int, new: int) -> np.ndarray:
    """For each of new rows the nearest of old ones, rounded like Pillow for all maps alike."""
    rows = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(rows.resize((new, 1), Image.Resampling.NEAREST))[0]


def _package(name: str) -> ModuleType:
    files = {"tifffile": "TIFF", "imagecodecs": "16-bit PNG"}[name]
    return optional_package(name, f"{files} files need", "-r requirements-images.txt")
