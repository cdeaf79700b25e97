import hashlib
import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gambeson.core.errors import DataError
from gambeson.data.files import Remote
from gambeson.data.tiny_imagenet import TINY_IMAGENET, TinyImageNetSpec, read_tiny_imagenet

WNIDS = ("n01443537", "n01629819", "n02085620")
VAL = [2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2]  # labels of val_0 .. val_11
SPEC = replace(TINY_IMAGENET, wnids=WNIDS, train_per_class=11, val=len(VAL))


def image(label: int, number: int) -> bytes:
    buffer = io.BytesIO()
    colour = (60 * label + 20, 10 * number + 20, 128)
    # Some of the original images are grey.
    picture = Image.new("RGB", (64, 64), colour) if number != 5 else Image.new("L", (64, 64), colour[0])
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def files(*, sorted_val: bool = False) -> dict[str, bytes]:
    contents = {
        "wnids.txt": "\n".join(reversed(WNIDS)).encode(),
        "words.txt": b"n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\nn99999999\tother\n",
        "test/images/test_0.JPEG": image(0, 0),
    }
    for label, wnid in enumerate(WNIDS):
        contents[f"train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        for number in range(SPEC.train_per_class):
            contents[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = image(label, number)
    rows = []
    for number, label in enumerate(VAL):
        folder = f"val/{WNIDS[label]}" if sorted_val else "val/images"
        contents[f"{folder}/val_{number}.JPEG"] = image(label, number)
        rows.append(f"val_{number}.JPEG\t{WNIDS[label]}\t0\t0\t63\t63")
    if not sorted_val:
        contents["val/val_annotations.txt"] = "\n".join(rows).encode()
    return contents


def write(root: Path, contents: dict[str, bytes], *, packed: bool = False) -> Path:
    if packed:
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"tiny-imagenet-200/{name}", content)
        return root / "tiny-imagenet-200.zip"
    for name, content in contents.items():
        path = root / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root / "tiny-imagenet-200"


def check(root: Path, spec: TinyImageNetSpec = SPEC, *, verify: bool = False) -> None:
    train, test, val, facts = read_tiny_imagenet(root, spec, verify=verify)
    assert val is None
    assert train.x.shape == (33, 3, 64, 64)
    assert train.y.tolist() == [0] * 11 + [1] * 11 + [2] * 11
    assert test.y.tolist() == VAL
    for examples, numbers in ((train, list(range(11)) * 3), (test, list(range(12)))):
        mean = examples.x.double().mean((2, 3)).numpy()
        for colour, label, number in zip(mean, examples.y.tolist(), numbers, strict=True):
            red = 60 * label + 20
            assert np.abs(colour - ([red] * 3 if number == 5 else [red, 10 * number + 20, 128])).max() < 3
    assert facts.class_names == ("goldfish", "European fire salamander", "n02085620")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sorted_val", [True, False])
@pytest.mark.parametrize("parent", ["", "tiny-imagenet"])
def test_zip_and_folder_with_both_layouts_of_val(tmp_path: Path, packed: bool, sorted_val: bool, parent: str) -> None:
    write(tmp_path / parent, files(sorted_val=sorted_val), packed=packed)
    check(tmp_path)


def test_the_root_itself_may_be_the_folder(tmp_path: Path) -> None:
    check(write(tmp_path, files()))


def test_without_wnids_and_words_the_names_are_the_class_ids(tmp_path: Path) -> None:
    contents = {name: content for name, content in files().items() if name not in ("wnids.txt", "words.txt")}
    write(tmp_path, contents)
    assert read_tiny_imagenet(tmp_path, SPEC).facts.class_names == WNIDS


def test_verify(tmp_path: Path) -> None:
    write(tmp_path, files())
    with pytest.raises(DataError, match="no checksum was published"):
        read_tiny_imagenet(tmp_path, SPEC, verify=True)
    path = write(tmp_path, files(), packed=True)
    with pytest.raises(DataError, match="90528d7ca1a48142e341f4ef8d21d0de") as error:
        read_tiny_imagenet(tmp_path, SPEC, verify=True)
    assert str(path) in str(error.value)
    remote = Remote(name=path.name, url="", md5=hashlib.md5(path.read_bytes()).hexdigest())
    check(tmp_path, replace(SPEC, archive=remote), verify=True)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "train/n01629819/images/n01629819_3.JPEG",
            None,
            "train/n01629819 is damaged: it holds 10 images, expected 11",
        ),
        ("train/n01629819/images/n01629819_3.JPEG", b"no image", "n01629819_3.JPEG cannot be decoded"),
        ("train/n01629819/images/n01629819_3.JPEG", image(0, 0)[:500], "n01629819_3.JPEG cannot be decoded"),
        ("val/images/val_4.JPEG", None, "val is damaged: it holds 11 images, expected 12"),
        ("val/images/val_99.JPEG", image(0, 0), "val_99.JPEG is damaged: neither its folder"),
        ("val/val_annotations.txt", None, "val_0.JPEG is damaged: neither its folder"),
        ("val/val_annotations.txt", b"\xff\xff", "val_annotations.txt is damaged"),
        ("wnids.txt", b"n01443537", "wnids.txt is damaged: its 1 class ids are not the 3"),
    ],
)
def test_damage_is_named(tmp_path: Path, packed: bool, name: str, content: bytes | None, says: str) -> None:
    contents = files()
    if content is None:
        del contents[name]
    else:
        contents[name] = content
    where = write(tmp_path, contents, packed=packed)
    with pytest.raises(DataError, match=says) as error:
        read_tiny_imagenet(tmp_path, SPEC)
    assert str(where) in str(error.value)
    assert "hint: " in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_truncated_zip_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, files(), packed=True)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"is damaged: [\d,]+ bytes") as error:
        read_tiny_imagenet(tmp_path, SPEC)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)


def test_a_corrupt_member_of_a_zip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, files(), packed=True)
    content = bytearray(path.read_bytes())
    at = content.index(image(0, 3))
    content[at + 300 : at + 310] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded: Bad CRC-32"):
        read_tiny_imagenet(tmp_path, SPEC)


def test_an_unpacked_folder_that_lacks_a_class(tmp_path: Path) -> None:
    folder = write(tmp_path, files())
    shutil.rmtree(folder / "train" / WNIDS[2])
    with pytest.raises(DataError, match=f"{WNIDS[2]} is damaged: it holds 0 images"):
        read_tiny_imagenet(tmp_path, SPEC)
