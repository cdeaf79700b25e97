import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from gambeson.core.errors import DataError
from gambeson.data.pickles import load_arrays


def python2_batch(pixels: bytes, labels: list[int], key: bytes = b"labels") -> bytes:
    """A batch as Python 2 and numpy 1 pickled it (protocol 2, byte strings, `numpy.core`), opcode by opcode."""
    rows = len(labels)
    shape = b"M" + rows.to_bytes(2, "little") + b"M" + (len(pixels) // rows).to_bytes(2, "little") + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U" + bytes([len(key)]) + key + numbers + b"u."


def test_a_pickle_of_python_2_and_numpy_1_is_read_without_warnings() -> None:
    pixels = bytes(range(256)) * 24
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = load_arrays(python2_batch(pixels, [3, 7]), "a")
    assert batch["labels"] == [3, 7]
    assert batch["data"].dtype == np.uint8
    assert batch["data"].shape == (2, 3072)
    assert batch["data"].tobytes() == pixels


@pytest.mark.parametrize("protocol", range(5))  # 5 rebuilds through numpy's buffers; no CIFAR was published so
def test_the_protocols_of_python_3_are_read(protocol: int) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = pickle.dumps({"data": array, b"labels": [1, 2, 3]}, protocol=protocol)
    batch = load_arrays(content, "a")
    assert np.array_equal(batch["data"], array)
    assert batch[b"labels"] == [1, 2, 3]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps({"data": Malicious(mark)}, protocol=protocol)
    with pytest.raises(DataError, match=r"data_batch_1 refuses to load.*system") as error:
        load_arrays(content, "data_batch_1")
    assert "do not trust" in str(error.value)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # the same bytes do run in an ordinary unpickler


@pytest.mark.parametrize(
    "name",
    [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"_codecs\ndecode", b"numpy\nndarray.dump"],
)
def test_other_names_of_admitted_modules_are_refused(name: bytes) -> None:
    with pytest.raises(DataError, match="refuses to load"):
        load_arrays(b"\x80\x04c" + name + b"\n.", "a")


def test_a_truncated_or_corrupt_pickle_is_named() -> None:
    whole = python2_batch(bytes(3072), [1])
    for broken in (b"", whole[:40], whole[:-1], b"\x80\x02" + whole[50:], b"not a pickle"):
        with pytest.raises(DataError, match=r"dir/data_batch_1 is damaged.*bytes"):
            load_arrays(broken, "dir/data_batch_1")
