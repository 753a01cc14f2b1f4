"""A pool of earlier generated images, shown to the discriminator in place of the newest ones."""

import random

import torch
from torch import Tensor


class ImagePool:
    """Keeps up to size images (Shrivastava et al. 2017). size 0: returns its input unchanged."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.images: list[Tensor] = []
        self.rng = random.Random(seed)

    def query(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape: each image or, with probability 1/2, an older one."""
        if self.size == 0:
            return images
        return torch.stack([self._exchange(image) for image in images.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        same_shape = [i for i, old in enumerate(self.images) if old.shape == image.shape]
        shows_newest = self.rng.random() <= 0.5
        if not same_shape:  # the first of its size takes the place of any
            self.images[self.rng.randrange(self.size)] = image.clone()
            return image
        if shows_newest:
            return image
        chosen = self.rng.choice(same_shape)
        old, self.images[chosen] = self.images[chosen], image.clone()
        return old

    def state_dict(self) -> dict:
        """The images and the random state, for an exact resume."""
        return {"images": [image.cpu() for image in self.images], "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self.images = [image.to(device) for image in state["images"][: self.size]]
        self.rng.setstate(state["rng"])
