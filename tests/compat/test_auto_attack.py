"""auto-attack's call style, and its numbers where the package is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import FAB, AutoPGD, Square
from gambeson.compat import AutoAttack
from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.evaluation import autoattack

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]


@pytest.fixture
def setting(curved_net: Net, labelled: Labelled) -> tuple[nn.Sequential, Tensor, Tensor]:
    net = curved_net()
    batch = labelled(net, 30, wrong=3)
    return net, batch.x, batch.y


def short(adversary: AutoAttack) -> AutoAttack:
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 6
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 3
    adversary.square.n_queries = 40
    return adversary


def test_the_standard_call(
    setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, x, y = setting
    adversary = short(AutoAttack(net, norm="Linf", eps=0.012, log_path=tmp_path / "log.txt"))
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    found = adversary.run_standard_evaluation(x, y, bs=8, return_labels=True)
    x_adv, y_adv = found
    searches = (
        AutoPGD(loss="ce", steps=6),
        AutoPGD(loss="dlr-targeted", steps=6, targets=3),
        FAB(steps=6, targets=3),
        Square(queries=40),
    )
    wanted = autoattack(net, x, y, Linf(0.012), num_classes=6, version="custom", attacks=searches, slots=8)
    assert torch.equal(x_adv, wanted.x_adv)
    assert torch.equal(y_adv == y, wanted.robust)
    assert adversary.report is not None
    assert adversary.report.stages[0].fell == wanted.stages[0].fell
    out = capsys.readouterr().out
    assert "initial accuracy: 90.00%" in out
    assert f"robust accuracy: {wanted.accuracy().value:.2%}" in out
    lines = [line for line in out.splitlines() if line.startswith("robust accuracy after ")]
    assert [line.split()[3] for line in lines] == ["APGD-CE:", "APGD-T:", "FAB-T:", "SQUARE:"]
    total = [float(line.rpartition("total time ")[2].removesuffix(" s)")) for line in lines]
    assert total == sorted(total)  # from the start on, as the release counts
    assert (tmp_path / "log.txt").read_text() == out


def test_one_by_one_and_called(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    adversary = short(AutoAttack(net, eps=0.012, verbose=False, version="custom", attacks_to_run=["apgd-ce", "square"]))
    adversary.apgd.n_restarts = 1
    found = adversary.run_standard_evaluation_individual(x, y, bs=8)
    assert list(found) == ["apgd-ce", "square"]
    together = adversary(x, y)
    for name, x_adv in found.items():
        alone = short(AutoAttack(net, eps=0.012, verbose=False, version="custom", attacks_to_run=[name]))
        alone.apgd.n_restarts = 1
        torch.testing.assert_close(alone(x, y), x_adv, rtol=0, atol=1e-12)
    assert adversary.clean_accuracy(x, y) == 27 / 30
    assert adversary.clean_accuracy(together, y) <= min(adversary.clean_accuracy(x_adv, y) for x_adv in found.values())


def test_what_is_wrong_is_said_before_anything_is_computed(
    setting: tuple[nn.Sequential, Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    net, x, y = setting
    adversary = short(AutoAttack(net, eps=0.012))
    for images, labels, said in (
        (x, y[:3], "need images"),
        (x, y + 6, r"labels must be integers in \[0, 6\)"),
        (255 * x, y, r"images must lie in \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=said):
            adversary.run_standard_evaluation(images, labels)
    assert capsys.readouterr().out == ""
    assert torch.equal(adversary.get_logits(x), net(x))


def test_versions_and_what_a_script_changes(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net = setting[0]
    plus = AutoAttack(net, version="plus")
    assert plus.attacks_to_run == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert plus._search("apgd-ce") == AutoPGD(loss="ce", restarts=5)
    assert plus._search("fab") == FAB(targeted=False, restarts=5)
    assert plus._search("fab-t") == FAB(targeted=True)
    assert AutoAttack(net, version="rand")._search("apgd-dlr") == AutoPGD(loss="dlr", eot=20)
    custom = AutoAttack(net, version="custom", attacks_to_run=["apgd-ce"])
    assert custom._search("apgd-ce") == AutoPGD(loss="ce", restarts=5)
    with pytest.raises(InputError, match="unknown version 'standart'"):
        AutoAttack(net, version="standart")
    with pytest.raises(InputError, match="has its own attacks"):
        AutoAttack(net, attacks_to_run=["square"])
    with pytest.raises(InputError, match="unknown attack 'apgd-cd'"):
        AutoAttack(net, version="custom", attacks_to_run=["apgd-cd"])
    with pytest.raises(InputError, match="unknown norm 'L1'"):
        AutoAttack(net, norm="L1")


def test_a_function_is_a_model_and_state_goes_on(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = setting
    calls = []

    def forward(images: Tensor) -> Tensor:
        calls.append(len(images))
        return net(images)  # type: ignore[no-any-return]

    adversary = short(AutoAttack(forward, eps=0.012, verbose=False))
    first = adversary.run_standard_evaluation(x, y, bs=8, state_path=tmp_path / "state")
    spent = len(calls)
    calls.clear()
    again = adversary.run_standard_evaluation(x, y, bs=8, state_path=tmp_path / "state")
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert len(calls) < spent / 2


def test_the_release_finds_as_much(curved_net: Net, labelled: Labelled) -> None:
    """Short budgets, several seeds: neither side may find more than sampling explains."""
    pytest.importorskip("pyautoattack")
    from pyautoattack import AutoAttack as Released

    ours, theirs = [], []
    for seed in range(4):
        net = curved_net(seed).float()
        x, y, *_ = labelled(net.double(), 40, seed=seed)
        net, x = net.float(), x.float()
        adversary = short(AutoAttack(net, eps=0.012, seed=seed, verbose=False))
        released = Released(net, eps=0.012, seed=seed, device="cpu")
        released.verbose = False
        released.apgd.n_iter = released.apgd_targeted.n_iter = released.fab.n_iter = 6
        released.apgd_targeted.n_target_classes = released.fab.n_target_classes = 3
        for attack in (released.apgd, released.apgd_targeted):
            attack.n_iter_2, attack.n_iter_min, attack.size_decr = 1, 1, 1
        released.square.n_queries = 40
        ours.append(adversary.clean_accuracy(adversary.run_standard_evaluation(x, y, bs=40), y))  # type: ignore[arg-type]
        theirs.append(adversary.clean_accuracy(released.run_standard_evaluation(x, y, batch_size=40)[0], y))
    assert 0.1 < sum(ours) / 4 < 0.9
    assert abs(sum(ours) - sum(theirs)) * 40 <= 4, (ours, theirs)  # of 160 examples
