"""The verdict on gradients: positive controls fail, an adversarially trained model passes, and each check alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError, UnhealthyError
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch
from gambeson.data import Splits, load
from gambeson.diagnosis import Masking, diagnose_masking
from gambeson.diagnosis import masking_checks as checks
from gambeson.diagnosis.masking import CHECKS
from gambeson.diagnosis.subject import Attached, Averaged, Rescaled, Subject
from gambeson.engine import Run, Settings, Trainer
from gambeson.methods import Recipe, fgsm, pgd_at
from gambeson.models import create

EPS = Linf(0.2)
N = 80


class Quantised(nn.Module):
    """Images are rounded to seven levels first: a defence without a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((6 * x).round() / 6)


class Noisy(nn.Module):
    """Images get noise first."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.sigma * torch.randn_like(x))


class Detached(nn.Module):
    """The forward leaves autograd."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.detach())


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return -grad


class Reversed(nn.Module):
    """The gradient points the wrong way."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_Reversed.apply(x))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits")


@pytest.fixture(scope="module")
def train(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe, int, float], nn.Module]:
    def build(recipe: Recipe, epochs: int, lr: float) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = create("small-cnn", digits.facts.task)
        settings = Settings(epochs=epochs, lr=lr, probe_every=0, val_every=epochs)
        trainer = Trainer(model, recipe, digits.train, digits.val, digits.facts.task, settings)
        trainer.fit(Run.create(tmp_path_factory.mktemp("masking") / "run", {}))
        return model.eval()

    return build


@pytest.fixture(scope="module")
def robust(train: Callable[[Recipe, int, float], nn.Module]) -> nn.Module:
    return train(pgd_at(eps=0.2, steps=3), 8, 0.1)


def verdict(model: nn.Module, digits: Splits, threat: Threat = EPS, **settings: object) -> Masking:
    """Of the first test images."""
    chosen = {"queries": 200, "steps": (5, 20, 40), **settings}
    return diagnose_masking(model, digits.test.x[:N], digits.test.y[:N], threat, num_classes=10, **chosen)  # type: ignore[arg-type]


def test_an_adversarially_trained_model_passes(robust: nn.Module, digits: Splits) -> None:
    told: list[str] = []
    before = {name: t.clone() for name, t in robust.state_dict().items()}
    found = verdict(robust, digits, listen=lambda evidence: told.append(evidence.check))

    assert found.verdict == "PASS", [e for e in found.evidence if e.verdict != "PASS"]
    assert told == [e.check for e in found.evidence] == [c for c in CHECKS if c not in ("transfer", "randomness")]
    assert all(e.hint is None for e in found.evidence)
    assert 0.2 < found.worst().value < found.accuracy("pgd-5").value < found.accuracy("clean").value
    assert found.accuracy("clean").value > 0.8
    assert all(torch.equal(t, before[name]) for name, t in robust.state_dict().items())
    assert not any(module.training for module in robust.modules())


def test_the_record_is_json(robust: nn.Module, digits: Splits) -> None:
    found = diagnose_masking(
        robust, digits.test.x[:20], digits.test.y[:20], EPS, num_classes=10, queries=10, steps=(1, 2, 3), seed=5
    )
    record = json.loads(json.dumps(found.to_dict()))
    again = diagnose_masking(
        robust, digits.test.x[:20], digits.test.y[:20], EPS, num_classes=10, queries=10, steps=(1, 2, 3), seed=5
    )

    assert record["verdict"] == found.verdict
    assert record["n"] == 20
    assert (record["seed"], record["steps"], record["queries"], record["norm"]) == (5, [1, 2, 3], 10, "Linf")
    assert [e["check"] for e in record["evidence"]] == [e.check for e in found.evidence]
    assert set(record["accuracy"]) == {"clean", "pgd-1", "pgd-2", "pgd-3", "fgsm", "mm3", "md", "square"}
    assert again.to_dict() == found.to_dict()
    assert all(torch.equal(again.outcomes[name], found.outcomes[name]) for name in found.outcomes)


def test_a_quantised_input_fails(robust: nn.Module, digits: Splits) -> None:
    found = verdict(Quantised(robust), digits)
    failed = {e.check for e in found.evidence if e.verdict == "FAIL"}

    assert found.verdict == "FAIL"
    assert {"zero gradient (ce)", "zero gradient (dlr)", "zero gradient (margin)", "gradient direction"} <= failed
    assert "black box" in failed
    assert "BPDA" in (found.of("zero gradient (margin)").hint or "")


def test_scaled_logits_fail(robust: nn.Module, digits: Splits) -> None:
    found = verdict(Rescaled(robust, 1e3).eval(), digits)

    assert found.verdict == "FAIL"
    assert found.of("logit scale").verdict == "FAIL"
    assert found.of("zero gradient (ce)").verdict == "FAIL"
    assert "saturates" in (found.of("zero gradient (ce)").hint or "")
    assert found.of("zero gradient (margin)").verdict == "PASS"
    assert found.of("black box").verdict == "PASS"  # the margin attacks see through it


def test_a_collapsed_model_fails(train: Callable[[Recipe, int, float], nn.Module], digits: Splits) -> None:
    model = train(fgsm(eps=0.4), 12, 0.3)
    found = verdict(model, digits, Linf(0.4))

    assert found.verdict == "FAIL"
    assert found.of("gradient direction").verdict == "FAIL"
    assert found.of("zero gradient (margin)").verdict == "PASS"  # it is there, and misleads
    assert found.accuracy("fgsm").value - found.accuracy("pgd-40").value > 0.2


def test_a_detached_forward_fails_and_is_attacked_without_gradients(robust: nn.Module, digits: Splits) -> None:
    found = verdict(Detached(robust), digits, queries=200)
    assert found.of("zero gradient (ce)").verdict == "FAIL"
    assert found.of("black box").verdict == "FAIL"


def test_a_gradient_that_points_the_wrong_way_fails(robust: nn.Module, digits: Splits) -> None:
    found = verdict(Reversed(robust), digits, queries=200, steps=(1, 10, 20))
    assert found.of("gradient direction").measured["value"] > 0.9
    assert found.of("unbounded budget").verdict == "FAIL"
    assert found.of("zero gradient (ce)").verdict == "PASS"


def test_a_randomised_model_is_judged_by_votes_and_never_passes(robust: nn.Module, digits: Splits) -> None:
    torch.manual_seed(11)
    drawn = torch.rand(2)
    torch.manual_seed(11)
    found, again = (verdict(Noisy(robust, 0.1), digits, queries=50, eot=5, steps=(2, 4, 8)) for _ in range(2))
    assert torch.equal(torch.rand(2), drawn)
    assert again.to_dict() == found.to_dict()
    evidence = found.of("randomness")
    assert evidence.verdict in ("WARN", "FAIL")
    assert evidence.measured["forwards"] == 5
    assert found.settings["eot"] == 5
    assert "pgd-eot" in found.outcomes


def test_transfer_finds_what_a_masked_model_hides(robust: nn.Module, digits: Splits) -> None:
    found = verdict(Quantised(robust), digits, transfer=robust, queries=1, steps=(1, 2, 3))
    healthy = verdict(robust, digits, transfer=robust, queries=1)
    assert found.of("transfer").verdict == "FAIL"
    assert healthy.of("transfer").verdict == "PASS"
    assert healthy.settings["transfer"] is True


def test_images_that_nothing_moves_are_no_sign(digits: Splits) -> None:
    class Hidden(nn.Module):
        """Sees nothing but the first row, where all images are black."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x[:, 0, 0] - 0.3).clamp_min(0))

    x = digits.test.x[:N].clone()
    x[:, :, 0] = 0
    subject = Subject(Hidden(), x, digits.test.y[:N], Linf(0.1), 10, N, Streams(0))
    direction = checks.examine_direction(subject)
    found = checks.examine_zero_gradients(subject)
    assert (direction.verdict, direction.measured["count"]) == ("PASS", 0)
    assert [(e.verdict, e.measured["count"], e.measured["constant"]) for e in found] == [("PASS", 0, N)] * 3


