"""--cache: keeping the scaled, uncropped maps of scenes, in memory or on disk, between epochs.

Decoding and resizing large PNGs takes most of the loading time and gives the same arrays in every
epoch. A cache keeps these arrays as raw bytes, and returns exactly what scaled_maps would read.
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.aligned_dataset import AlignedDataset
from data.shared_memory import SharedMemory
from util.errors import UserError
from util.files import make_folder, remove_abandoned, replacing, writing_to

Maps = dict[str, np.ndarray]
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]  # kind -> (dtype, shape)

FORMAT = 2  # part of every digest: increase it when the arrays of scaled_maps change
FLAG = "--cache (ram or none)"  # what to change if a disk is full or not writable


def create_cache(where: str, scenes: AlignedDataset, folder: Path) -> Callable[[int], Maps]:
    """A function from index to maps that reads a scene once: where is "none", "ram" or "disk".

    folder: where "disk" keeps its files. Raises UserError if there is not enough space.
    """
    if where == "none":
        return scenes.scaled_maps
    return RamCache(scenes) if where == "ram" else DiskCache(scenes, folder)


class Cache:
    """Calls read(index, digest, size) for a scene's bytes and, if that returns None as they are
    missing or have another digest, write(index, digest, bytes)."""

    def __init__(self, scenes: AlignedDataset) -> None:
        self.scenes = scenes

    def __call__(self, index: int) -> Maps:
        layout = self.scenes.layout(index)
        digest = _digest(self.scenes, index)
        payload = self.read(index, digest, _size(layout))
        if payload is not None:
            return _unpack(payload, layout)
        maps = self.scenes.scaled_maps(index)
        self.write(index, digest, _pack(maps, layout))
        return maps


class RamCache(Cache):
    """Maps in memory that all processes of this machine share (data.shared_memory). It is allocated
    at once, so that a shortage shows before training."""

    def __init__(self, scenes: AlignedDataset) -> None:
        super().__init__(scenes)
        ends = np.cumsum([_size(scenes.layout(index)) for index in range(len(scenes))])
        self.starts = [0, *ends.tolist()]
        needed, available = self.starts[-1], _physical_memory()
        try:
            if needed > available:
                raise OSError
            # at its end the digest of each scene, written last; zeros: not stored yet
            self.memory = SharedMemory(needed + 32 * len(scenes))
        except OSError as error:
            raise UserError(
                f"--cache ram needs {needed / 1e9:.1f} GB, and this machine has "
                f"{available / 1e9:.1f}: use --cache disk or none"
            ) from error

    def _places(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the bytes and the digest of a scene are."""
        memory = self.memory.array()
        start, end = self.starts[index : index + 2]
        return memory[start:end], memory[self.starts[-1] + 32 * index :][:32]

    def read(self, index: int, digest: bytes, size: int) -> np.ndarray | None:
        payload, held = self._places(index)
        return payload if held.tobytes() == digest else None

    def write(self, index: int, digest: bytes, payload: np.ndarray) -> None:
        place, held = self._places(index)
        place[:] = payload
        held[:] = np.frombuffer(digest, np.uint8)


class DiskCache(Cache):
    """Maps in one file for each scene, memory-mapped: shared by workers, processes and runs.

    A file holds a digest of its sources (name, time, size) and of the flags that matter, a
    checksum, and the arrays. It is written again if it is outdated, truncated or damaged. Files
    appear whole or not at all. The folder may be deleted whenever no command uses it.
    """

    HEADER = 64  # bytes: digest 32, checksum 4, zeros

    def __init__(self, scenes: AlignedDataset, folder: Path) -> None:
        super().__init__(scenes)
        self.folder = folder
        self.checked: set[Path] = set()  # whose checksum this process has verified
        make_folder(folder, FLAG)
        remove_abandoned(folder)

    def _path(self, index: int) -> Path:
        """One file for each way of reading a scene, so that runs with other flags keep theirs."""
        names = {kind: str(path) for kind, path in self.scenes.sources(index).items()}
        return self.folder / hashlib.sha256(_text([names, self.scenes.settings(index)])).hexdigest()

    def read(self, index: int, digest: bytes, size: int) -> np.ndarray | None:
        path = self._path(index)
        try:
            content = np.memmap(path, np.uint8, mode="r")
        except (FileNotFoundError, ValueError):  # ValueError: an empty file
            return None
        except OSError as error:
            raise UserError(
                f"--cache disk: {path} cannot be read ({error.strerror}); delete {self.folder}"
            ) from error
        if len(content) != self.HEADER + size or content[:32].tobytes() != digest:
            return None
        payload = content[self.HEADER :]
        if path not in self.checked:
            if _checksum(payload) != content[32:36].tobytes():
                return None
            self.checked.add(path)
        return payload

    def write(self, index: int, digest: bytes, payload: np.ndarray) -> None:
        path = self._path(index)
        header = (digest + _checksum(payload)).ljust(self.HEADER, b"\0")
        with writing_to(self.folder, FLAG), replacing(path) as new, open(new, "wb") as file:
            file.write(header)
            file.write(payload)
        self.checked.discard(path)


def _digest(scenes: AlignedDataset, index: int) -> bytes:
    """32 bytes that change whenever scaled_maps(index) may: a hash of sources, flags and FORMAT."""
    sources = {}
    for kind, path in scenes.sources(index).items():
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        # the modification time can be set (cp -p), but not the inode's change time
        sources[kind] = [str(path), status.st_mtime_ns, status.st_ctime_ns, status.st_size]
    return hashlib.sha256(_text([FORMAT, sources, scenes.settings(index)])).digest()


def _text(values: object) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def _checksum(payload: np.ndarray) -> bytes:
    return zlib.crc32(payload).to_bytes(4, "little")


def _size(layout: Layout) -> int:
    """The bytes of a scene's maps, rounded up so that those of the next scene are aligned too."""
    needed = sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout.values())
    return -(-needed // 64) * 64


def _pack(maps: Maps, layout: Layout) -> np.ndarray:
    """The maps' bytes, concatenated: uint8 (size,)."""
    payload = np.zeros(_size(layout), np.uint8)
    for kind, array in _unpack(payload, layout).items():
        array[...] = maps[kind]
    return payload


def _unpack(payload: np.ndarray, layout: Layout) -> Maps:
    """The maps as views of their bytes: wide types come first there, so that all are aligned."""
    maps, start = {}, 0
    for kind in sorted(layout, key=lambda kind: (-layout[kind][0].itemsize, kind)):
        dtype, shape = layout[kind]
        maps[kind] = np.ndarray(shape, dtype, payload, start)
        start += maps[kind].nbytes
    return {kind: maps[kind] for kind in layout}


def _physical_memory() -> float:
    """This machine's memory in bytes; infinite if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")
