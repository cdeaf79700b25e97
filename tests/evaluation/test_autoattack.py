"""AutoAttack: verdicts, stages and costs; interruptions at every point; other processes; what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import FAB, AutoPGD, Search, Square
from gambeson.core.errors import InputError, RunError, UnhealthyError
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch
from gambeson.evaluation import (
    ENSEMBLES,
    SEARCHES,
    AutoAttackReport,
    Pace,
    Stage,
    autoattack,
    create_ensemble,
    ensemble_of,
    evaluate,
    state_key,
)

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
SHORT: tuple[Search, ...] = (
    AutoPGD(loss="ce", steps=6),
    AutoPGD(loss="dlr-targeted", steps=6, targets=3),
    FAB(steps=6, targets=2),
    Square(queries=40),
)
THREATS: list[Threat] = [Linf(0.012), L2(0.08)]


@pytest.fixture
def setting(curved_net: Net, labelled: Labelled) -> tuple[nn.Sequential, Tensor, Tensor]:
    net = curved_net()
    batch = labelled(net, 40, wrong=3)
    return net, batch.x, batch.y


def attack(
    setting: tuple[nn.Module, Tensor, Tensor], threat: Threat = THREATS[0], **options: object
) -> AutoAttackReport:
    net, x, y = setting
    settings = {
        "version": "custom",
        "attacks": SHORT,
        "num_classes": 6,
        "slots": 8,
        "checks": False,
        "fold": False,
        **options,
    }
    return autoattack(net, x, y, threat, **settings)  # type: ignore[arg-type]


def equal(a: AutoAttackReport, b: AutoAttackReport, *, costs: bool = False) -> None:
    assert torch.equal(a.fell_to, b.fell_to)
    assert torch.equal(a.clean, b.clean)
    torch.testing.assert_close(a.x_adv, b.x_adv, rtol=0, atol=1e-12)
    for one, other in zip(a.stages, b.stages, strict=True):
        names = ("attack", "standing", "fell", "left") + (("forwards", "backwards") if costs else ())
        assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


@pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
def test_every_verdict_has_an_image_that_proves_it(
    setting: tuple[nn.Sequential, Tensor, Tensor], threat: Threat
) -> None:
    net, x, y = setting
    found = attack(setting, threat)
    assert [stage.attack for stage in found.stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.clean.tolist() == [False] * 3 + [True] * 37
    assert (found.fell_to[:3] == -1).all()  # wrong without attack: not attacked
    fell = found.fell_to >= 0
    assert 5 < int(fell.sum()) < 37
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(1) != y, fell | ~found.clean)
    assert float(threat.distance(found.x_adv, x).max()) <= float(threat.eps) * (1 + 1e-9)
    assert 0 <= found.x_adv.min() <= found.x_adv.max() <= 1
    assert torch.equal(found.x_adv[~fell], x[~fell])
    standing = 37
    for number, stage in enumerate(found.stages):
        assert stage.standing == standing
        assert stage.fell == int((found.fell_to == number).sum())
        standing -= stage.fell
        assert stage.left == standing
        assert stage.forwards > 0
        assert (stage.backwards > 0) == (stage.attack != "square")
    assert found.robust.tolist() == (found.clean & ~fell).tolist()
    assert found.accuracy().value == standing / 40
    assert found.clean_accuracy().value == 37 / 40
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["version"], record["n"], record["eps"], len(record["stages"])) == ("custom", 40, threat.eps, 4)


@pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
def test_a_search_on_folded_batchnorms_ends_alike_and_is_confirmed(
    setting: tuple[nn.Sequential, Tensor, Tensor], threat: Threat
) -> None:
    whole, fast = attack(setting, threat), attack(setting, threat, fold=True)
    equal(whole, fast)
    assert (whole.settings["folded"], fast.settings["folded"]) == (0, 1)
    for one, other in zip(whole.stages, fast.stages, strict=True):
        assert other.forwards == one.forwards + one.fell  # every fall costs the model a forward more
        assert other.backwards == one.backwards


@pytest.mark.parametrize("slots", [1, 5, 64])
def test_the_number_of_slots_changes_nothing(setting: tuple[nn.Sequential, Tensor, Tensor], slots: int) -> None:
    equal(attack(setting, slots=slots), attack(setting))


def test_a_subset_falls_as_in_the_whole_set(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    whole, some = attack(setting), attack((net, x[:17], y[:17]))
    assert torch.equal(whole.fell_to[:17], some.fell_to)
    torch.testing.assert_close(whole.x_adv[:17], some.x_adv, rtol=0, atol=1e-12)


def test_another_seed_draws_other_numbers(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    assert not torch.equal(attack(setting, seed=1).x_adv, attack(setting).x_adv)


class Killed(BaseException):
    """Nothing catches it."""


class Fuse(nn.Module):
    """A model that dies at the forward number `at`."""

    def __init__(self, net: nn.Module, at: int) -> None:
        super().__init__()
        self.net, self.at, self.count = net, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count == self.at:
            raise Killed
        return self.net(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [7, 30, 60, 100, 150])
def test_an_interrupted_evaluation_goes_on_to_the_same_result(
    setting: tuple[nn.Sequential, Tensor, Tensor], at: int, tmp_path: Path
) -> None:
    net, x, y = setting
    fuse = Fuse(net, 10**9)
    whole = attack((fuse, x, y))
    assert fuse.count > 150
    with pytest.raises(Killed):
        attack((Fuse(net, at), x, y), ledger=tmp_path / "state")
    before = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()}
    rest = Fuse(net, 10**9)
    equal(attack((rest, x, y), ledger=tmp_path / "state"), whole)
    assert {name: (tmp_path / "state" / name).read_bytes() for name in before} == before
    if at >= 60:
        assert rest.count < fuse.count


def test_a_finished_evaluation_only_verifies(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = setting
    first = attack((Fuse(net, 10**9), x, y), ledger=tmp_path)
    again = Fuse(net, 10**9)
    second = attack((again, x, y), ledger=tmp_path)
    equal(second, first, costs=True)
    assert again.count < 25
    assert [stage.kept for stage in first.stages] == [0] * 4
    assert [stage.kept for stage in second.stages] == [stage.standing for stage in first.stages]


def test_sigkill_costs_little(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    """A process of its own, killed while it searches: what it wrote is whole, and counts."""
    net, x, y = setting
    torch.save({"net": net, "x": x, "y": y}, tmp_path / "setting.pt")
    code = f"""
