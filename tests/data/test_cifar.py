import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gambeson.core.errors import DataError
from gambeson.data.cifar import CIFAR10, CIFAR100, CifarSpec, Layout, Member, read_cifar

ROWS = 20


def rows_of(spec: CifarSpec, position: int) -> tuple[np.ndarray, np.ndarray]:
    classes = 10 if spec.name == "cifar10" else 100
    pixels = np.random.default_rng(position).integers(0, 256, (ROWS, 3072), dtype=np.uint8)
    return pixels, (np.arange(ROWS) * (position + 1) % classes).astype(np.uint8)


def content_of(spec: CifarSpec, name: str, position: int) -> bytes:
    pixels, labels = rows_of(spec, position)
    if not name.endswith(".bin"):
        batch = {b"data": pixels, spec.label_key.encode(): labels.tolist(), b"coarse_labels": [0] * ROWS}
        return pickle.dumps(batch, protocol=2)
    columns = (
        [labels[:, None], pixels] if spec.label_bytes == 1 else [np.zeros((ROWS, 1), np.uint8), labels[:, None], pixels]
    )
    return np.concatenate(columns, axis=1).tobytes()


def files_of(spec: CifarSpec, layout: Layout) -> dict[str, bytes]:
    return {member.name: content_of(spec, member.name, i) for i, member in enumerate(layout.members)}


