"""A scene and the image that a trained generator makes of it, for a user who edits objects."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from models.edit_checks import integer
from models.inference_model import InferenceModel, to_pictures
from models.instance_maps import pad_to_multiple
from models.masks import stroke
from models.scene import EDITS, Scene, Selection, shape_rows
from models.styles import Styles, paint
from util.errors import UserError, out_of_memory
from util.pages.colours import label_picture

__all__ = ["EDITS", "Scene", "Selection", "UIModel", "shape_rows"]

# Device memory of one batch of previews, inputs and activations. As many images are generated at
# once as fit into it by bytes_per_pixel, at least one.
PREVIEW_BYTES = 2 << 30


class UIModel(Scene):
    """A Scene with networks: picture() generates its image, previews() other styles of an object.

    open() takes the maps, select() finds the instance at a pixel; the edits are those of Scene.
    Only integer maps, features and the last image are kept; the generator's input is built when
    an image is generated, one at a time for all scenes that share the networks (see another).
    A scene itself must not be used by two threads at once. Running out of memory is a UserError.

    generated   how many times the image was generated
    last_picture    the last one; older than the scene if generating failed since; None at first
    """

    def __init__(
        self,
        networks: InferenceModel,
        styles: Styles | None = None,
        lock: "threading.Lock | None" = None,
    ) -> None:
        """styles: those to choose from. Raises UserError for a model of RGB inputs."""
        if networks.opt.label_nc == 0:
            raise UserError("--label_nc 0: the editor needs a model of label maps, not of images")
        super().__init__(networks.opt, styles)
        self.networks = networks
        self.generated = 0
        self.last_picture: np.ndarray | None = None
        self._picture_version = 0
        self._lock = lock or threading.Lock()

    def another(self) -> "UIModel":
        """A model for another scene, on the same networks."""
        return UIModel(self.networks, self.styles, self._lock)

    def picture(self) -> np.ndarray:
        """The image of the scene, (H, W, 3) uint8; generated again only after a change."""
        if self._picture_version != self.version:
            with self._network():
                self.last_picture = self._generate(self._input())[0]
            self._picture_version = self.version
            self.generated += 1
        return self.last_picture

    def label_picture(self) -> np.ndarray:
        """The label map in its classes' colours, (H, W, 3) uint8."""
        label = torch.from_numpy(self.label)[None]
        return label_picture(label, self._opt.label_nc, self._opt.ignore_label)

    def previews(self, instance: int, features: np.ndarray) -> np.ndarray:
        """The image with an instance in other styles: (K, feat_num) -> (K, H, W, 3) uint8.

        Generated in batches that fit into PREVIEW_BYTES.
        """
        mask = self.regions == self._region(self.selection(instance))
        vectors = torch.from_numpy(np.array(features, np.float32))
        pictures = np.empty((len(vectors), *self.shape, 3), np.uint8)
        with self._network():
            size = self._images_at_once()
        for start in range(0, len(vectors), size):
            with self._network():  # other scenes get their turn in between
                x = self._input()
                where = self._padded(mask).to(x.device)
                chunk = vectors[start : start + size].to(x)[:, :, None, None]
                if len(chunk) > 1:
                    x = x.repeat(len(chunk), 1, 1, 1)
                styled = x[:, -self._opt.feat_num :]  # (K, feat_num, H, W)
                styled.copy_(torch.where(where, chunk, styled))
                pictures[start : start + size] = self._generate(x)
                del x, styled
        return pictures

    def photo_feature(
        self, photo: np.ndarray, y: int, x: int, inst: np.ndarray | None = None
    ) -> np.ndarray:
        """The style of what a photograph shows at a pixel, (feat_num,) float32, by the encoder.

        photo (H, W, 3) uint8; inst (H, W) its instances, else a disc around the pixel counts as
        one, its radius a sixteenth of the height.
        """
        height, width = photo.shape[:2]
        y, x = integer(y, "y", 0, height - 1), integer(x, "x", 0, width - 1)
        if inst is None:
            inst = stroke([(y, x)], max(1, height // 16), (height, width))
        return self._encode(photo, inst == inst[y, x])[:, y, x]

    def photo_features(self, photo: np.ndarray) -> dict[int, np.ndarray]:
        """The style of every region of the scene as it was opened, from its photograph.

        photo (H, W, 3) uint8, of the scene's size. For set_styles.
        """
        label, inst, _ = self.first
        regions = label if self._opt.label_feat else inst
        features = self._encode(photo, regions)
        ids, first = np.unique(regions, return_index=True)
        vectors = features.reshape(len(features), -1)[:, first].T
        return dict(zip(ids.tolist(), vectors))

    # -- the networks ------------------------------------------------------------------------

    @contextmanager
    def _network(self) -> Iterator[None]:
        """One scene at a time; running out of memory becomes a UserError."""
        with self._lock, torch.no_grad():
            try:
                yield
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                height, width = self.shape
                raise UserError(
                    f"out of memory on {self.networks.device} with an image of {width}x{height}: "
                    "end other programs there, or open smaller maps (--loadSize)"
                ) from None

    def _input(self) -> Tensor:
        """What the generator sees of the scene: (1, C, H, W), padded, on the device."""
        maps = (torch.from_numpy(m.astype(np.int32))[None, None] for m in (self.label, self.inst))
        feat = None
        if self.has_features:
            feat = torch.from_numpy(paint(self.regions, self.features, self._opt.feat_num))[None]
        return self.networks.generator_input(*maps, feat)

    def _padded(self, array: np.ndarray) -> Tensor:
        """(H, W) -> (1, 1, H, W), padded like the generator's input."""
        maps = torch.from_numpy(array)[None, None]
        return pad_to_multiple(maps, self.networks.multiple, self.networks.least)

    def _generate(self, x: Tensor) -> np.ndarray:
        height, width = self.shape
        return to_pictures(self.networks.run_generator(x)[..., :height, :width])

    def _encode(self, photo: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """(feat_num, H, W)"""
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        ids = torch.from_numpy(regions.astype(np.int32))[None, None]
        with self._network():
            return self.networks.encode(image, ids)[0].cpu().numpy()

    def _images_at_once(self) -> int:
        """How many images of the scene's size fit into PREVIEW_BYTES."""
        bytes_each = bytes_per_pixel(self.networks) * self._padded(self.label).numel()
        return max(1, int(PREVIEW_BYTES / bytes_each))


def bytes_per_pixel(networks: InferenceModel) -> float:
    """Peak memory of one image in the generator and its input, by pixel.

    Measured once, on a small image: activations grow with the pixels, weights do not.
    """
    if not hasattr(networks, "bytes_per_pixel"):
        opt = networks.opt
        side = 4 * networks.least
        zeros = torch.zeros(1, 1, side, side, dtype=torch.int32)
        feat = None
        if opt.instance_feat or opt.label_feat:
            feat = torch.zeros(1, opt.feat_num, side, side)
        with LiveBytes() as live:
            networks.netG(networks.generator_input(zeros, zeros, feat).to(networks.dtype))
        networks.bytes_per_pixel = live.most / side**2
    return networks.bytes_per_pixel


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they are alive; most: their peak.

    What a convolution needs inside itself is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive = WeakIdKeyDictionary()  # storage -> bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {id(a.untyped_storage()) for a in tree_leaves(args) if isinstance(a, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                storage = tensor.untyped_storage()
                self._alive[storage] = storage.nbytes()
        self.most = max(self.most, sum(self._alive.values()))
        return result
