"""Every check has a model or data that it must find, and healthy ones that it must let pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import GambesonWarning, InputError
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Task
from gambeson.data import load
from gambeson.evaluation import CHECKS, Diagnosis, Finding, evaluate, examine, require_healthy
from gambeson.evaluation.doctor import kept
from gambeson.models import create
from gambeson.models.normalize import Normalize

N = 32
EPS = Linf(0.1)
TASK = Task(num_classes=3, channels=1, size=8, mean=(0.5,), std=(0.25,))
X = torch.rand((N, 1, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def healthy(*, normalise: bool = True) -> nn.Sequential:
    """A small network whose three classes all occur, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            Normalize(TASK) if normalise else nn.Identity(),
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(256, 3),
        )
        with torch.no_grad():
            net(X)  # BatchNorm's statistics
            net.eval()[-1].bias.sub_(net(X).mean(0))
    return net


def labels(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X).argmax(1)


class After(nn.Module):
    """A healthy network with something done to its logits or to its images."""

    def __init__(
        self, output: Callable[[Tensor], Any] = lambda z: z, first: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.net, self.output, self.first = healthy(), output, first

    def forward(self, x: Tensor) -> Any:
        return self.output(self.net(self.first(x)))


class BatchStatistics(nn.Module):
    """BatchNorm that is told to train, whatever the mode."""

    def __init__(self, track: bool) -> None:
        super().__init__()
        self.net = healthy(normalise=False)
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))
        self.track = track

    def forward(self, x: Tensor) -> Tensor:
        buffers = (self.running_mean, self.running_var) if self.track else (None, None)
        logits: Tensor = self.net(nn.functional.batch_norm(x, *buffers, training=True))
        return logits


class Stepped(nn.Module):
    """The last forwards are remembered in a buffer, and move the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = healthy()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        logits: Tensor = self.net(x) + self.calls * torch.tensor([1.0, 0.0, 0.0])
        return logits


class Blind(nn.Module):
    """Gradients stop here."""

    def __init__(self) -> None:
        super().__init__()
        self.net = healthy()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class Constants(nn.Module):
    """Normalises by itself, with plain numbers, what then goes into a network that normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.std, self.net = [0.5], [0.25], healthy()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x - self.mean[0]) / self.std[0])
        return logits


