"""PNG and TIFF files written byte by byte, of kinds that Pillow reads but cannot write."""

import struct
import zlib

import numpy as np


def png(array: np.ndarray, bits: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of an array (H, W) or (H, W, C). colour: 0 grey, 2 RGB, 3 palette, 4 LA, 6 RGBA.

    chunks: (name, content) between header and pixels.
    """
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in array)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, chunk in (
        *((b"IHDR", header), *chunks),
        *((b"IDAT", zlib.compress(rows)), (b"IEND", b"")),
    ):
        content += struct.pack(">I", len(chunk)) + name + chunk
        content += struct.pack(">I", zlib.crc32(name + chunk))
    return content


def tiff(
    array: np.ndarray,
    bits: int,
    photometric: int,
    *,
    extra: tuple[int, ...] = (),
    sample_format: int = 1,
    palette: list[int] | None = None,
) -> bytes:
    """An uncompressed little-endian TIFF of an array (H, W) or (H, W, C).

    photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK. extra: what the
    channels beyond the colours are (0 unspecified, 1 premultiplied, 2 plain alpha).
    sample_format: 1 unsigned, 2 signed, 3 float.
    """
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    pixels = b"".join(packed(row, bits, "<") for row in array)
    short, long = "H", "I"
    tags = [
        *((256, long, [width]), (257, long, [height]), (258, short, [bits] * channels)),
        *((259, short, [1]), (262, short, [photometric]), (273, long, [8])),
        *((277, short, [channels]), (278, long, [height]), (279, long, [len(pixels)])),
        *([(320, short, palette)] if palette else []),
        *([(338, short, extra)] if extra else []),
        (339, short, [sample_format] * channels),
    ]
    pixels += bytes(len(pixels) % 2)
    directory, entries, values = 8 + len(pixels), b"", b""
    after = directory + 2 + 12 * len(tags) + 4
    for tag, code, numbers in tags:
        content = struct.pack(f"<{len(numbers)}{code}", *numbers)
        if len(content) > 4:
            offset, values = after + len(values), values + content
            content = struct.pack("<I", offset)
        kind = {short: 3, long: 4}[code]
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", directory)
    return head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def packed(row: np.ndarray, bits: int, order: str) -> bytes:
    """The samples of a row, padded to whole bytes. order: byte order, "<" or ">"."""
    if bits >= 8:
        return row.astype(row.dtype.newbyteorder(order)).tobytes()
    each = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(each.reshape(-1)).tobytes()
