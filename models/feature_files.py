"""Reading files of features: numpy's, and the dicts of arrays that the 2018 code pickled in them.

A pickle may hold anything: what is not an array of numbers in plain containers is refused.
"""

import pickle
from pathlib import Path

import numpy as np

from data.arrays import npy_header
from util.errors import UserError, first_line


def load_array(path: Path) -> np.ndarray | dict:
    """An .npy file's array, or the dict inside an object array; nothing in it is executed."""
    try:
        with open(path, "rb") as file:
            if not npy_header(file)[2].hasobject:
                file.seek(0)
                return _numbers(np.load(file, allow_pickle=False))
            content = _ArraysOnly(file, encoding="latin1").load()
        content = content.array.item() if isinstance(content, _ArrayStub) else content
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected class to array")
        return {_class(label): _numbers(vectors) for label, vectors in content.items()}
    except Exception as error:  # an invalid file fails in many ways
        text = first_line(error)
        raise UserError(
            f"{path}: not a readable feature file ({text}); run encode_features.py --reencode"
        ) from error


def _class(label: object) -> int:
    if not isinstance(label, (int, np.integer)):
        raise ValueError(f"class {label!r:.40}: expected an integer")
    return int(label)


def _numbers(vectors: object) -> np.ndarray:
    """Rows of numbers as float32."""
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise ValueError(f"it holds {array.dtype} {array.shape}, expected rows of numbers")
    return np.atleast_2d(array).astype(np.float32)


class _DtypeStub:
    """Stands for numpy.dtype in a pickle: numpy's own would take any flags from the file, and read
    its bytes as pointers."""

    def __init__(self, name: str, *_: object) -> None:
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biufO":
            raise pickle.UnpicklingError(f"it holds {self.dtype}, expected numbers")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _ArrayStub:
    """Stands for numpy.ndarray in a pickle, and for the function that makes an empty one."""

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        self.array = _unpickled(content, kind, shape, "F" if by_columns else "C")

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        return self.array


def _unpickled(content: object, kind: _DtypeStub, shape: tuple = (), order: str = "C") -> object:
    """The array, or with shape () the number, in a pickle's bytes, text or list."""
    if kind.dtype.hasobject:
        array = np.empty(len(content), object)
        array[:] = content
        return array.reshape(shape, order=order)
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2's
    return np.ndarray(shape, kind.dtype, content, order=order)[()]


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays of numbers in plain containers, and nothing else."""

    _KNOWN = {
        ("numpy", "ndarray"): _ArrayStub,
        ("numpy", "dtype"): _DtypeStub,
        ("numpy._core.multiarray", "_reconstruct"): _ArrayStub,
        ("numpy._core.multiarray", "scalar"): lambda kind, content: _unpickled(content, kind),
        ("numpy._core.numeric", "_frombuffer"): _unpickled,
        # how Python 2 and protocol 2 (numpy before 1.17) write an array's bytes, and empty bytes
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
        ("__builtin__", "bytes"): bytes,
    }

    def find_class(self, module: str, name: str) -> object:
        current = module.replace("numpy.core.", "numpy._core.")  # its name before numpy 2
        if (current, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._KNOWN[current, name]
