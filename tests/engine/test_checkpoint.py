import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import gambeson.engine.checkpoint as checkpoint
from gambeson.core.errors import CheckpointError
from gambeson.core.types import Batch
from gambeson.engine.checkpoint import (
    load_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    read_header,
    save_checkpoint,
    section,
    weights_digest,
)

Net = Callable[..., nn.Sequential]
Images = Callable[..., Batch]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]

TENSORS = {
    "float": torch.tensor([[0.1, float("nan"), -0.0], [float("inf"), 1e-45, 3.0]]),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "count": torch.tensor(2**62 + 1),
    "flags": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
}
HEADER = {"step": 7, "elapsed": 0.1 + 0.2, "name": "n-lap é", "best": None, "list": [1, 2.5, {"a": True}]}


def bits(t: Tensor) -> bytes:
    return bytes(t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if t.numel() else b""


def test_the_digest_is_of_the_weights_alone(tmp_path: Path) -> None:
    def digest(header: dict[str, object], **changes: Tensor) -> str:
        weights = {f"model/{name}": t for name, t in {**TENSORS, **changes}.items()}
        save_checkpoint(tmp_path / "a.safetensors", {**weights, "optimizer/x": torch.rand(2)}, header)
        return weights_digest(tmp_path / "a.safetensors")

    usual = digest(HEADER)
    assert digest({"step": 8}) == usual
    for changed in (
        {"half": TENSORS["half"] + 1},
        {"half": TENSORS["half"].half()},
        {"bytes": TENSORS["bytes"][None]},
        {"one_more": torch.zeros(0)},
        {"float": TENSORS["float"].abs()},
    ):
        assert digest(HEADER, **changed) != usual


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, HEADER)
    tensors, header = load_checkpoint(path)
    assert set(tensors) == set(TENSORS)
    for name, t in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (t.dtype, t.shape)
        assert bits(tensors[name]) == bits(t)
    assert header == {"format": 1, **HEADER}
    assert read_header(path) == header


def test_views_shared_and_gradient_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "same": base, "columns": base.T, "row": base[1], "p": nn.Parameter(base[:, ::2])}
    save_checkpoint(tmp_path / "a", tensors, {})
    found, _ = load_checkpoint(tmp_path / "a")
    assert all(torch.equal(found[name], t) for name, t in tensors.items())


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    for step in (1, 2):
        save_checkpoint(path, {"w": torch.full((3,), float(step))}, {"step": step})
    assert load_checkpoint(path)[1]["step"] == 2
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_a_write_that_fails_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, {"step": 1})
    content = path.read_bytes()

    def half_written(tensors: object, target: Path, metadata: object) -> None:
        Path(target).write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(CheckpointError, match=f"cannot write {path}: .*No space left") as error:
        save_checkpoint(path, TENSORS, {"step": 2})
    assert "disk full" in str(error.value.hint)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["last.safetensors"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_the_old_checkpoint_stays_until_the_new_one_is_on_the_disk(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CheckpointError):
        save_checkpoint(path, TENSORS, {"step": 2})
    assert load_checkpoint(path)[1]["step"] == 1
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_a_missing_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "none" / "a", {"w": torch.zeros(1)}, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path / 'a'}"):
        load_checkpoint(tmp_path / "a")
    with pytest.raises(CheckpointError, match=str(tmp_path / "a")):
        read_header(tmp_path / "a")


@pytest.mark.parametrize("keep", [0, 4, 20, 0.5, -1])
def test_a_truncated_file_is_recognised(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, HEADER)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=f"{path} is not a whole checkpoint") as error:
        load_checkpoint(path)
    assert "truncated" in str(error.value.hint)
    with pytest.raises(CheckpointError, match=str(path)):
        read_header(path)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["pickle", "torch", "text", "noise"])
def test_other_files_are_refused_and_nothing_in_them_is_executed(writer: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pth", tmp_path / "executed"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif writer == "torch":
        torch.save({"state_dict": Bomb(mark)}, path)
    else:
        path.write_bytes(b'{"not": "safetensors"}' * 9 if writer == "text" else bytes(range(256)) * 9)
    for read in (load_checkpoint, read_header):
        with pytest.raises(CheckpointError, match=str(path)):
            read(path)
    assert not mark.exists()
    if writer == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # it would have been


def test_safetensors_of_others_and_of_other_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by gambeson"):
        load_checkpoint(path)
    save_file({"w": torch.zeros(1)}, path, metadata={"gambeson": json.dumps({"format": 99})})
    with pytest.raises(CheckpointError, match="format 99, this version reads 1") as error:
        load_checkpoint(path)
    assert "install" in str(error.value.hint)


@pytest.mark.parametrize("metadata", [None, {"gambeson": json.dumps({"format": 99})}])
def test_the_header_of_others_is_refused_as_load_checkpoint_does(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "a")


def test_a_damaged_header_is_a_checkpoint_error(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "a", metadata={"gambeson": "{"})
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "a")


def test_sections() -> None:
    tensors = {"model/a.b": torch.zeros(1), "model2/c": torch.zeros(2), "parts/0.x": torch.zeros(3)}
    assert list(section(tensors, "model")) == ["a.b"]
    assert list(section(tensors, "parts")) == ["0.x"]
    assert section(tensors, "none") == {}


def test_weights_that_fit_are_loaded(tiny_net: Net, snapshot: Snapshot) -> None:
    net, other = tiny_net(0), snapshot(tiny_net(1))
    load_weights(net, other, Path("a"))
    assert all(torch.equal(t, other[name]) for name, t in net.state_dict().items())


def test_everything_that_does_not_fit_is_listed_and_the_model_unchanged(tiny_net: Net, snapshot: Snapshot) -> None:
    net, weights = tiny_net(0), snapshot(tiny_net(1))
    before = snapshot(net)
    del weights["0.weight"], weights["1.running_mean"]
    weights |= {"4.weight": torch.zeros(10, 256), "5.weight": torch.zeros(1), "6.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        load_weights(net, weights, Path("some/file"))
    for said in (
        "some/file does not fit",
        "missing 0.weight",
        "missing 1.running_mean",
        "4.weight has shape (10, 256), the model (3, 256)",
        "unexpected 5.weight",
        "unexpected 6.bias",
    ):
        assert said in error.value.message
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(
    kind: str, tiny_net: Net, tiny_batch: Images, snapshot: Snapshot
) -> None:
    def make(net: nn.Module) -> torch.optim.Optimizer:
        if kind == "adam":
            return torch.optim.Adam(net.parameters(), lr=0.01)
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for k in numbers:
            optimizer.zero_grad()
            batch = tiny_batch(seed=k)
            nn.functional.cross_entropy(net(batch.x), batch.y).backward()
            optimizer.step()

    net = tiny_net()
    optimizer = make(net)
    steps(net, optimizer, range(3))
    names = {id(p): name for name, p in net.named_parameters()}
    saved = {name: t.clone() for name, t in optimizer_tensors(optimizer, names).items()}
    other = tiny_net(1)
    other.load_state_dict(snapshot(net))
    resumed = make(other)
    steps(tiny_net(2), resumed, range(0))
    load_optimizer(resumed, saved, dict(other.named_parameters()))
    for pair in ((net, optimizer), (other, resumed)):
        steps(*pair, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    fresh = dict(optimizer_tensors(resumed, {id(p): name for name, p in other.named_parameters()}))
    assert not any(fresh[name].data_ptr() == t.data_ptr() for name, t in saved.items())  # copies