import os, signal, torch
from evaluation.test_autoattack import Fuse, SHORT, attack
torch.set_num_threads(1)
s = torch.load({str(tmp_path / "setting.pt")!r}, weights_only=False)
class Kill(Fuse):
    def forward(self, x):
        self.count += 1
        if self.count == 90: os.kill(os.getpid(), signal.SIGKILL)
        return self.net(x)
attack((Kill(s["net"], 0), s["x"], s["y"]), ledger=__import__("pathlib").Path({str(tmp_path / "state")!r}))
"""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert list((tmp_path / "state").glob("apgd-ce-*.safetensors"))
    equal(attack((Fuse(net, 10**9), x, y), ledger=tmp_path / "state"), attack((Fuse(net, 10**9), x, y)))


def test_a_foreign_state_is_refused_and_every_difference_named(
    setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path
) -> None:
    net, x, y = setting
    attack(setting, ledger=tmp_path)
    cases: list[tuple[tuple[nn.Module, Tensor, Tensor], Threat, dict[str, object], tuple[str, ...]]] = [
        (setting, Linf(0.02), {}, ("eps is 0.012 there, 0.02 here",)),
        (setting, L2(0.012), {}, ("norm is 'Linf' there, 'L2' here",)),
        (setting, THREATS[0], {"seed": 4}, ("seed is 0 there, 4 here",)),
        ((net, x.flip(0), y.flip(0)), THREATS[0], {}, ("images is ", "labels is ")),
    ]
    for other, threat, options, differences in cases:
        with pytest.raises(RunError, match="the state of another evaluation") as error:
            attack(other, threat, ledger=tmp_path, **options)
        assert all(text in str(error.value) for text in differences), error.value
    with torch.no_grad():
        net[4].bias[0] += 1e-3
    with pytest.raises(RunError, match="weights is '"):
        attack(setting, ledger=tmp_path)
    (tmp_path / "not-state").mkdir()
    (tmp_path / "not-state/file").touch()
    with pytest.raises(RunError, match="is not empty and holds no state"):
        attack(setting, ledger=tmp_path / "not-state")


def test_damaged_state_is_refused(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    attack(setting, ledger=tmp_path)
    file = sorted(tmp_path.glob("apgd-ce-*.safetensors"))[0]
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    with pytest.raises(RunError, match=r"apgd-ce-.* is damaged"):
        attack(setting, ledger=tmp_path)
    whole = bytearray(content)
    whole[-64:] = bytes(64)  # pixels of the last image
    file.write_bytes(bytes(whole))
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        attack(setting, ledger=tmp_path)


def test_stored_images_are_verified(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    x = setting[1]
    attack(setting, ledger=tmp_path)
    file = sorted(tmp_path.glob("apgd-ce-*.safetensors"))[0]
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
        tensors = {name: content.get_tensor(name) for name in ("index", "fooled", "x_adv")}
    tensors["x_adv"] = x[tensors["index"][tensors["fooled"]]]  # the clean images fool nobody
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(RunError, match=r"of the adversarial images .* of apgd-ce do not fool the model"):
        attack(setting, ledger=tmp_path)


def test_state_keys_differ_where_results_may(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    keys = [
        state_key(net, x, y, Linf(0.1)),
        state_key(net, x, y, Linf(0.2)),
        state_key(net, x, y, L2(0.1)),
        state_key(net, x, y, Linf(0.1), 1),
        state_key(net, x, y, Linf(0.1), 0, torch.bfloat16),
        state_key(net, x, y, Linf(0.1), fold=False),
        state_key(net, x[1:], y[1:], Linf(0.1)),
    ]
    assert len(set(keys)) == 7
    assert keys[0] == state_key(net, x, y, Linf(0.1))


RANKS = """
import sys, torch
from pathlib import Path
from evaluation.test_autoattack import attack
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
s = torch.load(folder / "setting.pt", weights_only=False)
found = attack((s["net"], s["x"], s["y"]), ledger=folder / "state")
torch.save({"fell_to": found.fell_to, "x_adv": found.x_adv, "stages": [vars(one) for one in found.stages]},
           folder / f"rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    net, x, y = setting
    torch.save({"net": net, "x": x, "y": y}, tmp_path / "setting.pt")
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    processes = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    whole = attack(setting)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert torch.equal(found["fell_to"], whole.fell_to)
        torch.testing.assert_close(found["x_adv"], whole.x_adv, rtol=0, atol=1e-12)
        for one, other in zip(found["stages"], whole.stages, strict=True):
            assert [one[name] for name in ("attack", "standing", "fell", "left")] == [
                getattr(other, name) for name in ("attack", "standing", "fell", "left")
            ]
    written = {path.name.split("-")[-2] for path in (tmp_path / "state").glob("*.safetensors")}
    assert written == {"0of2", "1of2"}
    equal(attack(setting, ledger=tmp_path / "state"), whole)  # one process goes on where two stopped


def test_stages_and_progress_are_told(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    told: list[tuple[str, int, int]] = []
    begun: list[tuple[str, int]] = []
    stages: list[Stage] = []
    found = attack(
        setting,
        progress=lambda *words: told.append(words),
        begin=lambda *words: begun.append(words),
        listen=stages.append,
    )
    assert tuple(stages) == found.stages
    assert begun == [(stage.attack, stage.standing) for stage in stages]
    for stage in stages:
        assert sum(done for name, done, _ in told if name == stage.attack) == stage.standing
        assert sum(fell for name, _, fell in told if name == stage.attack) == stage.fell


def test_a_randomised_model_needs_another_version(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + 0.001 * torch.randn_like(x))  # type: ignore[no-any-return]

    with pytest.raises(UnhealthyError, match="the model is randomised") as error:
        autoattack(Noisy(), x, y, Linf(0.01), num_classes=6)
    assert "rand" in str(error.value.hint)


def test_the_model_is_examined_before(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    with pytest.raises(UnhealthyError, match="probabilities"):
        attack((nn.Sequential(net, nn.Softmax(1)), x, y), checks=True)


def test_versions() -> None:
    names = {version: [search.name for search in create_ensemble(version)] for version in ENSEMBLES}
    assert names == {
        "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
        "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
        "rand": ["apgd-ce", "apgd-dlr"],
        "preview": ["apgd-ce", "apgd-t"],
    }
    plus = {search.name: search for search in create_ensemble("plus")}
    assert [getattr(plus[name], "restarts") for name in names["plus"]] == [5, 5, 5, 1, 1, 1]  # noqa: B009 (typed)
    assert all(getattr(search, "eot") == 20 for search in create_ensemble("rand"))  # noqa: B009
    assert [search.rounds(10) for search in create_ensemble("standard")] == [1, 9, 9, 1]
    assert {name: make().name for name, (_, make) in SEARCHES.items()} == {name: name for name in SEARCHES}
    assert ensemble_of("aa-preview") == ("preview", create_ensemble("preview"))
    assert ensemble_of("autoattack-rand") == ("rand", create_ensemble("rand"))
    assert ensemble_of("pgd-10") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "standrad", "attacks": None}, "unknown version 'standrad'"),
        ({"version": "standard"}, "the version standard has its own attacks"),
        ({"attacks": ()}, "needs attacks"),
        ({"attacks": ("apgd",)}, "unknown attack 'apgd'"),
        ({"attacks": ("square", Square(queries=3))}, "a name of its own, got square, square"),
        ({"num_classes": 7}, "logits of shape"),
        ({"slots": 0}, "slot"),
    ],
)
def test_what_is_refused(setting: tuple[nn.Sequential, Tensor, Tensor], options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        attack(setting, **options)
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
        attack((setting[0], setting[1] * 3, setting[2]))
    with pytest.raises(InputError, match="one budget for all"):
        attack(setting, Linf(torch.full((40, 1, 1, 1), 0.01)))


def test_an_evaluation_takes_ensembles_and_searches_by_name(
    setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCHES, "apgd-ce", ("short", lambda: SHORT[0]))
    monkeypatch.setitem(ENSEMBLES, "standard", ("short", lambda: SHORT))
    net, x, y = setting
    units: list[int] = []
    stages: list[tuple[str, str]] = []
    paces: list[Pace] = []
    report = evaluate(
        net,
        x,
        y,
        ["pgd-2", "autoattack", "apgd-ce"],
        THREATS[0],
        num_classes=6,
        batch_size=8,
        progress=units.append,
        ledger=tmp_path,
        stages=lambda name, stage: stages.append((name, stage.attack)),
        pace=paces.append,
    )
    assert list(report.outcomes) == ["clean", "pgd-2", "autoattack", "apgd-ce"]
    whole = attack(setting)
    assert torch.equal(report.outcomes["autoattack"], whole.robust)
    assert torch.equal(report.outcomes["apgd-ce"], whole.clean & (whole.fell_to != 0))
    assert sum(units) == 4 * 40
    assert stages == [("autoattack", stage.attack) for stage in whole.stages] + [("apgd-ce", "apgd-ce")]
    for stage in whole.stages:
        own = [one for one in paces if (one.ensemble, one.attack) == ("autoattack", stage.attack)]
        assert own[0] == Pace("autoattack", stage.attack, stage.standing)
        assert (own[-1].through, own[-1].fell) == (stage.standing, stage.fell)
        steps = [one.steps for one in own]
        assert steps == sorted(steps)
        assert steps[-1] >= 6  # said after every step, not only when an image is through
        assert own[0].most == 0
        assert {one.most >= steps[-1] for one in own if one.steps} == {True}
    record = report.to_dict()
    assert [stage["fell"] for stage in record["ensembles"]["autoattack"]["stages"]] == [s.fell for s in whole.stages]
    assert [path.name for path in tmp_path.iterdir()] == [state_key(net, x, y, THREATS[0])]


def test_a_preview_counts_for_the_whole(setting: tuple[nn.Sequential, Tensor, Tensor], tmp_path: Path) -> None:
    attack(setting, attacks=SHORT[:2], ledger=tmp_path)
    first = {path.name for path in tmp_path.glob("apgd-*")}
    equal(attack(setting, ledger=tmp_path), attack(setting), costs=True)
    assert {path.name for path in tmp_path.glob("apgd-*")} == first
    longer = (AutoPGD(loss="ce", steps=9), *SHORT[1:])  # other settings are another attack
    equal(attack(setting, attacks=longer, ledger=tmp_path), attack(setting, attacks=longer))
    assert len(list(tmp_path.glob("apgd-ce-*"))) > len([name for name in first if name.startswith("apgd-ce")])
