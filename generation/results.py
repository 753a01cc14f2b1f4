"""Where generated images go: files, and the page that shows them."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data.aligned_dataset import SceneDataset
from data.arrays import geo_tags, require_packages, resize_array, write_array
from data.files import image_names
from data.loader import gather_by_index, own_scenes
from data.values import image_values
from util import distributed
from util.errors import UserError
from util.files import make_folder
from util.pages.colours import save_image
from util.pages.html import Page, Picture
from util.progress import log

MAX_JPEG_SIDE = 65535  # pixels a side
Image = np.ndarray | Callable[[], np.ndarray]  # a function makes it in the background


class Results:
    """The images of a data set's scenes, in results/NAME/PHASE_EPOCH with a page, or in --output.

    has_page  whether there is a page
    wanted    the scenes of this process that are to be generated, by index
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        dataset: SceneDataset,
        names: list[str],
        shown_names: list[str],
    ) -> None:
        """names: those of the generator's images of a scene; shown_names: of all on the page.
        Raises UserError for a folder that cannot be written to, for a package that is missing, or
        if an input would be overwritten."""
        require_packages(opt.image_format, image_values(opt, "output").dtype)
        self.opt = opt
        self.names = names
        self.has_page = opt.page or not opt.input
        of_run = Path(opt.results_dir) / opt.name / f"{opt.phase}_{opt.which_epoch}"
        self.folder = Path(opt.output) if opt.input else of_run
        self.top_level = names if opt.input else []  # the images in folder itself, not in images/
        self.labels = [dataset.files["label"][scene] for scene in dataset.scenes]
        stems = image_names(dataset.files["label"])
        self.stems = [stems[scene] for scene in dataset.scenes]
        flag = "--output" if opt.input else "--results_dir"
        make_folder(self.folder / "images" if self.has_page else self.folder, flag)

        expected = shown_names if self.has_page else names
        paths = [self.paths(index, expected) for index in range(len(dataset))]
        inputs = {path.resolve() for files in dataset.files.values() for path in files.values()}
        for path in (self.folder / path for files in paths for path in files.values()):
            if path.resolve() in inputs:
                raise UserError(f"{path} is an input and would be overwritten; give another {flag}")
        self.rows: dict[int, list[Picture]] = {}  # of the page, by index
        for index in own_scenes(dataset) if opt.skip_existing else ():
            if all((self.folder / path).is_file() for path in paths[index].values()):
                self.rows[index] = page_row(paths[index])
        self.wanted = [index for index in own_scenes(dataset) if index not in self.rows]

    def paths(self, index: int, names: Iterable[str]) -> dict[str, Path]:
        """The files of a scene's images by name, below the folder: images/STEM_NAME.png; a single
        one at the top level is STEM.png."""
        paths = {}
        for name in names:
            stem = self.stems[index] + ("" if [name] == self.top_level else f"_{name}")
            ending = self.opt.image_format
            if name not in self.names and ending != "jpg":  # only for the page
                ending = "png"
            path = Path(f"{stem}.{ending}")
            paths[name] = path if name in self.top_level else Path("images") / path
        return paths

    def write(self, index: int, images: dict[str, Image], submit: Callable[..., None]) -> None:
        """Have the images of a scene written in the background. TIFF files get the georeference
        of the label map."""
        paths = self.paths(index, images)
        for name, image in images.items():
            path = self.folder / paths[name]
            submit(save, image, path, self.opt.aspect_ratio, self.labels[index])
        self.rows[index] = page_row(paths)

    def finish(self, failed: int) -> None:
        """All processes together: write the page. failed: the number of scenes that this process
        left out; a UserError gives the total."""
        opt, rows = self.opt, gather_by_index(self.rows)
        failed = sum(distributed.gather(failed))
        if not distributed.is_main():
            return
        if self.has_page:
            shown_as = image_values(opt, "output").describe_view()
            title = f"{opt.name}, {opt.input or opt.phase}, epoch {opt.which_epoch}"
            title += f", all styles of {opt.all_styles}" if opt.all_styles else ""
            page = Page(self.folder, title + (f" (shown: {shown_as})" if shown_as else ""))
            for index, row in rows.items():
                page.row(row, heading=self.stems[index], width=opt.display_winsize)
            log(f"{len(rows)} scenes on the page {page.save()}")
        if opt.input and rows:
            log(f"{len(rows)} label maps: their images are in {self.folder}")
        if failed:
            raise UserError(f"{failed} of {len(self.labels)} label maps were left out, see above")


def page_row(paths: dict[str, Path]) -> list[Picture]:
    """The row of the page with a scene's images."""
    return [
        Picture(path, caption=name)
        for name, path in paths.items()
        if path.suffix in (".png", ".jpg") and f"{name}_view" not in paths
    ]


def save(image: Image, path: Path, aspect_ratio: float, label: Path) -> None:
    """Write an image (H, W, C), widened by aspect_ratio; label: see Results.write."""
    array = image() if callable(image) else image
    height, width = array.shape[:2]
    if aspect_ratio != 1:
        width = max(1, round(width * aspect_ratio))
        array = resize_array(array, (width, height), smooth=True)
    if path.suffix != ".jpg":
        tags = geo_tags(label, width, height) if path.suffix == ".tif" else None
        write_array(array, path, tags)
    elif max(height, width) > MAX_JPEG_SIDE:
        raise UserError(
            f"{path}: a JPEG has at most {MAX_JPEG_SIDE} pixels per side; use --image_format png"
        )
    else:
        save_image(array, path)
