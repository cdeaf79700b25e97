"""The plan of a sweep: what is said in the file, every command understood before one runs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.helpers import write_sweep
from gambeson.app.sweep_plan import Plan, folder, plan_of
from gambeson.core.errors import GambesonError, InputError

STORIES = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*.yaml"))
ROWS = "rows:\n  a: fgsm --eps 0.2\n"


@pytest.fixture(autouse=True)
def inside(here: Path) -> None:
    """Every file of these tests lies in a folder of their own."""


def planned(text: str, only: str | None = None) -> Plan:
    return plan_of(write_sweep(text), only=only)


@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
def test_a_story_of_the_documentation_is_a_sweep(story: Path) -> None:
    plan = plan_of(story)

    assert plan.root == Path("runs") / story.stem
    assert len(plan.jobs) == len(plan.labels) * len(plan.seeds)
    assert all(job.base is None or any(job.base == other.path for other in plan.jobs) for job in plan.jobs)


def test_the_commands_are_those_of_the_rows_with_seed_attacks_and_run() -> None:
    plan = planned(
        "seeds: [0, 7]\nthreads: 2\njobs: 3\nattack: clean,pgd-10\nood: --set rift18\npairs: [[b c, a]]\n"
        f"{ROWS}  b c: {{base: a, finetune: rift --bn frozen}}\n"
    )

    common = ("--seed", "7", "--attack", "clean,pgd-10", "--run")
    assert [job.name for job in plan.jobs] == ["a seed 0", "a seed 7", "b c seed 0", "b c seed 7"]
    assert plan.jobs[1].command == ("train", "fgsm", "--eps", "0.2", *common, "runs/s/a-seed7")
    assert plan.jobs[3].command == (
        *("finetune", "rift", "runs/s/a-seed7", "--bn", "frozen", *common, "runs/s/b-c-seed7"),
    )
    assert plan.jobs[3].base == plan.jobs[1].path == Path("runs/s/a-seed7")
    assert (plan.threads, plan.slots, plan.ood_record) == (2, 3, "corruptions-final-rift18.json")
    assert (plan.columns, plan.pairs) == (["clean", "pgd-10", "ood"], (("b c", "a"),))
    assert plan.jobs[1].log == Path("runs/s/a-seed7.log")


def test_the_record_of_a_training_is_known_before_it() -> None:
    plan = planned("seeds: [3]\nattack: clean\nrows:\n  a: fgsm --epochs 2\n")

    record = plan.jobs[0].record
    assert record is not None
    assert (record["settings"]["seed"], record["settings"]["epochs"], record["attack"]) == (3, 2, "clean")
    assert record["method"]["args"]["eps"] == 0.2  # the data set's
    assert record["model"]["name"] == "small-cnn"


def test_a_folder_is_named_by_row_and_seed() -> None:
    assert folder(Path("r"), "PART 8/7 own", 2) == Path("r/PART-8_7-own-seed2")


def test_only_some_rows_bring_what_they_start_from() -> None:
    text = f"seeds: [0]\npairs: [[b, a], [c, a]]\n{ROWS}  b: {{base: a, finetune: bn}}\n  c: n-lap\n"

    assert planned(text, only="b").labels == ("a", "b")
    assert planned(text, only="b").pairs == (("b", "a"),)
    assert planned(text, only="c, a").labels == ("a", "c")


def test_pairs_of_grids_are_pairs_of_their_rows() -> None:
    text = "seeds: [0]\ngrid: {{eps: [0.1, 0.2]}}\npairs: {}\nrows: {{A: fgsm, B: n-fgsm}}\n"

    assert planned(text.format("[[B, A]]")).pairs == (("B eps=0.1", "A eps=0.1"), ("B eps=0.2", "A eps=0.2"))
    assert planned(text.format("[[B, A eps=0.1]]")).pairs == (
        ("B eps=0.1", "A eps=0.1"),
        ("B eps=0.2", "A eps=0.1"),
    )


WRONG = [
    (f"seed: [0]\n{ROWS}", "unknown key 'seed'", "did you mean seeds?"),
    (ROWS, "seeds must be different whole numbers, got None", "seeds: [0, 1, 2]"),
    (f"seeds: 3\n{ROWS}", "seeds must be different whole numbers, got 3", ""),
    (f"seeds: [0, 0]\n{ROWS}", "seeds must be different whole numbers", ""),
    (f"seeds: [-1]\n{ROWS}", "seeds must be different whole numbers", ""),
    (f"seeds: [0]\nthreads: 0\n{ROWS}", "threads must be a whole number of at least 1, got 0", ""),
    (f"seeds: [0]\njobs: true\n{ROWS}", "jobs must be a whole number", ""),
    (f"seeds: [0]\nattack: pdg-10\n{ROWS}", "pdg-10", ""),
    (f"seeds: [0]\nood: --set rift19\n{ROWS}", "ood: unknown set 'rift19'", "rift18"),
    (f"seeds: [0]\nood: --sets rift18\n{ROWS}", "ood: unknown option --sets", "did you mean --set"),
    (f"seeds: [0]\nood: --checkpoint best\n{ROWS}", "ood says --checkpoint", ""),
    (f"seeds: [0]\nood: rift18\n{ROWS}", "ood: unknown word 'rift18'", "--set"),
    (f"seeds: [0]\nslurm: [1]\n{ROWS}", "slurm must be a table", ""),
    (f"seeds: [0]\npairs: [a]\n{ROWS}", "pairs must be a list of pairs", ""),
    (f"seeds: [0]\npairs: [[a, aa]]\n{ROWS}", "pairs name an unknown row 'aa'", ""),
    (f"seeds: [0]\n{ROWS}  a: n-lap\n", "'a' stands there twice", ""),
    (f"seeds: [0]\n{ROWS}  b c: fgsm\n  b-c: fgsm\n", "'b c' and 'b-c' would share the folder runs/s/b-c-seed0", ""),
    (f"seeds: [0]\n{ROWS}  g: n-fgms\n", "row 'g': unknown method 'n-fgms'", "n-fgsm"),
    (f"seeds: [0]\n{ROWS}  g: fgsm --epoch 3\n", "row 'g': unknown option --epoch", "did you mean --epochs"),
    (f"seeds: [0]\n{ROWS}  g: fgsm --epochs x\n", "row 'g': --epochs needs a whole number", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --epochs 0\n", "row 'g': epochs must be at least 1", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --eps 8\n", "row 'g': eps must be", "8/255"),
    (f"seeds: [0]\n{ROWS}  g: fgsm --model resnet19\n", "row 'g': unknown model 'resnet19'", "resnet18"),
    (f"seeds: [0]\n{ROWS}  g: fgsm --data cifar11\n", "row 'g': there is no data set 'cifar11'", "cifar10"),
    (f"seeds: [0]\n{ROWS}  g: fgsm n-lap\n", "row 'g': train takes one method", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --test-size 0\n", "row 'g': --test-size must be at least 1", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --seed 3\n", "row 'g' says --seed", "seeds"),
    (f"seeds: [0]\n{ROWS}  g: fgsm --attack clean\n", "row 'g' says --attack", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --run r\n", "row 'g' says --run", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --data 'x\n", "row 'g': no closing quotation in", ""),
    (f"seeds: [0]\n{ROWS}  g: fgsm --help\n", "row 'g' asks for help", ""),
    (f"seeds: [0]\n{ROWS}  g: {{base: a, finetune: rfit}}\n", "row 'g': unknown way of fine-tuning 'rfit'", "rift"),
    (f"seeds: [0]\n{ROWS}  g: {{base: a, finetune: bn, lr: 1}}\n", "row 'g': finetune bn has no --lr", ""),
    (f"seeds: [0]\n{ROWS}  g: {{base: a, finetune: rift --bn of}}\n", "row 'g': unknown BatchNorm mode", "frozen"),
    (f"seeds: [0]\n{ROWS}  g: {{base: a, finetune: rift --weights x.pt}}\n", "row 'g': --weights does not go", ""),
]


@pytest.mark.parametrize(("text", "said", "hint"), WRONG, ids=[said for _, said, _ in WRONG])
def test_what_cannot_be_run_is_refused_before_anything_is(text: str, said: str, hint: str) -> None:
    with pytest.raises(GambesonError) as refused:
        planned(text)
    assert said in refused.value.message
    assert hint in str(refused.value)
    assert not Path("runs").exists()


def test_an_unknown_label_is_refused_with_the_nearest() -> None:
    write_sweep(f"seeds: [0]\n{ROWS}")

    with pytest.raises(InputError, match=r"--only names an unknown row 'A'"):
        plan_of(Path("s.yaml"), only="A")
    with pytest.raises(InputError, match="--only names no row"):
        plan_of(Path("s.yaml"), only=" , ")
