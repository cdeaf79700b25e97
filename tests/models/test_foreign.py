"""Foreign checkpoints: every layout is made by hand from a network of ours, and must give its logits to the bit."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gambeson.core.errors import CheckpointError, GambesonWarning, InputError
from gambeson.core.types import Task
from gambeson.models import MODELS, create
from gambeson.models.foreign import KEYS, find_weights, fit_names, fitting_models, read_content, read_weights

State = dict[str, Tensor]
FILE = Path("theirs.pt")
TASK = Task(num_classes=10, channels=3, size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
MEAN, STD = torch.tensor(TASK.mean), torch.tensor(TASK.std)


def network(name: str, seed: int = 0, task: Task = TASK) -> nn.Module:
    """A small one whose BatchNorms do something."""
    model = create(name, task, width={None: None, 64: 4, 160: 16}[MODELS[name].width], seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=draw)
    return model.eval()


def state(name: str) -> State:
    return {key: t.clone() for key, t in network(name).state_dict().items()}


def prefixed(prefix: str, weights: State) -> State:
    return {prefix + key: t for key, t in weights.items()}


def swapped(weights: State, *pairs: tuple[str, str]) -> State:
    """Renamed, each pair a regular expression and what replaces it."""
    result = {}
    for key, t in weights.items():
        for old, new in pairs:
            key = re.sub(old, new, key)
        result[key] = t
    return result


def unused(weights: State) -> State:
    """With the stage that TRADES', PART's and RiFT's WideResNet carries and never runs."""
    stage = {key.replace("block1.", "sub_block1.", 1): t + 1 for key, t in weights.items() if key.startswith("block1.")}
    assert stage
    return weights | stage


def normalised(prefix: str, mean: str, std: str, shape: tuple[int, ...]) -> State:
    return {f"{prefix}{mean}": MEAN.view(shape), f"{prefix}{std}": STD.view(shape)}


LAYOUTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "ours": ("resnet18", dict),
    # microsoft/robustlearn RiFT: model.py:66 (DataParallel), main.py:54 (Sequential), utils.py:253-257 (the constants)
    "RiFT's file": ("resnet18", lambda s: prefixed("module.", s)),
    "RiFT, wrapped": (
        "resnet34",
        lambda s: normalised("0.", "mean", "std", (3,)) | prefixed("1.module.", s),
    ),
    "RiFT, WRN": ("wrn-34-10", lambda s: prefixed("module.", unused(s))),
    "RiFT, WRN wrapped": (
        "wrn-34-10",
        lambda s: normalised("0.", "mean", "std", (3,)) | prefixed("1.module.", unused(s)),
    ),
    # RobustBench: model_zoo/cifar10.py (mu, sigma), utils_architectures.py (ImageNormalizer), utils.py:172-175
    "RobustBench, mu and sigma": ("wrn-28-10", lambda s: normalised("", "mu", "sigma", (1, 3, 1, 1)) | s),
    "RobustBench, module.": (
        "preact-resnet18",
        lambda s: prefixed("module.", normalised("", "mu", "sigma", (1, 3, 1, 1)) | s),
    ),
    "RobustBench, normalize_model": (
        "preact-resnet18",
        lambda s: normalised("normalize.", "mean", "std", (1, 3, 1, 1)) | prefixed("model.", s),
    ),
    "module.model.": ("resnet18", lambda s: prefixed("module.model.", s)),
    "compiled": ("small-cnn", lambda s: prefixed("_orig_mod.", s)),
    "averaged": (
        "resnet18",
        lambda s: {"n_averaged": torch.tensor(3)} | prefixed("module.", s),
    ),
    "torchvision's names": (
        "resnet18",
        lambda s: swapped(s, (r"shortcut\.", "downsample."), (r"^linear\.", "fc.")),
    ),
    "a shortcut without a Sequential": ("preact-resnet18", lambda s: swapped(s, (r"shortcut\.0", "shortcut"))),
    "a WRN with shortcut.0 and linear": (
        "wrn-28-10",
        lambda s: prefixed("module.", swapped(s, ("convShortcut", "shortcut.0"), (r"^fc\.", "linear."))),
    ),
    "a head without its own name": ("vit-small", lambda s: swapped(s, (r"^head\.", "classifier."))),
    "before BatchNorm counted": (
        "resnet18",
        lambda s: {key: t for key, t in s.items() if not key.endswith("num_batches_tracked")},
    ),
    "interpolated": (  # RiFT utils.py:34-36 averages the counters too, which makes them floats
        "resnet18",
        lambda s: {key: t.float() for key, t in s.items()},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_every_layout_gives_the_same_logits(layout: str, ending: str, tmp_path: Path) -> None:
    name, made = LAYOUTS[layout]
    theirs = made(state(name))
    file = tmp_path / f"file.{ending}"
    if ending == "pt":
        torch.save({"net": theirs, "acc": 91.5, "epoch": 3}, file)
    else:
        save_file({key: t.contiguous() for key, t in theirs.items()}, file)
    original, other = network(name), network(name, seed=1)
    found = fit_names(read_weights(file), other, file)
    other.load_state_dict(found.weights)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(other(x), original(x))
    own = original.state_dict()
    assert list(found.weights) == list(own)
    for key, t in found.weights.items():
        assert t.dtype == own[key].dtype
        assert torch.equal(t, own[key]) or (key.endswith("num_batches_tracked") and t == 0)
    assert set(found.renamed) | set(found.dropped) == set(theirs) - (set(own) & set(theirs))
    assert not set(found.renamed) & set(found.dropped)
    assert all(torch.equal(theirs[old], own[new]) or theirs[old].ndim == 0 for old, new in found.renamed.items())


def test_the_constants_are_given_back() -> None:
    def constants(layout: str) -> tuple[object, object]:
        name, made = LAYOUTS[layout]
        found = fit_names(made(state(name)), network(name), FILE)
        return found.mean, found.std

    for layout in ("RiFT, wrapped", "RobustBench, mu and sigma", "RobustBench, normalize_model"):
        assert constants(layout) == (TASK.mean, TASK.std)
    assert constants("RiFT's file") == (None, None)


def test_what_was_dropped_is_said() -> None:
    name, made = LAYOUTS["RiFT, WRN wrapped"]
    found = fit_names(made(state(name)), network(name), FILE)
    assert {key for key in found.dropped if "sub_block1" not in key} == {"0.mean", "0.std"}
    assert len(found.dropped) == 2 + sum(key.startswith("block1.") for key in state(name))


def test_two_normalisations_are_refused() -> None:
    weights = {"0.mean": MEAN, "1.mu": MEAN / 2} | prefixed("1.", state("resnet18"))
    with pytest.raises(CheckpointError, match=r"theirs\.pt normalises twice, .*: 0\.mean, 1\.mu"):
        fit_names(weights, network("resnet18"), FILE)


def test_everything_that_does_not_fit_is_said_at_once() -> None:
    weights = state("resnet18")
    weights["extra.weight"] = torch.zeros(3)
    weights["conv1.weight"] = torch.zeros(4, 1, 3, 3)
    weights["bn1.bias"] = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    del weights["layer3.0.bn1.running_mean"], weights["linear.bias"]
    with pytest.raises(CheckpointError) as caught:
        fit_names(prefixed("module.", weights), network("resnet18"), FILE)
    assert caught.value.message == (
        "theirs.pt does not fit the model: missing layer3.0.bn1.running_mean; missing linear.bias;"
        " unexpected extra.weight; conv1.weight has shape (4, 1, 3, 3), the model (4, 3, 3, 3);"
        " bn1.bias has 2 values that are NaN or infinite"
    )
    assert caught.value.hint == "is it of another model, width, image size or number of classes?"


def test_of_many_names_the_first_are_said() -> None:
    own = state("resnet18")
    with pytest.raises(CheckpointError) as caught:
        fit_names({f"x{k}.weight": torch.zeros(2) for k in range(8)}, network("resnet18"), FILE)
    message = caught.value.message
    assert message.count("missing ") == 5
    assert message.count("unexpected x") == 5
    assert message.endswith("and 3 more unexpected")
    left = sum(not name.endswith("num_batches_tracked") for name in own) - 5
    assert f"and {left} more missing;" in message


def test_a_last_layer_of_another_shape_or_without_its_bias_is_not_renamed() -> None:
    for change in ({"fc.weight": torch.zeros(7, 32), "fc.bias": torch.zeros(7)}, {"fc.weight": torch.zeros(10, 32)}):
        weights = {key: t for key, t in state("resnet18").items() if not key.startswith("linear")} | change
        with pytest.raises(
            CheckpointError, match=r"missing linear\.weight; missing linear\.bias; unexpected fc\.weight"
        ):
            fit_names(weights, network("resnet18"), FILE)
    weights = swapped(state("resnet18"), ("^linear", "fc")) | {"aux.weight": torch.zeros(10, 32)}
    with pytest.raises(CheckpointError, match=r"missing linear\.weight; .*unexpected aux\.weight"):
        fit_names(weights, network("resnet18"), FILE)


def test_two_spellings_of_one_layer_are_one_too_many() -> None:
    ours, theirs = "layer2.0.shortcut.0.weight", "layer2.0.downsample.0.weight"
    weights = state("resnet18")
    other = {theirs: weights[ours] + 1}
    for both, said in ((weights | other, f"{theirs} and {ours}"), (other | weights, f"{ours} and {theirs}")):
        with pytest.raises(CheckpointError) as caught:
            fit_names(both, network("resnet18"), FILE)
        assert caught.value.message == f"theirs.pt does not fit the model: {said} are both {ours}"


def test_an_unused_stage_of_a_network_without_one_is_dropped_by_its_name_only() -> None:
    weights = state("wrn-28-10") | {"sub_block2.layer.0.bn1.weight": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r": unexpected sub_block2\.layer\.0\.bn1\.weight\n"):
        fit_names(weights, network("wrn-28-10"), FILE)


def test_deepminds_networks_are_others() -> None:
    """RobustBench dm_wide_resnet.py: other names, and another padding and activation behind them."""
    theirs = swapped(
        state("wrn-28-10"),
        (r"^conv1", "init_conv"),
        (r"^block(\d)\.layer\.", lambda m: f"layer.{int(m[1]) - 1}.block."),  # type: ignore[arg-type]
        (r"\.bn(\d)\.", lambda m: f".batchnorm_{int(m[1]) - 1}."),  # type: ignore[arg-type]
        (r"\.conv(\d)\.", lambda m: f".conv_{int(m[1]) - 1}."),  # type: ignore[arg-type]
        (r"^bn1", "batchnorm"),
        (r"convShortcut", "shortcut"),
        (r"^fc", "logits"),
    )
    with pytest.raises(CheckpointError) as caught:
        fit_names(theirs, network("wrn-28-10"), FILE)
    assert "missing conv1.weight" in caught.value.message
    assert "unexpected layer.0.block.0.batchnorm_0.running_mean" in caught.value.message
    assert caught.value.hint is not None
    assert "another architecture" in caught.value.hint
    assert all(name in caught.value.hint for name in MODELS)
    assert fitting_models(theirs, TASK) == []


def test_the_networks_that_fit_are_found_with_their_width() -> None:
    assert fitting_models(state("resnet34"), TASK) == [("resnet34", 4), ("resnet34-tiny", 4)]
    assert fitting_models(prefixed("1.module.", unused(state("wrn-28-10"))), TASK) == [("wrn-28-10", 16)]
    with torch.device("meta"):
        full = create("resnet18", TASK).state_dict()
    assert fitting_models(full, TASK) == [("resnet18", None), ("resnet18-tiny", None)]
    odd = Task(num_classes=10, channels=3, size=30, mean=TASK.mean, std=TASK.std)  # no transformer for it
    assert fitting_models(state("small-cnn"), odd) == [("small-cnn", None)]


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, *KEYS, "anything"])
def test_the_state_dict_is_found(key: str | None, tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(3.0)}
    torch.save(weights if key is None else {"optimizer": {"state": {}, "lr": 0.1}, key: weights}, tmp_path / "f.pt.tar")
    content = read_content(tmp_path / "f.pt.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken, found = find_weights(content, FILE)
    assert taken == key
    assert torch.equal(found["a.weight"], weights["a.weight"])


def test_of_several_the_customary_is_taken_and_said(tmp_path: Path) -> None:
    one, two = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    torch.save({"ema_state_dict": two, "teacher": two, "state_dict": one}, tmp_path / "f.pth")
    with pytest.warns(GambesonWarning, match=r"state_dict was taken, not ema_state_dict, teacher$"):
        assert read_weights(tmp_path / "f.pth")["a"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_weights(tmp_path / "f.pth", key="teacher")["a"] == 1
    with pytest.raises(CheckpointError, match="several state dicts") as caught:
        find_weights({"student": one, "teacher": two}, FILE)
    assert caught.value.hint == "choose one: student, teacher"


def test_a_key_may_lead_through_tables() -> None:
    content = {"last": {"model": {"a": torch.zeros(1)}, "lr": 1}, "epoch": 3, "a.b": {"c": torch.ones(1)}}
    assert find_weights(content, FILE, key="last.model")[1]["a"] == 0
    assert find_weights(content, FILE, key="a.b")[1]["c"] == 1
    for key, said, hint in (
        ("last.modle", "has no key 'modle' under last", "did you mean model?"),
        ("lats", "has no key 'lats'", "did you mean last?"),
        ("epoch", "has under epoch is not a state dict", "state dicts are under a.b"),
        ("epoch.x", "has no key 'x' under epoch", None),
    ):
        with pytest.raises(InputError, match=said) as caught:
            find_weights(content, FILE, key=key)
        assert caught.value.hint == hint
    with pytest.raises(CheckpointError, match="no state dict: its keys are last, epoch") as caught:
        find_weights({"last": content["last"], "epoch": 3}, FILE)
    assert caught.value.hint == "choose one: last.model"


def test_our_own_checkpoints_are_read(tmp_path: Path) -> None:
    weights = state("small-cnn")
    save_file(prefixed("model/", weights) | {"trainer/sums": torch.zeros(3)}, tmp_path / "last.safetensors")
    with pytest.warns(GambesonWarning, match="model was taken, not trainer"):
        found = fit_names(read_weights(tmp_path / "last.safetensors"), network("small-cnn", 1), FILE)
    assert all(torch.equal(found.weights[key], t) for key, t in weights.items())
    assert not found.renamed


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_no_code_of_a_file_runs(old: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "f.pth", tmp_path / "executed"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Bomb(mark)}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(
        CheckpointError, match=r"running code that it names \((posix|nt)\.mkdir\), which is refused"
    ) as e:
        read_weights(file)
    assert "torch.save(c['state_dict'], 'weights.pt')" in str(e.value.hint)
    assert not mark.exists()
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_weights(file)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "noise"])
def test_damaged_files_are_named(ending: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"f.{ending}"
    weights = {"a": torch.zeros(1000)}
    torch.save(weights, file) if ending == "pt" else save_file(weights, file)
    whole = file.read_bytes()
    changed = {"empty": b"", "text": b"hello there", "truncated": whole[: len(whole) // 2], "noise": bytes(range(256))}
    file.write_bytes(changed[kind])
    with pytest.raises(CheckpointError, match=re.escape(f"{file} is not a whole ")) as caught:
        read_weights(file)
    assert f"({len(changed[kind]):,} bytes)" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, {}, {"a": torch.zeros(1), "epoch": 3}], ids=str)
def test_a_file_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "f.bin")
    with pytest.raises(CheckpointError, match=r"no state dict|holds a list") as caught:
        read_weights(tmp_path / "f.bin")
    assert "state_dict()" in str(caught.value.hint)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="there is no file") as caught:
        read_weights(tmp_path)
    assert caught.value.hint == "name a file in its checkpoints folder"
