"""Instance features as styles: clusters, classes of instances, and painting features into maps.

Source: paper section 3.4 and figure 10 ff.: features of all training instances are clustered per
class; a user then chooses a cluster's centre for an object.
"""

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.kinds import label_counts
from models.feature_files import load_array
from models.instance_maps import instance_class
from util.errors import UserError

Styles = dict[int, np.ndarray]  # class -> (styles, feat_num) float32


def instance_rows(features: np.ndarray, inst: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """One row for each instance of a scene, sorted by class and id: class, feature, area*32/(H*W).

    features (C, H, W) constant inside instances, inst (H, W) -> (instances, 2 + C) float32.
    """
    ids, first, areas = np.unique(inst, return_index=True, return_counts=True)
    vectors = features.reshape(len(features), -1)[:, first].T  # (instances, C)
    labels = np.array([classes[i] for i in ids.tolist()])
    weights = areas / max(1, inst.size // 32)
    rows = np.column_stack([labels, vectors, weights]).astype(np.float32)
    return rows[np.argsort(labels, kind="stable")]


def instance_classes(inst: np.ndarray, label: np.ndarray | None = None) -> dict[int, int]:
    """The class of every instance id of a scene: that of most of its pixels in the label map.

    inst and label (H, W) integers. Without a label map the ids are read as Cityscapes' own.
    """
    if label is None:
        return {i: instance_class(i) for i in np.unique(inst).tolist()}
    ids, labels, _ = label_counts(inst, label)
    return dict(zip(ids.tolist(), labels.tolist()))


def cluster(rows: np.ndarray, n_clusters: int, seed: int = 0) -> Styles:
    """k-means per class over the instances larger than 1/64 of their image (weight > 0.5).

    rows as instance_rows gives them. A class gets at most n_clusters styles, the most frequent
    first, fewer if it has fewer different instances, none if it has no large instance.
    """
    from sklearn.cluster import KMeans  # takes a second, and is needed only here

    styles: Styles = {}
    large = rows[rows[:, -1] > 0.5]
    for label in np.unique(large[:, 0]):
        vectors = large[large[:, 0] == label, 1:-1]
        count = min(n_clusters, len(np.unique(vectors, axis=0)))
        found = KMeans(count, n_init=10, random_state=seed % 2**32).fit(vectors)
        order = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
        styles[int(label)] = found.cluster_centers_[order].astype(np.float32)
    return styles


def styles_to_rows(styles: Styles) -> np.ndarray:
    """As stored in features_clustered_010.npy: (styles, 1 + feat_num) float32: class, centre."""
    return np.concatenate(
        [np.column_stack([np.full(len(v), c), v]) for c, v in sorted(styles.items())]
    ).astype(np.float32)


def load_rows(path: Path) -> np.ndarray:
    """Read features.npy: (instances, 2 + feat_num) float32. Raises UserError if damaged."""
    rows = load_array(path)
    if isinstance(rows, dict):  # the 2018 code's: class -> (instances, feature and weight)
        widths = {v.shape[1:] for v in rows.values() if v.size}
        whole = [np.column_stack([np.full(len(v), c), v]) for c, v in rows.items() if v.size]
        rows = np.concatenate(whole) if len(widths) == 1 else np.empty(0)
    is_table = rows.ndim == 2 and rows.shape[1] >= 3 and _are_classes(rows[:, 0])
    if not is_table or not np.isfinite(rows).all():
        raise UserError(f"{path}: not the features of instances; run encode_features.py --reencode")
    return rows


def load_styles(path: Path, feat_num: int) -> Styles:
    """Read a cluster file: ours, or the 2018 code's pickled dict of class to array.

    Raises UserError if it is missing, damaged, holds anything else, or features of another length.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; make it with encode_features.py, take styles from photographs "
            "(test.py --use_encoded_image), or name another file with --cluster_path"
        )
    content, styles = load_array(path), {}
    if isinstance(content, dict):
        # a class without large instances has an empty list there
        styles = {label: vectors for label, vectors in content.items() if vectors.size}
    elif content.size and _are_classes(content[:, 0]):
        labels = content[:, 0].astype(int)
        styles = {label: content[labels == label, 1:] for label in sorted(set(labels.tolist()))}
    if not styles:
        raise UserError(f"{path}: holds no styles of classes; run encode_features.py")
    for label, vectors in styles.items():
        if vectors.shape[1] != feat_num:
            raise UserError(
                f"{path}: class {label} has features of length {vectors.shape[1]}, but --feat_num "
                f"is {feat_num}; run encode_features.py with this model"
            )
        if not np.isfinite(vectors).all():
            raise UserError(
                f"{path}: class {label} has styles that are not finite; run encode_features.py"
            )
    return styles


def _are_classes(numbers: np.ndarray) -> bool:
    """Whether all of these are class numbers."""
    return bool((np.abs(numbers) < 2**31).all() and (numbers == np.round(numbers)).all())


def paint(inst: np.ndarray, features: Mapping[int, np.ndarray], feat_num: int) -> np.ndarray:
    """Give every pixel its instance's feature: (H, W) ids -> (feat_num, H, W) float32.

    Instances without a feature get zeros.
    """
    low, high = int(inst.min()), int(inst.max())
    if high - low > max(65535, inst.size):  # ids too far apart for a table
        ids, places = np.unique(inst, return_inverse=True)
        inst = places.reshape(inst.shape)  # numpy 1 returns them flat
        features = {k: features[i] for k, i in enumerate(ids.tolist()) if i in features}
        low, high = 0, len(ids) - 1
    table = np.zeros((feat_num, high - low + 1), np.float32)
    for i, vector in features.items():
        if low <= i <= high:
            table[:, i - low] = vector
    return table[:, inst.astype(np.int64) - low]


class StyleChooser:
    """Chooses a style for every instance of a scene: a fixed one for its class, or at random.

    fixed: class -> feature (feat_num,). Random choices depend only on (seed, scene name, id).
    Classes for which there was no style are collected in missing.
    """

    def __init__(self, styles: Styles, fixed: Mapping[int, np.ndarray], seed: int = 0) -> None:
        self.styles = styles
        self.fixed = fixed
        self.seed = seed
        self.missing: set[int] = set()

    def choose(self, classes: Mapping[int, int], scene: str) -> dict[int, np.ndarray]:
        """classes: instance id -> class. Returns id -> feature; none for a class without styles."""
        features = {}
        for i, label in classes.items():
            if label in self.fixed:
                features[i] = self.fixed[label]
            elif label in self.styles:
                place = f"{self.seed} {scene} {i}".encode(errors="surrogateescape")
                features[i] = random.Random(place).choice(self.styles[label])
            else:
                self.missing.add(label)
        return features


def get_style(styles: Styles, label: int, number: int, name: str) -> np.ndarray:
    """A style of a class, (feat_num,). name: what a UserError calls it if there is none."""
    if label not in styles:
        raise UserError(f"{name} has no styles: no instance of it was large enough to be clustered")
    if not 0 <= number < len(styles[label]):
        raise UserError(f"{name} has styles 0 to {len(styles[label]) - 1}, not {number}")
    return styles[label][number]