def tar_of(spec: CifarSpec, layout: Layout, prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {"readme.html": b"hello", **files_of(spec, layout)}.items():
            info = tarfile.TarInfo(f"{prefix}{layout.folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def small(spec: CifarSpec) -> CifarSpec:
    """The published layouts with 20 rows a file, their checksums, and an address that nobody listens at."""

    def shrink(layout: Layout) -> Layout:
        files = files_of(spec, layout)

        def member(old: Member) -> Member:
            md5 = None if old.md5 is None else hashlib.md5(files[old.name]).hexdigest()
            return Member(name=old.name, rows=ROWS, md5=md5)

        md5 = hashlib.md5(tar_of(spec, layout)).hexdigest()
        archive = replace(layout.archive, url="http://127.0.0.1:9/", md5=md5)
        train, test = (tuple(map(member, members)) for members in (layout.train, layout.test))
        return replace(layout, archive=archive, train=train, test=test)

    return replace(spec, layouts=tuple(map(shrink, spec.layouts)))


def unpack(folder: Path, spec: CifarSpec, layout: Layout) -> None:
    folder.mkdir(parents=True)
    for name, content in files_of(spec, layout).items():
        (folder / name).write_bytes(content)


def check(root: Path, spec: CifarSpec, layout: Layout, *, verify: bool = False) -> None:
    train, test, val, facts = read_cifar(root, spec, verify=verify)
    expected = [rows_of(spec, i) for i in range(len(layout.train))]
    assert np.array_equal(train.x.numpy(), np.concatenate([x for x, _ in expected]).reshape(-1, 3, 32, 32))
    assert np.array_equal(train.y.numpy(), np.concatenate([y for _, y in expected]))
    pixels, labels = rows_of(spec, len(layout.train))
    assert np.array_equal(test.x.numpy().reshape(-1, 3072), pixels)
    assert np.array_equal(test.y.numpy(), labels)
    assert val is None
    assert facts.name == spec.name


BOTH = pytest.mark.parametrize("spec", [small(CIFAR10), small(CIFAR100)], ids=lambda spec: spec.name)
LAYOUTS = pytest.mark.parametrize("which", [0, 1], ids=["binary", "python"])


@BOTH
@LAYOUTS
@pytest.mark.parametrize("parent", ["", "own"])
@pytest.mark.parametrize("form", ["folder", "right here", "archive"])
def test_both_layouts_unpacked_and_packed(tmp_path: Path, spec: CifarSpec, which: int, parent: str, form: str) -> None:
    layout = spec.layouts[which]
    home = tmp_path / "root" / (spec.name if parent else "")
    if form == "archive":
        home.mkdir(parents=True)
        (home / layout.archive.name).write_bytes(tar_of(spec, layout))
    else:
        unpack(home / layout.folder if form == "folder" else home, spec, layout)
    before = sorted((tmp_path / "root").rglob("*"))
    check(tmp_path / "root", spec, layout)
    assert sorted((tmp_path / "root").rglob("*")) == before  # an archive is not unpacked to disk
    if form == "archive" or which == 1:
        check(tmp_path / "root", spec, layout, verify=True)


def test_the_published_sizes() -> None:
    for spec in (CIFAR10, CIFAR100):
        for layout in spec.layouts:
            assert sum(member.rows for member in layout.train) == 50_000
            assert sum(member.rows for member in layout.test) == 10_000
    assert CIFAR10.layouts[0].train[0].rows * (CIFAR10.label_bytes + 3072) == 30_730_000
    assert CIFAR100.layouts[0].train[0].rows * (CIFAR100.label_bytes + 3072) == 153_700_000


@BOTH
def test_verify_of_unpacked_binary_files_uses_the_archive_or_says_that_it_cannot(
    tmp_path: Path, spec: CifarSpec
) -> None:
    layout = spec.layouts[0]
    unpack(tmp_path / layout.folder, spec, layout)
    with pytest.raises(DataError, match="no checksum was published") as error:
        read_cifar(tmp_path, spec, verify=True)
    assert "archive" in str(error.value)
    (tmp_path / layout.archive.name).write_bytes(tar_of(spec, layout))
    check(tmp_path, spec, layout, verify=True)


@LAYOUTS
def test_verify_sees_a_changed_archive(tmp_path: Path, which: int) -> None:
    spec = small(CIFAR10)
    archive = spec.layouts[which].archive
    path = tmp_path / archive.name
    path.write_bytes(tar_of(spec, spec.layouts[which]) + b"\0")
    with pytest.raises(DataError, match=archive.md5) as error:
        read_cifar(tmp_path, spec, verify=True)
    assert str(path) in str(error.value)


def test_verify_sees_a_changed_pickle(tmp_path: Path) -> None:
    spec = small(CIFAR10)
    folder = tmp_path / "cifar-10-batches-py"
    unpack(folder, spec, spec.layouts[1])
    (folder / "data_batch_3").write_bytes(content_of(spec, "data_batch_3", 77))
    read_cifar(tmp_path, spec)
    with pytest.raises(DataError, match="data_batch_3 is damaged: its md5"):
        read_cifar(tmp_path, spec, verify=True)


@LAYOUTS
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_a_truncated_archive_is_named(tmp_path: Path, which: int, keep: float) -> None:
    spec = small(CIFAR10)
    layout = spec.layouts[which]
    content = tar_of(spec, layout)
    path = tmp_path / layout.archive.name
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"is damaged: [\d,]+ bytes") as error:
        read_cifar(tmp_path, spec)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", [0.1, 0.3, 0.6, 0.999])
def test_a_flipped_bit_in_an_archive_is_seen_without_verify(tmp_path: Path, at: float) -> None:
    spec = small(CIFAR10)
    content = bytearray(tar_of(spec, spec.layouts[0]))
    content[int(at * len(content))] ^= 1
    path = tmp_path / spec.layouts[0].archive.name
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged") as error:
        read_cifar(tmp_path, spec)
    assert str(path) in str(error.value)


def test_an_archive_packed_again_with_a_leading_dot(tmp_path: Path) -> None:
    spec = small(CIFAR10)
    (tmp_path / spec.layouts[0].archive.name).write_bytes(tar_of(spec, spec.layouts[0], prefix="./"))
    check(tmp_path, spec, spec.layouts[0])


def test_an_archive_of_another_set_is_refused(tmp_path: Path) -> None:
    spec, other = small(CIFAR10), small(CIFAR100)
    (tmp_path / spec.layouts[0].archive.name).write_bytes(tar_of(other, other.layouts[0]))
    with pytest.raises(DataError, match=r"it lacks data_batch_1\.bin"):
        read_cifar(tmp_path, spec)


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_a_binary_file_of_another_size_is_named(tmp_path: Path, change: int) -> None:
    spec = small(CIFAR10)
    folder = tmp_path / "cifar-10-batches-bin"
    unpack(folder, spec, spec.layouts[0])
    path = folder / "data_batch_2.bin"
    path.write_bytes((path.read_bytes() + bytes(3073))[: ROWS * 3073 + change])
    with pytest.raises(DataError, match=f"{ROWS * 3073 + change:,} bytes, expected 20 records of 3,073") as error:
        read_cifar(tmp_path, spec)
    assert str(path) in str(error.value)


@LAYOUTS
def test_a_missing_file_is_named(tmp_path: Path, which: int) -> None:
    spec = small(CIFAR10)
    layout = spec.layouts[which]
    unpack(tmp_path / layout.folder, spec, layout)
    (tmp_path / layout.folder / layout.train[4].name).unlink()
    with pytest.raises(DataError, match=f"it lacks {layout.train[4].name}"):
        read_cifar(tmp_path, spec)


def test_nothing_there_and_no_network(tmp_path: Path) -> None:
    spec = small(CIFAR10)
    with pytest.raises(DataError, match="cannot be downloaded") as error:
        read_cifar(tmp_path, spec)
    archive = spec.layouts[0].archive
    for word in (archive.name, archive.url, archive.md5, str(tmp_path)):
        assert word in str(error.value)


def test_a_label_out_of_range(tmp_path: Path) -> None:
    spec = small(CIFAR10)
    folder = tmp_path / "cifar-10-batches-bin"
    unpack(folder, spec, spec.layouts[0])
    path = folder / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match=r"label 10 of image 0 is outside 0\.\.9"):
        read_cifar(tmp_path, spec)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ([1, 2], "must be a dict"),
        ({"data": np.zeros((ROWS, 3072), np.uint8)}, "data and labels"),
        ({"data": np.zeros((ROWS, 3071), np.uint8), "labels": [0] * ROWS}, r"its data are uint8 \(20, 3071\)"),
        ({"data": np.zeros((ROWS, 3072), np.int16), "labels": [0] * ROWS}, "its data are int16"),
        ({"data": "text", "labels": [0] * ROWS}, "its data are str"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0] * 3}, "expected 20 integers"),
        ({"data": np.zeros((ROWS, 3072), np.uint8), "labels": ["a"] * ROWS}, "expected 20 integers"),
    ],
)
def test_a_pickle_of_other_content_is_named(tmp_path: Path, batch: object, says: str) -> None:
    spec = small(CIFAR10)
    folder = tmp_path / "cifar-10-batches-py"
    unpack(folder, spec, spec.layouts[1])
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=says) as error:
        read_cifar(tmp_path, spec)
    assert str(folder / "data_batch_1") in str(error.value)
