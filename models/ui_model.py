"""A scene and the image that a trained generator makes of it, for a user who edits objects."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from data.values import RGB8
from models.edit_checks import checked_integer
from models.inference_model import InferenceModel
from models.masks import stroke
from models.scene import Scene
from models.styles import Styles, paint
from util.errors import UserError, out_of_memory
from util.pages.colours import label_image


class UIModel(Scene):
    """A Scene with networks: picture() generates its image, previews() other styles of an object.

    open() takes the maps, select() finds the instance at a pixel; the edits are those of Scene.
    Only integer maps, features and the last image are kept; the generator's input is built when
    an image is generated, one at a time over all scenes that share the networks (see another).
    A scene must not be used by two threads at once. Running out of memory is a UserError.

    last_picture    the last image; None at first
    picture_version the version that it shows: lower than version if generating a newer one failed
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
        self.last_picture: np.ndarray | None = None
        self.picture_version = 0
        self._lock = lock or threading.Lock()

    def another(self) -> "UIModel":
        """A model for another scene, on the same networks."""
        return UIModel(self.networks, self.styles, self._lock)

    def picture(self) -> np.ndarray:
        """The image of the scene, (H, W, 3) uint8; generated again only after a change."""
        if self.picture_version != self.version:
            with self._network():
                self.last_picture = self._generate(self.features)
            self.picture_version = self.version
        return self.last_picture

    def label_image(self) -> np.ndarray:
        """The label map in its classes' colours, (H, W, 3) uint8."""
        label = torch.from_numpy(self.label)[None]
        return label_image(label, self._opt.label_nc, self._opt.ignore_label)

    def previews(self, instance: int, features: np.ndarray) -> np.ndarray:
        """The image with an instance in other styles: (K, feat_num) -> (K, H, W, 3) uint8."""
        region = self._region(self.selection(instance))
        images = np.empty((len(features), *self.shape, 3), np.uint8)
        for image, vector in zip(images, np.array(features, np.float32)):
            with self._network():  # other scenes get their turn in between
                image[:] = self._generate({**self.features, region: vector})
        return images

    def photo_feature(
        self, photo: np.ndarray, y: int, x: int, inst: np.ndarray | None = None
    ) -> np.ndarray:
        """The style that the encoder finds at a pixel of a photograph, (feat_num,) float32.

        photo (H, W, 3) uint8; inst (H, W) its instances: without them, a disc around the pixel
        counts as one, with a radius of a sixteenth of the height.
        """
        height, width = photo.shape[:2]
        y, x = checked_integer(y, "y", 0, height - 1), checked_integer(x, "x", 0, width - 1)
        if inst is None:
            inst = stroke([(y, x)], max(1, height // 16), (height, width))
        return self._encode(photo, inst == inst[y, x])[:, y, x]

    def photo_features(self, photo: np.ndarray) -> dict[int, np.ndarray]:
        """The style of every region of the scene as it was opened, from its photograph.

        photo (H, W, 3) uint8, of the scene's size. For set_styles.
        """
        label, inst, _ = self.as_opened
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
                    "close other programs there, or open smaller maps (--loadSize)"
                ) from None

    def _generate(self, features: dict[int, np.ndarray]) -> np.ndarray:
        """The image with these features of its regions, (H, W, 3) uint8."""
        feat = paint(self.regions, features, self._opt.feat_num) if self.has_features else None
        return self.networks(self.label, self.inst, feat)

    def _encode(self, photo: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """E's features of photo (H, W, 3) uint8 over regions (H, W): (feat_num, H, W) float32."""
        image = RGB8.to_tensor(photo)[None]
        ids = torch.from_numpy(regions.astype(np.int32))[None, None]
        with self._network():
            return self.networks.encode_regions(image, ids)[0].numpy()
