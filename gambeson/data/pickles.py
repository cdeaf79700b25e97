"""A reader of the CIFAR pickles that can build arrays, lists, numbers and strings, and nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from gambeson.core.errors import DataError
from gambeson.data.files import damaged


def load_arrays(content: bytes, source: object) -> Any:
    """Unpickle containers of numpy arrays, numbers and strings, without running any code that the file names.

    Args:
        content: The pickle, of Python 2 or 3. Byte strings of Python 2 arrive as latin-1 text.
        source: The file, for the message.

    Returns:
        The object.

    Raises:
        DataError: If the pickle asks for anything else, or is truncated or corrupt.

    Examples:
        >>> load_arrays(pickle.dumps({"data": np.zeros(2, np.uint8)}), "a")["data"].tolist()
        [0, 0]
    """
    try:
        return _ArraysOnly(content, source).load()
    except DataError:
        raise
    except Exception as error:  # a corrupt pickle can fail in any opcode
        raise damaged(source, f"{len(content):,} bytes, {type(error).__name__}: {error}") from error


def _dtype(kind: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
    return np.dtype(kind, align=bool(align), copy=bool(copy))  # old pickles carry 0 and 1, which numpy 2.4 deprecates


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"a byte string is encoded as {encoding}, expected latin1")
    return text.encode("latin1")


_RECONSTRUCT = np.ndarray((0,)).__reduce__()[0]  # the same function under any numpy's private module path
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    def __init__(self, content: bytes, source: object) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise DataError(
                f"{self.source} refuses to load: it asks for {module}.{name}, and only numpy arrays are admitted",
                hint="do not trust this file; get the data set again from its publisher, best in the binary layout",
            )
        return _ADMITTED[module, name]
