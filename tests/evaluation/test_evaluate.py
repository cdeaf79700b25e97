import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import MMA, PGD, MarginAPGD, Uniform, fgsm
from gambeson.core.errors import GambesonWarning, InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch
from gambeson.data.catalog import load
from gambeson.data.loader import to_unit
from gambeson.data.splits import Examples
from gambeson.data.stored import StoredImages
from gambeson.evaluation import ATTACKS, Report, evaluate, parse_attack, require_attack, wilson

Net = Callable[..., nn.Sequential]
Data = Callable[..., Examples]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]
EPS = 0.1
module = import_module("gambeson.evaluation.evaluate")  # the package's attribute of this name is the function


class Threshold(nn.Module):
    """Class 1 where the first pixel is above 1/2; every other pixel is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        z = self.slope * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([-z, z], 1)


def pixels(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


# Distances from the threshold 0.5: wrong, and right by 0.02, 0.2 and 0.3.
X, Y = pixels(0.4, 0.52, 0.7, 0.2), torch.tensor([1, 1, 1, 0])


def threshold(attacks: list[str], x: Tensor = X, y: Tensor = Y, **settings: Any) -> Report:
    return evaluate(Threshold(), x, y, attacks, Linf(EPS), num_classes=2, **settings)


def test_the_outcomes_on_a_model_whose_worst_case_is_known() -> None:
    report = threshold(["fgsm", "pgd-10", "pgd-5-2"])
    assert list(report.outcomes) == ["clean", "fgsm", "pgd-10", "pgd-5-2"]
    assert report.outcomes["clean"].tolist() == [False, True, True, True]
    for name in ("fgsm", "pgd-10", "pgd-5-2"):
        assert report.outcomes[name].tolist() == [False, False, True, True]
    assert report.accuracy("clean") == wilson(3, 4)
    assert report.worst() == report.accuracy("fgsm") == wilson(2, 4)
    assert report.per_class("clean") == [wilson(1, 1), wilson(2, 3)]


def test_the_clean_outcome_comes_first_and_always_and_names_are_not_repeated() -> None:
    assert list(threshold([]).outcomes) == ["clean"]
    assert list(threshold(["fgsm", "clean", "fgsm"]).outcomes) == ["clean", "fgsm"]


def cheat(move: Callable[[Tensor], Tensor]) -> Callable[[str], Any]:
    def attack(model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
        return move(batch.x)

    return lambda name: None if name == "clean" else attack


@pytest.mark.parametrize(
    "move", [lambda x: 1 - x, lambda x: torch.full_like(x, -5.0), lambda x: torch.full_like(x, 7.0)]
)
@pytest.mark.parametrize("threat", [Linf(EPS), L2(0.15)])
def test_an_attack_that_leaves_the_ball_does_not_win(
    threat: Threat, move: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "parse_attack", cheat(move))
    report = evaluate(Threshold(), X, Y, ["cheat"], threat, num_classes=2)
    assert report.outcomes["cheat"].tolist()[2:] == [True, True]  # further than the ball from the threshold
    assert not report.outcomes["cheat"][0]


def test_an_attack_outside_the_box_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    class Outside(Threshold):
        """Wrong on images that are none."""

        def forward(self, x: Tensor) -> Tensor:
            valid = ((x >= 0) & (x <= 1)).flatten(1).all(1, keepdim=True)
            return torch.where(valid, super().forward(x), -super().forward(x))

    monkeypatch.setattr(module, "parse_attack", cheat(lambda x: x + 0.05))
    report = evaluate(Outside(), pixels(0.99, 0.97), torch.tensor([1, 1]), ["cheat"], Linf(EPS), num_classes=2)
    assert report.outcomes["cheat"].all()


@pytest.mark.parametrize(("threat", "factor"), [(Linf(EPS), torch.nan), (L2(0.01), torch.nan), (L2(0.01), torch.inf)])
def test_an_attack_that_returns_no_images_does_not_win(
    threat: Threat, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "parse_attack", cheat(lambda x: x * factor))
    report = evaluate(Threshold(), X, Y, ["cheat"], threat, num_classes=2)
    assert torch.equal(report.outcomes["cheat"], report.outcomes["clean"])
    assert report.settings["failed"] == {"cheat": 3}  # the fourth is wrong without attack


def test_an_infinite_perturbation_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "parse_attack", cheat(lambda x: x * -torch.inf))
    report = threshold(["cheat"])
    assert report.outcomes["cheat"].tolist() == [False, False, True, True]
    assert report.settings["failed"] == {}


def test_a_nan_gradient_is_refused_and_does_not_make_a_robust_model_look_broken() -> None:
    class Rooted(Threshold):
        """The gradient of sqrt at 0 is infinite, times zero is NaN; the logits are those of `Threshold`."""

        def forward(self, x: Tensor) -> Tensor:
            nothing = torch.sqrt(0 * x[:, 0, 0, 0])
            return super().forward(x) + nothing[:, None]

    arguments = (Rooted(), X, Y, ["pgd-3"], L2(1e-3))
    with pytest.raises(InputError, match="cross-entropy is NaN or infinite at 4 of 4 images"):
        evaluate(*arguments, num_classes=2)
    assert evaluate(Rooted(), X, Y, [], L2(1e-3), num_classes=2).outcomes["clean"].any()  # needs no gradient
    report = evaluate(*arguments, num_classes=2, checks=False)
    assert report.outcomes["clean"].tolist() == report.outcomes["pgd-3"].tolist() == [False, True, True, True]
    assert report.settings["failed"] == {"pgd-3": 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_wrong(value: float) -> None:
    class Broken(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            z[:, 1 if value > 0 else 0] = value  # the right class still has the largest logit
            return z

    assert not evaluate(Broken(), X[1:3], Y[1:3], ["fgsm"], Linf(EPS), num_classes=2).outcomes["clean"].any()


def test_clean_mistakes_are_mistakes_under_every_attack_and_are_not_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def attack(model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
        seen.append(batch.index.tolist())
        return batch.x + 0.1  # would put the first image right

    monkeypatch.setattr(module, "parse_attack", lambda name: None if name == "clean" else attack)
    assert threshold(["kind"]).outcomes["kind"].tolist() == [False, True, True, True]
    assert seen == [[1, 2, 3]]


def test_attacked_images_are_found_again_across_batches(tiny_net: Net, tiny_examples: Data) -> None:
    net, data = tiny_net().eval(), tiny_examples(23)
    with torch.no_grad():
        y = net(to_unit(data.x)).argmax(1)
    y[::4] = (y[::4] + 1) % 3  # some clean mistakes in every batch
    report = evaluate(net, data.x, y, ["fgsm"], Linf(0.2), num_classes=3, batch_size=7)
    expected = []
    for i in range(23):
        alone = evaluate(net, data.x[i : i + 1], y[i : i + 1], ["fgsm"], Linf(0.2), num_classes=3)
        expected.append(bool(alone.outcomes["fgsm"]))
    assert report.outcomes["fgsm"].tolist() == expected
    assert 0 < sum(expected) < int(report.outcomes["clean"].sum())


def test_the_same_call_gives_the_same_report_and_the_seed_matters() -> None:
    x, y = pixels(*torch.linspace(0.5, 0.6, 50).tolist()), torch.ones(50, dtype=torch.int64)

    def outcome(seed: int) -> list[bool]:
        torch.manual_seed(seed + 100)  # the global generator plays no part
        return threshold(["pgd-1"], x, y, batch_size=20, seed=seed).outcomes["pgd-1"].tolist()

    assert outcome(0) == outcome(0)
    assert len({tuple(outcome(seed)) for seed in range(5)}) > 1


def test_an_attack_does_not_depend_on_which_others_run() -> None:
    together, alone = threshold(["fgsm", "pgd-3", "pgd-2"]), threshold(["pgd-2"])
    assert torch.equal(together.outcomes["pgd-2"], alone.outcomes["pgd-2"])


def test_random_starts_are_addressed_by_attack_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def attack(model: nn.Module, batch: Batch, threat: Threat, rng: torch.Generator) -> Tensor:
        seeds.append(rng.initial_seed())
        return batch.x

    monkeypatch.setattr(module, "parse_attack", lambda name: None if name == "clean" else attack)
    threshold(["a", "b"], batch_size=2, seed=3)
    streams = Streams(3)
    assert seeds == [streams.number(f"evaluate/{name}", k) for k in range(2) for name in "ab"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_judged_in_evaluation_mode_and_comes_back_as_it_was(
    training: bool, tiny_net: Net, tiny_examples: Data, snapshot: Snapshot
) -> None:
    net, data = tiny_net().train(training), tiny_examples()
    net[1].train(not training)
    before, modes = snapshot(net), [m.training for m in net.modules()]
    report = evaluate(net, data.x, data.y, ["pgd-2"], Linf(EPS), num_classes=3)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(report.outcomes["clean"], net.eval()(to_unit(data.x)).argmax(1) == data.y)


def test_bytes_and_fractions_are_the_same_images(tiny_net: Net, tiny_examples: Data) -> None:
    net, data = tiny_net(), tiny_examples()
    a, b = (evaluate(net, x, data.y, ["fgsm"], Linf(0.02), num_classes=3) for x in (data.x, data.x / 255))
    assert all(torch.equal(a.outcomes[name], b.outcomes[name]) for name in a.outcomes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_float_type_are_evaluated(dtype: torch.dtype, tiny_net: Net, tiny_examples: Data) -> None:
    data = tiny_examples()
    report = evaluate(tiny_net(), (data.x / 255).to(dtype), data.y, ["fgsm"], Linf(0.02), num_classes=3)
    assert {name: len(correct) for name, correct in report.outcomes.items()} == dict.fromkeys(
        ("clean", "fgsm"), len(data.y)
    )


def test_labels_of_another_integer_type_are_evaluated() -> None:
    assert threshold(["fgsm"], y=Y.to(torch.int32)).outcomes["fgsm"].tolist() == [False, False, True, True]


def test_a_budget_per_example_is_evaluated_or_refused_before_any_work() -> None:
    done: list[int] = []
    threat = Linf(torch.full((4, 1, 1, 1), EPS))
    try:
        evaluate(Threshold(), X, Y, ["fgsm"], threat, num_classes=2, progress=done.append)
    except InputError:
        assert not done


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (pixels(0.1, float("nan"), float("inf")), Y[:3], "2 images have NaN or infinite pixels, the first is number 1"),
        (pixels(-0.2, 0.5), Y[:2], r"must lie in \[0, 1\], got values from -0.2 to 0.5\n.*unnormalised"),
        (pixels(0.0, 255.0), Y[:2], r"got values from 0 to 255\nhint: divide by 255"),
        (X, torch.tensor([0, 1, 2, 0]), r"labels must be integers in \[0, 2\), got .* from 0 to 2"),
        (X, torch.tensor([0, 1, -1, 0]), r"labels must be integers in \[0, 2\)"),
        (X, Y.float(), "labels must be integers"),
        (X, Y[:3], r"need images \(N, C, H, W\) and labels \(N,\), got \(4, 1, 2, 2\) and \(3,\)"),
        (X[:, 0], Y, "need images"),
        (X[:0], Y[:0], "no examples to evaluate"),
        (X.to(torch.int64), Y, "uint8 or float, got torch.int64"),
    ],
)
def test_bad_examples_are_refused_before_any_work(x: Tensor, y: Tensor, message: str) -> None:
    class Untouched(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model was run")

    with pytest.raises(InputError, match=message):
        evaluate(Untouched(), x, y, ["fgsm"], Linf(EPS), num_classes=2)


def test_a_model_for_another_number_of_classes_is_refused() -> None:
    with pytest.raises(InputError, match=r"logits of shape \(4, 5\), got \(4, 2\)\n.*another number of classes"):
        evaluate(Threshold(), X, Y, [], Linf(EPS), num_classes=5)


def test_an_unknown_attack_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="unknown attack 'pdg'"):
        threshold(["fgsm", "pdg"], x=X * 100)


def test_attack_names() -> None:
    assert parse_attack("clean") is None
    assert parse_attack(" FGSM ") == fgsm()
    expected = PGD(steps=50, rel_step_size=0.25, start=Uniform(), restarts=10, freeze_fooled=True)
    assert parse_attack("pgd-50-10") == expected
    assert parse_attack("pgd-7") == PGD(steps=7, rel_step_size=0.25, start=Uniform(), freeze_fooled=True)
    assert parse_attack("mma-20") == MMA(targets=3, steps=20)
    assert parse_attack("MMA-7") == MMA(targets=3, steps=7)
    assert parse_attack("mm3") == MarginAPGD(targets=3, steps=20)
    assert parse_attack("mm9") == MarginAPGD(targets=9, steps=20)
    assert parse_attack(" MM+") == MarginAPGD(targets=9, steps=100)
    assert list(ATTACKS) == [
        *("clean", "fgsm", "pgd-K", "pgd-K-R", "mma-K", "mm3", "mm9", "mm+"),
        *("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "md", "square"),
        *("autoattack", "autoattack-plus", "autoattack-rand", "aa-preview"),
    ]


WRONG_NAMES = ["pgd", "pgd-0", "pgd-10-0", "pgd-1-2-3", "pgd-x", "pgd--1", "", "cw"]
WRONG_NAMES += ["mma", "mma-0", "mma-20-2", "mm", "mm-20", "mm3-20", "mm4", "mm++", "fgsm-3"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_other_attack_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown attack") as error:
        parse_attack(name)
    assert "pgd-50-10" in str(error.value.hint)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pdg-50", "did you mean pgd-50?"),
        ("auto-attack", "did you mean autoattack?"),
        ("apdg-ce", "did you mean apgd-ce?"),
        ("PDG-50-10", "did you mean pgd-50-10?"),
        ("fgms", "did you mean fgsm?"),
        ("claen", "did you mean clean?"),
        ("mam-20", "did you mean mma-20?"),
        ("mm-20", "did you mean mma-20?"),
        ("mm4", "did you mean mm9 or mm3 or mm+?"),
        ("mma", f"known: {', '.join(ATTACKS)};"),
        ("xyz", f"known: {', '.join(ATTACKS)};"),
    ],
)
def test_an_unknown_attack_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError) as error:
        parse_attack(name)
    assert error.value.hint == f"{near} pgd-50-10 is PGD with 50 steps and 10 restarts"


@pytest.mark.parametrize("name", [*WRONG_NAMES, "pdg-0", "mam-0", "fgms-3", "mn3-1"])
def test_only_what_is_accepted_is_proposed(name: str) -> None:
    with pytest.raises(InputError) as error:
        parse_attack(name)
    proposed = re.match(r"did you mean (.*)\?", str(error.value.hint))
    for other in proposed[1].split(" or ") if proposed else ():
        require_attack(other)


@pytest.mark.parametrize("name", ["mma-4", "mm3", "mm9"])
def test_a_margin_attack_by_name_is_judged_like_any_other(name: str) -> None:
    report = threshold([name])
    assert report.outcomes[name].tolist() == threshold(["pgd-20"]).outcomes["pgd-20"].tolist()


def test_progress_counts_every_image_once_per_attack() -> None:
    done: list[int] = []
    threshold(["fgsm"], batch_size=3, progress=done.append)
    assert done == [3, 3, 1, 1]


def test_a_class_without_examples_has_no_accuracy() -> None:
    report = evaluate(Threshold(), X[1:3], Y[1:3], [], Linf(EPS), num_classes=2, class_names=["dark", "bright"])
    assert report.per_class("clean") == [None, wilson(2, 2)]
    assert report.to_dict()["per_class"]["clean"]["dark"] is None


def test_a_report_goes_into_json_and_back() -> None:
    report = threshold(["fgsm"], class_names=["dark", "bright"], seed=5)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["n"] == 4
    assert (found["attacks"], found["norm"], found["eps"], found["seed"]) == (["clean", "fgsm"], "Linf", EPS, 5)
    assert found["accuracy"]["fgsm"]["value"] == 0.5
    assert found["worst"] == vars(report.worst())
    assert found["per_class"]["clean"]["bright"]["n"] == 3
    assert np.isclose(found["per_class"]["clean"]["bright"]["value"], 2 / 3)


def test_stored_images_are_evaluated_as_those_in_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    monkeypatch.setattr("gambeson.evaluation.structure.FEW", 5)
    decoded = []
    real = StoredImages.decode
    monkeypatch.setattr(StoredImages, "decode", lambda x, *args: decoded.append(len(x)) or real(x, *args))
    found = []
    for how in ("off", "on"):
        test = load(f"folder:{photos}", size=8, val_fraction=0, stream=how, workers=0).train  # type: ignore[arg-type]
        decoded.clear()
        found.append(evaluate(model, test.x, test.y, ["pgd-2"], Linf(EPS), num_classes=3, batch_size=5))
    assert max(decoded) == 5  # never all of them
    assert found[0].to_dict() == found[1].to_dict()
    for name, outcomes in found[0].outcomes.items():
        assert torch.equal(outcomes, found[1].outcomes[name])


def test_an_ensemble_brings_stored_images_into_memory_and_says_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gambeson.data.stored.LARGE", 100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    eager, lazy = (load(f"folder:{photos}", size=8, stream=how, val_fraction=0).test for how in ("off", "on"))
    settings: dict[str, Any] = {"num_classes": 3, "checks": False}
    with pytest.warns(GambesonWarning, match="6 images of .* are decoded into memory at once"):
        found = evaluate(model, lazy.x, lazy.y, ["apgd-ce"], Linf(EPS), **settings)
    expected = evaluate(model, eager.x, eager.y, ["apgd-ce"], Linf(EPS), **settings)
    assert torch.equal(found.outcomes["apgd-ce"], expected.outcomes["apgd-ce"])