class Moody(nn.Module):
    """Computes something else in training mode, without any module that is known for it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = healthy(), factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x) * (self.factor if self.training else 1)
        return logits


def training(model: nn.Module, *, net: bool = False) -> nn.Module:
    model.train()
    for child in model.children():
        child.train(net)
    return model


def untracked() -> nn.Module:
    net = healthy()
    net[2] = nn.BatchNorm2d(4, track_running_stats=False)
    return net.eval()


def constant() -> nn.Module:
    net = healthy()
    nn.init.zeros_(net[-1].weight)
    return net


def nan_at(rows: int) -> Callable[[Tensor], Tensor]:
    """The gradient of sqrt at 0 is infinite, times zero is NaN; the logits stay as they are."""
    bright = X.mean((1, 2, 3)).sort().values[-rows]

    def output(x: Tensor) -> Tensor:
        shut = (x.mean((1, 2, 3), keepdim=True) < bright).float()
        return x + torch.sqrt(0 * x[:, :, :1, :1] + shut) - shut

    return output


GRADIENTS = {"gradient (ce)": "error", "gradient (margin)": "error"}
BROKEN: dict[str, tuple[Callable[[], nn.Module], dict[str, str], str]] = {
    "softmax": (lambda: After(lambda z: z.softmax(1)), {"probabilities": "error"}, "every row lies in [0, 1] and sums"),
    "tuple": (lambda: After(lambda z: (z, z)), {"output": "error"}, "logits of shape (32, 3), got a tuple"),
    "classes": (lambda: After(lambda z: z[:, :2]), {"output": "error"}, "shape (32, 3), got (32, 2)"),
    "argmax": (lambda: After(lambda z: (z > 0).long()), {"output": "error"}, "must give logits, got torch.int64"),
    "in place": (lambda: After(first=lambda x: x.sub_(0.1)), {"output": "error"}, "writes into the images"),
    "nan logits": (lambda: After(lambda z: z * torch.nan), {"finite": "error"}, "of 32 of 32 images are NaN"),
    "noise": (lambda: After(lambda z: z + 0.1 * torch.randn_like(z)), {"randomness": "warn"}, "differ by up to"),
    "smoothing": (
        lambda: After(first=lambda x: x + 0.5 * torch.randn_like(x)),
        {"randomness": "warn", "normalisation": "warn"},
        "not images in [0, 1]",
    ),
    "batch statistics": (lambda: BatchStatistics(track=False), {"batch": "error"}, "with the other images"),
    "moving statistics": (
        lambda: BatchStatistics(track=True),
        {"batch": "error", "buffers": "warn"},
        "changes running_mean, running_var",
    ),
    "untracked": (untracked, {"batch": "error"}, "without it are 2"),
    "mean of the batch": (lambda: After(lambda z: z - z.mean(0)), {"batch": "error"}, "with the other images"),
    "squeeze": (lambda: After(lambda z: z.squeeze()), {"batch": "error"}, "gives shape (3,) instead of (1, 3)"),
    "not alone": (
        lambda: After(lambda z: z if len(z) > 1 else nn.BatchNorm1d(3)(z)),
        {"batch": "error"},
        "cannot be given a single image: ValueError: Expected more than 1 value",
    ),
    "another alone": (
        lambda: After(lambda z: z if len(z) > 1 else 2 * z),
        {"batch": "error"},
        "with the other images",
    ),
    "slightly another alone": (
        lambda: After(lambda z: z if len(z) > 1 else 1.01 * z),
        {"batch": "warn"},
        "the logits of an image alone differ by",
    ),
    "counter": (Stepped, {"randomness": "warn", "buffers": "warn"}, "changes calls"),
    "no grad": (Blind, GRADIENTS, "is zero at 32 of 32 images"),
    "detach": (lambda: After(first=lambda x: x.detach()), GRADIENTS, "leaves autograd"),
    "round": (lambda: After(first=lambda x: (4 * x).round() / 4), GRADIENTS, "(BPDA)"),
    "saturated": (lambda: After(lambda z: 1e6 * z), {"gradient (ce)": "error"}, "the softmax saturates"),
    "nan gradient": (lambda: After(first=nan_at(N)), GRADIENTS, "is NaN or infinite at 32 of 32 images"),
    "two nan gradients": (lambda: After(first=nan_at(2)), dict.fromkeys(GRADIENTS, "warn"), "infinite at 2 of 32"),
    "no derivative": (
        lambda: After(first=lambda x: x.mul_(1)),
        GRADIENTS,
        "cannot be differentiated",
    ),
    "constant": (constant, dict.fromkeys(GRADIENTS, "warn"), "do not change inside the ball"),
    "twice": (lambda: nn.Sequential(Normalize(TASK), healthy()), {"normalisation": "error"}, "keep one of 0, 1.0"),
    "twice, hidden": (lambda: After(first=lambda x: 2 * x - 1), {"normalisation": "error"}, "by 2 and shifted by -1"),
    "twice, by hand": (Constants, {"normalisation": "error"}, "by 4 and shifted by -2"),
    "grey levels": (
        lambda: After(first=lambda x: 255 * x),
        {"normalisation": "error", "gradient (ce)": "warn"},
        "by 255 and shifted by 0;",
    ),
    "other constants": (
        lambda: nn.Sequential(Normalize(Task(**{**vars(TASK), "std": (0.01,)})), healthy(normalise=False)),
        {"normalisation": "warn"},
        "should be near 0 and 1",
    ),
    "training": (lambda: training(healthy(), net=True), {"mode": "error"}, "2 BatchNorm or Dropout modules (2, 4)"),
    "moody": (lambda: training(Moody(2)), {"mode": "error"}, "the logits are not those of evaluation mode"),
    "only a flag": (lambda: training(Moody(1)), {"mode": "warn"}, "1 modules are in training mode, to no effect"),
    "float64": (lambda: healthy().double(), {"types": "warn"}, "float64"),
}


MODES = ("training", "moody", "only a flag")


def broken(name: str) -> nn.Module:
    model = BROKEN[name][0]()
    return model if name in MODES else model.eval()


def look(model: nn.Module, x: Tensor = X, y: Tensor | None = None, **settings: Any) -> Diagnosis:
    settings = {"threat": EPS, "num_classes": 3, **settings}
    return examine(model, x, torch.arange(len(x)) % 3 if y is None else y, **settings)


def trouble(found: Diagnosis, *, but: tuple[str, ...] = ("accuracy",)) -> dict[str, str]:
    """What is not in order."""
    return {f.check: f.level for f in found.findings if f.level != "pass" and f.check not in but}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found_and_nothing_else(name: str) -> None:
    _, expected, words = BROKEN[name]
    found = look(broken(name))
    assert trouble(found) == expected
    assert words in " ".join(str(f) for f in found.findings if f.level != "pass")
    assert all(f.hint for f in found.errors)
    assert set(expected) <= set(CHECKS)


@pytest.mark.parametrize(
    ("name", "task", "width", "images"),
    [
        ("small-cnn", TASK, None, 32),
        ("resnet18", Task(num_classes=3, channels=3, size=8, mean=(0.5,) * 3, std=(0.25,) * 3), 8, 16),
        ("vit-small", Task(num_classes=3, channels=3, size=8, mean=(0.5,) * 3, std=(0.25,) * 3), None, 4),
    ],
)
def test_networks_of_the_zoo_are_healthy(name: str, task: Task, width: int | None, images: int) -> None:
    model = create(name, task, width=width, seed=0).eval()
    x = torch.rand((images, task.channels, 8, 8), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x).argmax(1)
    found = look(model, x, y)
    assert trouble(found, but=()) == {}
    assert found.n == images
    assert [f.check for f in found.findings] == list(CHECKS)
    require_healthy(found)


def test_what_is_unusual_and_right_passes() -> None:
    twins = [healthy(), healthy()]

    class Ensemble(nn.Module):
        """Each member normalises, once."""

        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(twins)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([m(x).log_softmax(1) for m in self.members]).mean(0)

    class Replaced(nn.Module):
        """Rounds, with the backward of the identity."""

        def __init__(self) -> None:
            super().__init__()
            self.net = healthy()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x + ((4 * x).round() / 4 - x).detach())
            return logits

    def centred(z: Tensor) -> Tensor:
        """Rows that sum to 1, and are no probabilities."""
        return 9 * (z - z.mean(1, keepdim=True)) + 1 / 3

    for model in (Ensemble(), Replaced(), After(lambda z: z - 100.0), After(lambda z: 1e-4 * z), After(centred)):
        assert trouble(look(model.eval(), y=labels(model.eval()))) == {}


@pytest.mark.parametrize(
    ("x", "y", "expected", "words"),
    [
        (X / 255, None, {"images": "error"}, "divided by 255 twice"),
        ((X > 0.5).to(torch.uint8), None, {"images": "error"}, "multiply them by 255"),
        (2 * X - 1, None, {"images": "error"}, "pass unnormalised images"),
        (255 * X, None, {"images": "error"}, "divide by 255"),
        (X.masked_fill(X > 0.99, torch.nan), None, {"images": "error"}, "NaN or infinite pixels"),
        (X, torch.full((N,), 3), {"labels": "error"}, "integers in [0, 3)"),
        (2 * X - 1, torch.full((N,), 3), {"images": "error", "labels": "error"}, "integers in [0, 3)"),
        (X, torch.zeros(N - 1), {"images": "error"}, "labels (N,)"),
        (X[0], torch.zeros(1), {"images": "error"}, "need images (N, C, H, W)"),
        (X[:0], torch.zeros(0), {"images": "error"}, "no examples"),
    ],
)
def test_bad_examples_are_found_and_the_model_is_not_run(
    x: Tensor, y: Tensor | None, expected: dict[str, str], words: str
) -> None:
    class Untouched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model was run")

    found = look(Untouched().eval(), x, y)
    assert trouble(found) == expected
    assert words in " ".join(map(str, found.errors))
    assert found.n == 0


def test_half_precision_is_an_error_and_is_not_run() -> None:
    found = look(healthy().half().train())
    assert trouble(found) == {"types": "error", "mode": "error"}
    assert (found.n, found.of("types").evidence) == (0, {"tensors": {"float16": 5}})  # type: ignore[union-attr]
    mixed = nn.ModuleList([healthy(), nn.Linear(1, 1).bfloat16()]).eval()
    mixed.forward = mixed[0].forward  # type: ignore[method-assign]
    assert trouble(look(mixed)) == {"types": "warn"}


class Loose(Linf):
    """A threat of somebody else, which does not check its budget."""

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("threat", "shape", "level", "words"),
    [
        (Linf(8 / 255), (3, 32, 32), "pass", ""),
        (Linf(0.3), (1, 28, 28), "pass", ""),
        (L2(0.5), (3, 32, 32), "pass", ""),
        (L2(2.0), (1, 28, 28), "warn", "2 grey levels are eps=2/255"),
        (L2(3.0), (3, 224, 224), "pass", ""),
        (Linf(torch.full((N, 1, 1, 1), 0.1)), (1, 8, 8), "pass", ""),
        (Linf(0.5), (3, 32, 32), "warn", "an L2 budget, such as 0.5 on CIFAR, needs the norm L2"),
        (Linf(8 / 255 / 255), (3, 32, 32), "warn", "eight grey levels are eps=8/255"),
        (L2(8 / 255), (3, 32, 32), "warn", "is it an Linf budget?"),
        (L2(8.0), (3, 32, 32), "warn", "8 grey levels are eps=8/255"),
        (L2(30.5), (3, 32, 32), "warn", "the same grey one"),
        (Loose(8.0), (3, 32, 32), "error", "8 grey levels are eps=8/255"),
        (Loose(0.0), (3, 32, 32), "error", "no fraction"),
        (Loose(float("nan")), (3, 32, 32), "error", "no fraction"),
    ],
)
def test_the_unit_of_the_budget(threat: Threat, shape: tuple[int, ...], level: str, words: str) -> None:
    from gambeson.evaluation.structure import examine_budget

    found = examine_budget(threat, shape)
    assert found.level == level
    assert words in str(found)


def test_accuracy_is_compared_with_chance() -> None:
    model = healthy()
    y = labels(model)
    assert len(y.unique()) == 3

    def found(y: Tensor, **settings: Any) -> Finding:
        accuracy = look(model, y=y, **settings).of("accuracy")
        assert accuracy is not None
        return accuracy

    assert found(y).level == "pass"
    order = found((y + 1) % 3)
    assert (order.level, order.evidence["correct"]) == ("warn", 0)
    assert "the classes are in another order" in str(order)
    assert "normalisation and the order" in str(found(y[torch.randperm(N, generator=torch.Generator().manual_seed(0))]))
    assert found((y + 1) % 3, images=15).level == "pass"  # too few
    nn.init.zeros_(model[-1].weight)
    assert "all images are class" in str(found(torch.arange(N) % 3))


def test_the_softmax_is_not_blamed_for_what_blocks_the_margin_too() -> None:
    found = look(After(lambda z: 1e6 * z, first=lambda x: (4 * x).round() / 4).eval())
    assert trouble(found) == GRADIENTS
    assert "(BPDA)" in str(found.of("gradient (ce)"))


def test_without_an_attack_no_gradient_is_needed() -> None:
    assert trouble(look(Blind().eval(), losses=())) == {}
    saturated = After(lambda z: 1e6 * z).eval()
    assert trouble(look(saturated, losses=["margin"])) == {}
    with pytest.raises(InputError, match="unknown loss 'dlr'"):
        look(saturated, losses=["dlr"])
    with pytest.raises(InputError, match="at least 1 image"):
        look(saturated, images=0)


@pytest.mark.parametrize("name", ["training", "moving statistics", "counter", "noise", "round", "twice"])
@pytest.mark.parametrize("sets_mode", [True, False])
def test_the_model_and_the_generator_are_as_before(name: str, sets_mode: bool) -> None:
    model = broken(name)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    first.requires_grad_(False)

    def state() -> list[Any]:
        return [
            [(name, t.data_ptr(), t.clone()) for name, t in [*model.named_buffers(), *model.named_parameters()]],
            [(m.training, len(m._forward_pre_hooks)) for m in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()],
            torch.get_rng_state().tolist(),
        ]

    before, x = state(), X.clone()
    look(model, sets_mode=sets_mode)
    after = state()
    assert before[1:] == after[1:]
    for (old, place, value), (new, where, now) in zip(before[0], after[0], strict=True):
        assert (old, place) == (new, where)
        assert torch.equal(value, now)
    assert torch.equal(x, X)


def test_buffers_that_are_not_numbers_are_compared_too() -> None:
    model = nn.BatchNorm2d(1)
    model.running_mean.fill_(torch.nan)  # type: ignore[union-attr]
    with kept(model, torch.device("cpu")) as changed:
        assert changed() == []
        model.running_var.fill_(torch.nan)  # type: ignore[union-attr]
        assert changed() == ["running_var"]
    assert changed() == []


def test_it_takes_a_few_forwards() -> None:
    sizes: list[int] = []

    def count(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    look(After(first=count).eval(), X.repeat(10, 1, 1, 1), torch.arange(320) % 3)
    assert sizes == [64, 64, 64, 1]


def test_images_are_taken_evenly_from_all() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x

    look(After(first=watch).eval(), images=3)
    assert torch.equal(seen[0], X[[0, 16, 31]])
    assert look(After(), images=500).n == N


def test_one_image_is_enough() -> None:
    assert trouble(look(healthy(), X[:1])) == {}
    assert trouble(look(untracked(), X[:1])) == {"batch": "error"}


def test_a_diagnosis_goes_into_json() -> None:
    for name in ("nan gradient", "twice", "not alone", "nan logits"):
        found = look(broken(name))
        record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert record["errors"] == len(found.errors) >= 1
        assert [row["check"] for row in record["findings"]] == [f.check for f in found.findings]


def test_all_errors_are_said_at_once() -> None:
    found = Diagnosis(
        (
            Finding("a", "error", "one is wrong", "do this"),
            Finding("b", "pass", "fine"),
            Finding("c", "warn", "perhaps", "hm"),
            Finding("d", "error", "two is wrong", "do this"),
        ),
        5,
    )
    with pytest.raises(InputError) as error:
        require_healthy(found)
    assert (error.value.message, error.value.hint) == ("one is wrong; two is wrong", "do this")
    with pytest.raises(InputError, match=r"^two is wrong"):
        require_healthy(found, apart_from=["a"])
    require_healthy(found, apart_from=["a", "d"])
    assert [f.check for f in found.warnings] == ["c"]


# Before an evaluation.


def run(model: nn.Module, attacks: list[str], **settings: Any) -> list[bool]:
    report = evaluate(model, X, torch.arange(N) % 3, attacks, EPS, num_classes=3, **settings)
    return torch.stack(list(report.outcomes.values())).flatten().tolist()


def test_an_evaluation_refuses_all_that_is_wrong_at_once() -> None:
    model = After(lambda z: (z - z.mean(0)).softmax(1))
    with pytest.raises(InputError, match=r"probabilities.*; .*with the other images of the batch"):
        run(model, [])
    assert len(run(model, [], checks=False)) == N


def test_an_evaluation_needs_the_gradients_that_its_attacks_follow() -> None:
    saturated = After(lambda z: 1e6 * z)
    for attacks in (["fgsm", "mma-2"], ["fgsm"]):
        with pytest.raises(InputError, match=r"cross-entropy is zero at 7 of 32 images, .*\n.*softmax saturates"):
            run(saturated, attacks)
    run(saturated, ["mma-2"])
    with pytest.raises(InputError, match="margin loss is zero"):
        run(Blind(), ["mm3"])
    run(Blind(), [])


def test_an_evaluation_of_a_random_model_is_of_one_draw() -> None:
    random = broken("noise")
    with pytest.warns(GambesonWarning, match="the accuracy is that of one draw; attack the expectation") as told:
        run(random, ["fgsm"])
    assert len(told) == 1


@pytest.mark.filterwarnings("ignore::gambeson.core.errors.GambesonWarning")
@pytest.mark.parametrize("name", ["noise", "training", "counter", "nan logits", "constant"])
def test_the_checks_change_no_result(name: str) -> None:
    def result(checks: bool) -> list[bool]:
        torch.manual_seed(3)
        return run(broken(name), ["fgsm", "pgd-2"], checks=checks)

    assert result(True) == result(False)


def test_of_stored_images_a_few_are_looked_at(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gambeson.evaluation.structure.FEW", 5)
    test = load(f"folder:{photos}", size=8, val_fraction=0, stream="on", workers=0).train
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).eval()
    found = examine(model, test.x, test.y, Linf(0.1), num_classes=3, images=4)
    assert found.n == 4
    assert next(f for f in found.findings if f.check == "images").message.endswith("in 5 of them")
    assert not found.errors
