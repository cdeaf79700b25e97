"""The script that repeats a story over seeds: what it runs, and the table it prints."""

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("repeat", Path(__file__).parents[1] / "scripts" / "repeat.py")
assert SPEC is not None
assert SPEC.loader is not None
repeat = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(repeat)


TRAIN = ["train", "fgsm", "--eps", "0.2", "--seed", "1", "--attack", "clean", "--run"]


def finished(runs: Path, label: str, seed: int, clean: float, robust: float, event: bool = False) -> None:
    path = repeat.folder(runs, label, seed)
    (path / "evaluations").mkdir(parents=True)
    record = {"accuracy": {"clean": {"value": clean}, "pgd-40": {"value": robust}}}
    (path / "evaluations" / "final-test-pgd-40-1.json").write_text(json.dumps(record))
    looks = [(0.4, 0.3), (0.6, 0.0 if event else 0.5)]
    rows = [
        {"step": step, "seconds": 1.0 + 2 * step, "probe/fgsm_acc": fgsm, "probe/pgd10_acc": pgd}
        for step, (fgsm, pgd) in enumerate(looks, start=1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_has_mean_spread_range_and_collapses(tmp_path):
    story = {"seeds": [0, 1, 2], "attack": "clean,pgd-40"}
    finished(tmp_path, "V FGSM", 0, 0.9, 0.0, event=True)
    finished(tmp_path, "V FGSM", 1, 0.8, 0.1)
    table = repeat.table(tmp_path, story, {"V FGSM": "", "not yet": ""}).splitlines()
    assert table[0] == "| row | seeds | clean | pgd-40 | collapsed | seconds |"
    assert table[2] == "| V FGSM | 2 | 85.0 ± 7.1 (80.0 to 90.0) | 5.0 ± 7.1 (0.0 to 10.0) | 1 of 2 | 5 |"
    assert len(table) == 3


def test_differences_are_paired_by_seed(tmp_path):
    story = {"seeds": [0, 1, 2], "attack": "clean,pgd-40", "pairs": [["a", "b"], ["a", "not yet"]]}
    for seed, (clean, robust) in enumerate([(0.9, 0.5), (0.8, 0.4), (0.7, 0.3)]):
        finished(tmp_path, "a", seed, clean, robust)
        finished(tmp_path, "b", seed, clean - 0.1, robust + 0.01 * seed)
    table = repeat.differences(tmp_path, story).splitlines()
    assert table[0] == "| difference | seeds | clean | pgd-40 |"
    assert table[2:] == ["| a - b | 3 | +10.0 (+10.0 to +10.0) | -1.0 (-3.5 to +1.5) |"]


@pytest.mark.parametrize("state", ["new", "interrupted", "done"])
def test_what_is_missing_is_run_and_what_was_interrupted_is_resumed(state, tmp_path, monkeypatch):
    calls = []

    def remember(command, **options):
        calls.append((command[1:], options["env"]["OMP_NUM_THREADS"]))
        return type("Done", (), {"returncode": 3})

    monkeypatch.setattr(repeat.subprocess, "run", remember)
    path = repeat.folder(tmp_path, "a", 1)
    if state == "interrupted":
        path.mkdir()
        (path / "run.json").write_text("{}")
    if state == "done":
        finished(tmp_path, "a", 1, 0.5, 0.5)
    code = repeat.run(tmp_path, {"attack": "clean", "threads": 2}, "a", "fgsm --eps 0.2", 1)
    expected = {
        "new": ["-m", "gambeson", *TRAIN, str(path)],
        "interrupted": ["-m", "gambeson", "resume", str(path)],
    }
    assert calls == ([] if state == "done" else [(expected[state], "2")])
    assert code == (0 if state == "done" else 3)


def test_a_fine_tuned_row_starts_from_its_base_and_corruptions_follow(tmp_path, monkeypatch):
    calls = []

    def pretend(path, story, words):
        calls.append(words)
        return 0

    monkeypatch.setattr(repeat, "call", pretend)
    story = {"attack": "clean", "ood": "--set rift18"}
    code = repeat.run(tmp_path, story, "b", {"base": "a", "finetune": "rift --bn frozen"}, 1)
    own, base = str(repeat.folder(tmp_path, "b", 1)), str(repeat.folder(tmp_path, "a", 1))
    assert code == 0
    assert calls == [
        ["finetune", "rift", base, "--bn", "frozen", "--seed", "1", "--attack", "clean", "--run", own],
        ["corruptions", own, "--checkpoint", "final", "--set", "rift18"],
    ]


def test_the_table_has_a_column_out_of_distribution(tmp_path):
    story = {"seeds": [0, 1], "attack": "clean,pgd-40", "ood": "--set rift18", "pairs": [["b", "a"]]}
    for label, seed, ood in (("a", 0, 0.5), ("a", 1, 0.6), ("b", 0, 0.7), ("b", 1, 0.8)):
        finished(tmp_path, label, seed, 0.9, 0.4)
        folder = repeat.folder(tmp_path, label, seed) / "diagnosis"
        folder.mkdir()
        (folder / "corruptions-final-rift18.json").write_text(json.dumps({"ood": {"value": ood}}))
    finished(tmp_path, "c", 0, 0.9, 0.4)  # its corruptions are still to come
    table = repeat.table(tmp_path, story, {"a": "", "b": "", "c": ""}).splitlines()
    assert len(table) == 4
    assert table[0] == "| row | seeds | clean | pgd-40 | ood | collapsed | seconds |"
    assert "| 55.0 ± 7.1 (50.0 to 60.0) |" in table[2]
    assert repeat.differences(tmp_path, story).splitlines()[2].endswith("| +20.0 (+20.0 to +20.0) |")
