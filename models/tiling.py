"""Exact generation in tiles, for images whose feature maps do not fit into memory.

Instance normalization needs the statistics of the whole image: tiles that are generated one by one
differ in colour and show seams. So here all tiles pass through the layers up to a normalization
before any tile continues; their statistics are added up in float64, and the map is normalized when
it is read. Channel normalization has no such statistics, but maps are stored before it as well:
each group of layers then has at most one padding, and reaches only a few pixels beyond a tile.
Tiles are read with as many surrounding pixels as the convolutions reach, and padding is done only
at the borders of the image. The result is that of the network itself, up to rounding.

The maps between these groups of layers are stored whole: in memory, or on disk if they are large.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import GlobalGenerator, LocalEnhancer, ResnetBlock
from models.normalization import ChannelNorm2d
from util.files import writing_to

MAX_IN_MEMORY = 2**28  # bytes of a map; larger ones are kept on disk
POINTWISE = nn.ReLU, nn.Tanh, nn.Dropout, ChannelNorm2d  # layers that see one pixel at a time
CHUNK = 2**18  # elements summed at a time: their float64 copies then stay in the cache

Size = tuple[int, int]  # height and width
Region = tuple[slice, slice]  # rows and columns
Read = Callable[[Region], Tensor]  # a region of a map as (1, C, h, w)


@dataclass(frozen=True)
class Map:
    """A map and the layers that its regions pass through when they are read. source reads regions
    of it before the layers, where it has this size and number of channels."""

    source: Read
    size: Size
    channels: int
    layers: tuple[nn.Module, ...] = ()

    def then(self, layer: nn.Module) -> "Map":
        return replace(self, layers=(*self.layers, layer))

    def read(self, region: Region) -> Tensor:
        """A region of the layers' output."""
        down, up, reach = geometry(self.layers)
        outer, inner, borders = [], [], []
        padding = sum(p.padding[0] for p in self.layers if isinstance(p, nn.ReflectionPad2d))
        for part, length in zip(region, self.size):
            # start at a multiple of the stride, like the layers' steps over the whole map
            start = max(0, (part.start * down // up - reach) // down * down)
            stop = min(length, -(-(-(-part.stop * down // up) + reach) // down) * down)
            outer.append(slice(start, stop))
            offset = start * up // down + (padding if start else 0)
            inner.append(slice(part.start - offset, part.stop - offset))
            borders = [start == 0, stop == length, *borders]  # as F.pad takes them: columns first
        x = self.source(tuple(outer))
        for layer in self.layers:
            if not isinstance(layer, nn.ReflectionPad2d):
                x = layer(x)
            elif any(borders):  # inside the map a region includes its surroundings
                x = F.pad(x, [padding * border for border in borders], mode="reflect")
        return x[(..., *inner)]

    def output_size(self) -> tuple[Size, int]:
        """(H, W) and channels after the layers."""
        down, up, _ = geometry(self.layers)
        counts = [layer.out_channels for layer in self.layers if hasattr(layer, "out_channels")]
        height, width = (length * up // down for length in self.size)
        return (height, width), [self.channels, *counts][-1]


def geometry(layers: Iterable[nn.Module]) -> tuple[int, int, int]:
    """The factors by which layers divide and multiply a map's height and width, and how many pixels
    around its position in their input an output pixel depends on, at most."""
    down = up = 1
    reach = 0
    for layer in reversed(list(layers)):
        if isinstance(layer, nn.ConvTranspose2d):
            reach = -(-reach // layer.stride[0]) + layer.kernel_size[0] - 1
            up *= layer.stride[0]
        elif isinstance(layer, nn.Conv2d):
            reach = reach * layer.stride[0] + layer.kernel_size[0] // 2
            down *= layer.stride[0]
        elif isinstance(layer, nn.AvgPool2d):
            reach = reach * layer.stride + layer.kernel_size // 2
            down *= layer.stride
        elif not isinstance(layer, (nn.ReflectionPad2d, *POINTWISE)):
            raise TypeError(f"{type(layer).__name__}: a layer that tiling does not support")
    return down, up, reach


@dataclass(frozen=True)
class Tiling:
    """Generating in tiles.

    side: height and width of a tile with 64 channels; others have as many bytes. folder: for maps
    on disk; default: the system's for temporary files. These files have no names, so that nothing
    is left of them however the process ends.
    """

    side: int
    folder: Path | None = None

    @torch.inference_mode()
    def generate(self, net: nn.Module, x: Map) -> Tensor:
        """A generator's output for x, a map on the network's device: (1, output_nc, H, W) on the
        CPU. Raises UserError if the maps do not fit on the disk."""
        with writing_to(self.folder or Path(tempfile.gettempdir()), "--tile_dir"):
            return self._compute(self._forward(net, x), in_memory=True).whole()

    def _forward(self, net: nn.Module, x: Map) -> Map:
        """The forward of GlobalGenerator or of LocalEnhancer."""
        if isinstance(net, GlobalGenerator):
            return self._through(net.model, x)
        if not isinstance(net, LocalEnhancer):
            raise TypeError(f"{type(net).__name__}: expected a generator")
        pyramid = [x]
        for _ in range(net.n_local_enhancers):
            pyramid.append(pyramid[-1].then(net.downsample))
        y = self._through(net.model, pyramid.pop())
        for n in range(1, net.n_local_enhancers + 1):
            down, up = getattr(net, f"model{n}_1"), getattr(net, f"model{n}_2")
            y = self._through(up, self._sum(self._through(down, pyramid.pop()), y))
        return y

    def _through(self, layers: Iterable[nn.Module], x: Map) -> Map:
        for layer in layers:
            if isinstance(layer, ResnetBlock):
                x = self._sum(x, self._through(layer.conv_block, x))
            elif isinstance(layer, nn.InstanceNorm2d):
                x = self._normalized(x, layer)
            elif isinstance(layer, ChannelNorm2d):
                x = self._evaluated(x).then(layer)
            else:
                x = x.then(layer)
        return x

    def _sum(self, a: Map, b: Map) -> Map:
        return self._evaluated(Map(lambda at: a.read(at) + b.read(at), *a.output_size()))

    def _evaluated(self, x: Map) -> Map:
        """x with its layers computed and the result stored."""
        stored = self._compute(x)
        return Map(lambda at: stored.read(at).clone(), *x.output_size())

    def _normalized(self, x: Map, norm: nn.InstanceNorm2d) -> Map:
        """x after a normalization: computed and stored before it, normalized when it is read."""
        size, channels = x.output_size()
        sums = torch.zeros(2, channels, dtype=torch.float64)  # of values and of their squares
        stored = self._compute(x, sums)
        mean, squares = sums / math.prod(size)
        scale = (squares - mean.square() + norm.eps).rsqrt()
        offset = torch.zeros_like(mean)
        if norm.weight is not None:
            scale, offset = scale * norm.weight.cpu(), offset + norm.bias.cpu()
        near = mean.to(torch.promote_types(stored.dtype, torch.float32))
        offset -= (mean - near) * scale  # the mean's rounding error
        factors = [v.to(near.dtype)[:, None, None] for v in (near, scale, offset)]

        def read(at: Region) -> Tensor:
            y = stored.read(at)
            mean, scale, offset = (v.to(y.device) for v in factors)
            y = torch.sub(y, mean)
            return torch.addcmul(offset, y, scale, out=y).to(stored.dtype)

        return Map(read, size, channels)

    def _compute(self, x: Map, sums: Tensor | None = None, in_memory: bool = False) -> "Stored":
        """x after its layers. sums (2, C): to add the values and their squares to. in_memory: even
        if it is large."""
        size, channels = x.output_size()
        side = self.side * math.sqrt(64 / max(x.channels, channels))
        stored = None
        for region in tiles(size, max(1, round(side))):
            tile = x.read(region)[0].permute(1, 2, 0)  # (h, w, C)
            if tile.dtype == torch.bfloat16:  # numpy does not have it
                tile = tile.float()
            if stored is None:
                large = math.prod(size) * channels * tile.itemsize > MAX_IN_MEMORY
                stored = Stored((*size, channels), tile, large and not in_memory, self.folder)
            stored.write(region, tile)
            if sums is not None:
                for rows in tile.split(CHUNK // tile[0].numel() + 1):
                    values = rows.double()
                    sums += torch.stack([values.sum((0, 1)), values.square_().sum((0, 1))]).cpu()
        return stored


def tiles(size: Size, side: int) -> Iterator[Region]:
    """Cut a map into tiles of nearly equal size, at most side pixels high and wide."""
    cuts = []
    for length in size:
        count = -(-length // side)
        edges = [length * i // count for i in range(count + 1)]
        cuts.append([slice(a, b) for a, b in pairwise(edges)])
    return product(*cuts)


class Stored:
    """A map (H, W, C) in memory or on disk.

    A file is read and written row by row: pages of a memory-mapped file would count as the
    process's memory, and a full disk would kill the process.
    """

    def __init__(
        self, shape: tuple[int, int, int], like: Tensor, on_disk: bool, folder: Path | None
    ) -> None:
        """like: a tensor of the map's dtype, on the device where regions are read to."""
        self.shape = shape
        self.dtype, self.device = like.dtype, like.device
        self.type = like.cpu().numpy().dtype
        self.file = tempfile.TemporaryFile(dir=folder) if on_disk else None  # noqa: SIM115
        self.array = None if on_disk else np.empty(shape, self.type)

    def write(self, region: Region, tile: Tensor) -> None:
        """tile: (h, w, C)."""
        array = tile.cpu().numpy()
        if self.file is None:
            self.array[region] = array
            return
        for y, row in zip(range(self.shape[0])[region[0]], array):
            self._seek(y, region[1].start)
            self.file.write(np.ascontiguousarray(row))

    def read(self, region: Region) -> Tensor:
        """(1, C, h, w), not to be changed."""
        if self.file is None:
            array = self.array[region]
        else:
            rows, columns = (range(length)[part] for length, part in zip(self.shape, region))
            array = np.empty((len(rows), len(columns), self.shape[2]), self.type)
            for y, row in zip(rows, array):
                self._seek(y, columns.start)
                self.file.readinto(row)
        # channels-last; copied to a GPU before permuted, else the CPU would reorder it for that
        return torch.from_numpy(array)[None].to(self.device).permute(0, 3, 1, 2)

    def whole(self) -> Tensor:
        """A map in memory as (1, C, H, W)."""
        return torch.from_numpy(self.array)[None].permute(0, 3, 1, 2)

    def _seek(self, y: int, x: int) -> None:
        self.file.seek((y * self.shape[1] + x) * self.shape[2] * self.type.itemsize)