def test_l2(robust: nn.Module, digits: Splits) -> None:
    found = verdict(robust, digits, L2(0.5), queries=50)
    assert found.of("unbounded budget").measured["eps"] == pytest.approx(4.0)  # sqrt(64) / 2
    assert found.of("unbounded budget").verdict == "PASS"
    assert found.of("gradient direction").verdict == "PASS"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (10, 10, 20)}, "must ascend"),
        ({"steps": (0, 10, 20)}, "must ascend"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threat": Linf(torch.full((N, 1, 1, 1), 0.1))}, "one budget for all"),
    ],
)
def test_settings_out_of_range_are_refused(
    robust: nn.Module, digits: Splits, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        verdict(robust, digits, **changes)  # type: ignore[arg-type]


def test_labels_that_no_prediction_has_are_refused(robust: nn.Module, digits: Splits) -> None:
    x = digits.test.x[:8]
    with torch.no_grad():
        wrong = (robust(x.float() / 255).argmax(1) + 1) % 10
    with pytest.raises(UnhealthyError, match="all 8 images are misclassified without attack"):
        diagnose_masking(robust, x, wrong, EPS, num_classes=10)


def test_a_check_that_was_not_made_is_named(robust: nn.Module, digits: Splits) -> None:
    found = diagnose_masking(
        robust, digits.test.x[:8], digits.test.y[:8], EPS, num_classes=10, queries=1, steps=(1, 2, 3)
    )
    with pytest.raises(InputError, match="no check 'transfer' was made"):
        found.of("transfer")


def test_few_images_are_said_to_be_few(robust: nn.Module, digits: Splits) -> None:
    few = checks.examine_images(20)
    assert few.verdict == "WARN"
    assert "16.1 % of all images" in few.message
    assert checks.examine_images(N).verdict == "PASS"


# The rules, on numbers whose verdicts are known.


@pytest.mark.parametrize(
    ("count", "n", "tolerance", "expected"),
    [(0, 100, 0.01, "PASS"), (1, 100, 0.01, "PASS"), (2, 100, 0.01, "WARN"), (6, 100, 0.01, "FAIL")],
)
def test_a_count_fails_where_its_whole_interval_is_above(count: int, n: int, tolerance: float, expected: str) -> None:
    assert checks.verdict_of(count, n, tolerance)[0] == expected


def bools(n: int, *true: range) -> Tensor:
    found = torch.zeros(n, dtype=torch.bool)
    for part in true:
        found[list(part)] = True
    return found


def test_more_steps() -> None:
    def judged(few: Tensor, middle: Tensor, many: Tensor) -> tuple[str, str | None]:
        found = checks.examine_steps({10: few, 40: middle, 160: many}, 100)
        return found.verdict, found.hint

    same = bools(60, range(30))
    assert judged(same, same, same)[0] == "PASS"
    assert judged(bools(60, range(20)), same, bools(60, range(31)))[0] == "PASS"
    late = judged(bools(60, range(20)), same, bools(60, range(35)))
    assert late[0] == "WARN"
    assert "not converged" in (late[1] or "")
    worse = judged(same, bools(60, range(20)), bools(60, range(10)))
    assert worse[0] == "FAIL"
    assert "weaker" in (worse[1] or "")
    assert judged(same, same, bools(60, range(28)))[0] == "WARN"


def test_single_step() -> None:
    slow = bools(60, range(40))
    assert checks.examine_single_step(bools(60, range(25)), slow).verdict == "PASS"
    assert checks.examine_single_step(bools(60, range(18)), slow).verdict == "WARN"
    assert checks.examine_single_step(bools(60, range(5)), slow).verdict == "FAIL"
    nothing = checks.examine_single_step(bools(60, range(5)), bools(60))
    assert nothing.verdict == "PASS"
    assert nothing.measured["n"] == 0


def test_the_steps_of_one_ascent_are_those_of_separate_ones(robust: nn.Module, digits: Splits) -> None:
    """The oracle: PGD from the same start, run anew for every number of steps."""
    from gambeson.attacks.pgd import PGD
    from gambeson.attacks.starts import Uniform
    from gambeson.data.loader import to_unit

    x, y = to_unit(digits.test.x[:40]), digits.test.y[:40]
    subject = Subject(robust, x, y, EPS, 10, 25, Streams(3))
    found = checks.climb(subject, (2, 5, 9))
    for steps, fooled in found.items():
        for number, part in enumerate((slice(0, 25), slice(25, 40))):
            rng = Streams(3).at("masking/pgd", number)
            start = Uniform()(x[part], EPS, rng)
            attack = PGD(steps=steps, rel_step_size=0.25)
            batch = Batch(x[part], y[part], torch.arange(len(y[part])))
            at = attack.climb(
                robust, batch.x, batch.y, lambda z, y=batch.y: nn.functional.cross_entropy(z, y, reduction="none"),
                start, EPS, rng,
            )  # fmt: skip
            with torch.no_grad():
                assert torch.equal(fooled[part], robust(at).argmax(1) != batch.y)


# Models around models.


def test_attached_gives_a_zero_gradient_and_the_same_logits(robust: nn.Module) -> None:
    x = torch.rand(3, 1, 8, 8)
    at = x.clone().requires_grad_()
    logits = Attached(Detached(robust))(at)
    (grad,) = torch.autograd.grad(logits.sum(), at)
    assert torch.equal(grad, torch.zeros_like(x))
    assert torch.equal(logits, robust(x))
    assert torch.equal(Attached(robust)(x), robust(x))


def test_rescaled_and_averaged(robust: nn.Module) -> None:
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(Rescaled(robust, 3.0)(x), 3 * robust(x))
    torch.manual_seed(0)
    found = Averaged(Noisy(robust, 0.1), 4)(x)
    torch.manual_seed(0)
    noisy = Noisy(robust, 0.1)
    torch.testing.assert_close(found, torch.stack([noisy(x) for _ in range(4)]).mean(0))


def test_a_subject_is_wrong_where_most_forwards_are() -> None:
    class Flips(nn.Module):
        """Right in two of three forwards for the first image, in one for the second."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            first, second = (1.0, -1.0)[self.calls % 3 == 0], (1.0, -1.0)[self.calls % 3 != 0]
            return torch.tensor([[first, 0.0], [second, 0.0]])

    subject = Subject(
        Flips(), torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), EPS, 2, 2, Streams(0), votes=3
    )
    assert subject.clean().tolist() == [True, False]
