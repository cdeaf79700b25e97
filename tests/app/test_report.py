"""`gambeson report`: what the page says, damaged and missing data, hostile names, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.browser import CHROMIUM, Browser
from app.helpers import SMALL, Cli, assert_error, fingerprint
from gambeson.app import reporting, training
from gambeson.app.report.charts import Bar, Line, Mark, bar_chart, line_chart, map_chart

Finished = Callable[[str], Path]
VOID = {"meta", "img", "br", "link", "input", "hr", "use", "path", "rect", "circle", "line", "polygon", "stop"}
HOSTILE = "<img src=x onerror=alert(1)> \"q\" & 'a' $x_1$"


class Page(HTMLParser):
    """The page's text, elements and whether what is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def sections(self) -> list[str]:
        return [attributes["id"] or "" for tag, attributes in self.elements if tag == "section"]


def written(cli: Cli, *args: str) -> tuple[Page, dict[str, Any]]:
    result = cli("report", *args)
    assert result.code == 0, result
    page = Path(result.out.strip())
    assert result.err.splitlines()[-1] == f"wrote {page} and {page.with_suffix('.json')}"
    return Page(page.read_text()), json.loads(page.with_suffix(".json").read_text())


def evaluation(run: Path, stem: str = "best-test-fgsm-1") -> tuple[Path, dict[str, Any]]:
    file = run / "evaluations" / f"{stem}.json"
    return file, json.loads(file.read_text())


def interval(value: float, n: int = 50) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "n": n}


def diagnose(run: Path, name: str, **content: Any) -> None:
    (run / "diagnosis").mkdir(exist_ok=True)
    record = {"checkpoint": "best", "step": evaluation(run)[1]["step"], "data": "digits", "split": "test", "n": 50}
    (run / "diagnosis" / f"{name}.json").write_text(json.dumps({**record, **content}))


def fill(run: Path) -> None:
    """A record of every topic, in the form that the commands write."""
    accuracy = {"clean": interval(0.9), "fgsm": interval(0.6), "pgd-10": interval(0.5)}
    whole = {name: interval(value) for name, value in (("clean", 0.9), ("fgsm", 0.6), ("pgd-10", 0.5))}
    removal = {"group": "former", "mode": "largest", "share": 0.1, "accuracy": accuracy, "signature": False}
    points = [{"eps": eps, **interval(0.9 - eps)} for eps in (0.0, 0.2, 0.4)]
    landscape = {"kind": "weights", "n": 50, "title": "conv1", "centre": 0.1, "rise": None, "roughness": 0.2}
    flat = {**landscape, "dims": 1, "axis": [-1.0, 0.0, 1.0], "loss": [1.0, 0.1, 2.0]}
    square = {**landscape, "dims": 2, "axis": [-1.0, 0.0, 1.0], "loss": [[1.0, 2.0, 3.0], [1.0, 0.1, 1.0], [2.0] * 3]}
    layer = {"layer": "conv1", "norm": 1.0, "largest": 2.0, "stable_rank": 3.0, "drift": None}
    found = {"check": "single step", "verdict": "WARN", "message": "FGSM fools 1 of 50"}
    group = {"full": {"n": 50, "mean": 0.25, "std": 0.1, "min": 0.1, "max": 0.4}}
    diagnose(run, "masking-x", verdict="WARN", evidence=[found], accuracy=accuracy, norm="Linf", eps=0.2)
    diagnose(run, "eps-x", attack="pgd-10", norm="Linf", budget={"norm": "Linf", "eps": 0.2}, points=points)
    diagnose(
        run,
        "corruptions-x",
        set="standard15",
        severities=[1],
        clean=interval(0.9),
        ood=interval(0.7),
        corruptions={"gaussian_noise": {"mean": interval(0.7), "severities": {"1": interval(0.7)}}},
    )
    layers = [{"layer": "conv1", "mrc": 0.5, "drop": 0.1, "pruned": False}]
    diagnose(run, "criticality-x", split="val", layers=layers, ranking=["conv1"])
    alphas = [{"alpha": alpha, "clean": interval(0.9), "robust": interval(0.5)} for alpha in (0.0, 0.5, 1.0)]
    diagnose(run, "line-x", split="val", points=alphas, chosen=0.5)
    diagnose(run, "landscape-x", inputs="clean", landscapes={"best (step 2)": [flat, square]})
    moves = [
        {"group": "conv1", "kind": kind, "rho": rho, "inputs": "clean", "rise": {"value": rise}}
        for kind in ("adversarial", "random")
        for rho, rise in ((0.01, 0.1), (0.05, None))
    ]
    moved = {"groups": {"conv1": ["conv1.weight"]}, "moves": moves, "sentence": "the loss rises"}
    diagnose(run, "response-x", responses={"final (step 2)": moved})
    diagnose(run, "shortcuts-x", whole=whole, removals=[removal], sentence="no sign of a shortcut")
    diagnose(run, "spectra-x", layers={"best": [layer], "final": [{**layer, "drift": 0.1}]})
    diagnose(run, "cam-x", cam="gradcam", layer="layer4", mask="zscore:1", groups={"all": group})


TOPICS = (
    "masking",
    "eps",
    "corruptions",
    "criticality",
    "line",
    "landscape",
    "response",
    "shortcuts",
    "spectra",
    "cam",
)


def test_a_page_says_what_was_measured_and_nothing_else(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    page, data = written(cli, "run")
    record = evaluation(run)[1]
    fgsm = record["accuracy"]["fgsm"]

    assert page.sections() == ["next", "run", "accuracy", "classes", "examples", "training", "overfitting"]
    assert f"{100 * fgsm['value']:.1f} % [{100 * fgsm['low']:.1f}, {100 * fgsm['high']:.1f}] under fgsm" in page.text
    assert "which is an upper bound" in page.text
    assert "gambeson evaluate run --attack autoattack" in page.text
    assert "gambeson train n-lap" in page.text
    run_data = data["runs"][0]
    assert run_data["robust"]["value"] == fgsm["value"]
    assert run_data["sections"]["run"]["settings"]["epochs"] == 1
    rows = {(row["checkpoint"], row["attack"]): row["value"] for row in run_data["sections"]["accuracy"]}
    assert rows["best", "clean"] == record["accuracy"]["clean"]["value"]
    assert rows["final", "fgsm"] == evaluation(run, "final-test-fgsm-1")[1]["accuracy"]["fgsm"]["value"]
    assert len(run_data["sections"]["examples"]["images"]) == 8


def test_the_sizes_of_the_splits_are_said_where_they_are_recorded(finished: Finished, cli: Cli) -> None:
    file = finished("run") / "run.json"
    page, data = written(cli, "run", "--examples", "0")
    assert "digits, 200 train, 70 val, 397 test images, Linf eps 0.2" in page.text
    assert data["runs"][0]["sections"]["run"]["data"]["sizes"] == {"train": 200, "val": 70, "test": 397}

    call = json.loads(file.read_text())
    del call["data"]["sizes"]
    file.write_text(json.dumps(call))
    page, _ = written(cli, "run", "--examples", "0")
    assert "digits, 200 training images, Linf eps 0.2" in page.text


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_has_a_section_where_it_has_a_record(topic: str, finished: Finished, cli: Cli) -> None:
    run = finished("run")
    fill(run)
    for file in (run / "diagnosis").iterdir():
        if not file.name.startswith(topic):
            file.unlink()
    page, data = written(cli, "run", "--examples", "0")

    assert set(page.sections()) == {"next", "run", "accuracy", "classes", "training", "overfitting", topic}
    assert data["runs"][0]["sections"][topic][0]["file"] == f"{topic}-x.json"
    assert "could not be read" not in page.text


def test_one_file_needs_nothing_else(finished: Finished, cli: Cli) -> None:
    fill(finished("run"))
    page, _ = written(cli, "run")
    text = Path("run/report.html").read_text()

    assert "<script" not in text
    assert not re.findall(r"https?://", text)
    assert not re.search(r"#0[ab]0[ab]0\d", text)  # every colour that stood for a variable was replaced
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    linked = {a["href"][1:] for _, a in page.elements if (a.get("href") or "").startswith("#")}  # type: ignore[index]
    assert linked <= set(names)
    assert all(a.get("alt") and (a["src"] or "").startswith("data:") for tag, a in page.elements if tag == "img")
    drawn = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert drawn
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(names)


def test_names_are_escaped(finished: Finished, cli: Cli) -> None:
    run = finished(HOSTILE)
    for file in (run / "evaluations").glob("*.json"):
        record = json.loads(file.read_text())
        for table in record["per_class"].values():
            table[HOSTILE] = table.pop("0")
        file.write_text(json.dumps(record))
    fill(run)
    diagnose(run, "shortcuts-x", whole={"clean": interval(0.5)}, removals=[], sentence=HOSTILE)
    page, data = written(cli, HOSTILE, "--examples", "0")
    text = (run / "report.html").read_text()

    assert "<img src=x" not in text
    assert not [a for tag, a in page.elements if tag == "img" and a.get("src") == "x"]
    assert HOSTILE in page.text
    assert data["runs"][0]["name"] == HOSTILE


def test_a_run_that_is_still_being_trained(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    (run / "checkpoints/final.safetensors").unlink()
    (run / "checkpoints/best.safetensors").unlink()
    shutil.rmtree(run / "evaluations")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # half a line
    page, data = written(cli, "run")

    assert page.sections() == ["next", "run", "training", "overfitting"]
    assert "the training is at: step 2" in page.text
    assert "the training has not ended" in page.text
    assert "training has not finished: step 2" in page.text
    assert "gambeson resume run" in page.text
    assert data["runs"][0]["clean"] is None
    assert len(data["runs"][0]["sections"]["training"]["series"]["train/loss"]) == 1


def test_few_images_under_autoattack_are_remarked(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    file, record = evaluation(run)
    stage = {"attack": "apgd-ce", "standing": 8, "fell": 2, "left": 6, "seconds": 1.0, "forwards": 1, "backwards": 1}
    found = {"norm": "Linf", "eps": 0.2, "n": 10, "clean": interval(0.8, 10), "stages": [stage], "searches": ["x"]}
    few = {"clean": interval(0.8, 10), "autoattack": interval(0.6, 10)}
    record |= {"n": 10, "accuracy": few, "ensembles": {"autoattack": found}}
    file.with_name("best-test-autoattack-1.json").write_text(json.dumps(record))
    page, data = written(cli, "run", "--examples", "0")

    assert "AutoAttack was run on 10 of 50 test images only" in page.text
    assert "under AutoAttack at Linf eps 0.2 (of 10 of them)" in page.text
    assert data["runs"][0]["sections"]["next"][1] == "gambeson evaluate run --attack autoattack"


def test_an_image_that_was_wrong_before_is_not_fooled(finished: Finished, cli: Cli) -> None:
    finished("run")
    _, data = written(cli, "run", "--examples", "64")
    images = data["runs"][0]["sections"]["examples"]["images"]

    for one in images:
        right, still = one["clean"] == one["class"], one["attacked"] == one["class"]
        assert one["verdict"] == ("wrong before the attack" if not right else "" if still else "fooled")
    assert {one["verdict"] for one in images} >= {"wrong before the attack", "fooled"}


def test_of_equal_accuracies_the_stronger_attack_is_stated(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    for name in ("best", "final"):
        file, record = evaluation(run, f"{name}-test-fgsm-1")
        record["accuracy"]["pgd-50"] = record["accuracy"]["fgsm"]
        record["per_class"]["pgd-50"] = record["per_class"]["fgsm"]
        file.write_text(json.dumps(record))
    page, data = written(cli, "run", "--examples", "0")

    assert data["runs"][0]["robust"]["attack"] == "pgd-50"
    assert "Under pgd-50" in page.text


def test_a_run_without_evaluations_and_metrics(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    shutil.rmtree(run / "evaluations")
    (run / "metrics.jsonl").unlink()
    page, _ = written(cli, "run", "--examples", "0")

    assert page.sections() == ["next", "run"]
    assert "Nothing has been measured" in page.text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("evaluations/best-test-fgsm-1.json", b"{"),
        ("evaluations/best-test-fgsm-1.json", b"[]"),
        ("evaluations/best-test-fgsm-1.json", b'{"split": "test"}'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("checkpoints/last.safetensors", b"cut"),
        ("diagnosis/masking-x.json", b"{"),
        ("diagnosis/masking-x.json", b'{"verdict": "PASS"}'),
    ],
)
def test_damage_is_named_and_hides_nothing_else(file: str, content: bytes, finished: Finished, cli: Cli) -> None:
    run = finished("run")
    (run / "diagnosis").mkdir()
    (run / file).write_bytes(content)
    page, data = written(cli, "run", "--examples", "0")

    assert "could not be read" in page.text
    assert Path(file).name in page.text
    problems = data["runs"][0]["sections"]["run"]["problems"]
    assert problems
    assert all(Path(file).name in problem for problem in problems)
    assert "accuracy" in page.sections()  # the other checkpoint's, or both


def test_no_examples_without_data(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    call = json.loads((run / "run.json").read_text())
    call["data"]["name"] = "npz:gone.npz"
    (run / "run.json").write_text(json.dumps(call))
    page, _ = written(cli, "run")

    assert "examples" not in page.sections()
    assert "no examples" in page.text
    assert "gone.npz" in page.text


def test_a_diagnosis_of_older_weights_says_so(finished: Finished, cli: Cli) -> None:
    fill(finished("run"))
    page, _ = written(cli, "run", "--examples", "0")
    assert "Run the diagnosis again" not in page.text

    diagnose(
        Path("run"), "cam-x", step=1, cam="gradcam", layer="a", mask="jet", groups={"all": {"full": {"mean": 0.5}}}
    )
    page, _ = written(cli, "run", "--examples", "0")
    assert "Of step 1: the checkpoint best is of step 2 now. Run the diagnosis again." in page.text


def test_what_was_selected_on_test_is_stamped(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    assert "selected on test" not in written(cli, "run", "--examples", "0")[0].text

    call = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**call, "selection": {"split": "test", "by": "x"}}))
    page, data = written(cli, "run", "--examples", "0")
    assert page.text.count("selected on test") >= 3  # every section with numbers
    assert data["runs"][0]["selected_on"] == "test"


def test_what_is_not_finite(finished: Finished, cli: Cli) -> None:
    """A loss of NaN is left out of the curve, and null in the JSON."""
    run = finished("run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "epoch": 1.0, "seconds": 1.0, "train/loss": NaN, "val/clean_acc": NaN}\n')
    _, data = written(cli, "run", "--examples", "0")

    assert data["runs"][0]["sections"]["training"]["series"]["train/loss"][-1] == [1.0, None]
    assert "NaN" not in Path("run/report.json").read_text()


def test_a_collapse_is_at_the_top(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    row = {"step": 2, "epoch": 1.0, "seconds": 1.0, "probe/fgsm_acc": 0.9, "probe/pgd10_acc": 0.0, "probe/gap": 0.9}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**row, "event": "catastrophic overfitting"}) + "\n")
    page, data = written(cli, "run", "--examples", "0")

    assert "catastrophic overfitting at step 2" in page.text
    assert [event["step"] for event in data["runs"][0]["sections"]["training"]["events"]] == [2]
    assert data["runs"][0]["sections"]["overfitting"]["collapse"]["look"]["step"] == 2
    assert "Catastrophic overfitting" in page.text


def wrong(run: Path, attack: str) -> None:
    """Make a run fail on every image under an attack."""
    file, record = evaluation(run)
    with np.load(file.with_suffix(".npz")) as arrays:
        outcomes = dict(arrays)
    outcomes[attack] = np.zeros_like(outcomes[attack])
    np.savez(file.with_suffix(".npz"), **outcomes)
    record["accuracy"][attack] = {"value": 0.0, "low": 0.0, "high": 0.07, "n": 50}
    file.write_text(json.dumps(record))


def test_runs_side_by_side_have_marks(finished: Finished, cli: Cli) -> None:
    finished("one")
    finished("two")
    file = evaluation(Path("one"))[0]
    with np.load(file.with_suffix(".npz")) as arrays:
        outcomes = {**arrays, "fgsm": np.ones_like(arrays["fgsm"])}
    np.savez(file.with_suffix(".npz"), **outcomes)
    wrong(Path("two"), "fgsm")
    page, data = written(cli, "one", "two", "--examples", "0")

    assert Path("report-one-two.html").is_file()
    assert page.sections()[:4] == ["overview", "comparison", "differences", "curves"]
    line = next(row for row in data["comparison"]["paired"] if row["key"].startswith("best fgsm"))
    assert (line["only_a"], line["only_b"], line["significant"]) == (50, 0, True)
    assert "0.0 [0.0, 7.0] *" in page.text
    assert page.text.count(" *") == 1
    assert "not significant" in page.text
    assert [run["name"] for run in data["runs"]] == ["one", "two"]


def test_runs_of_one_name_are_told_apart(finished: Finished, cli: Cli) -> None:
    finished("a/run")
    finished("b/run")
    page, _ = written(cli, "a/run", "b/run", "--examples", "0", "--out", "both.html")

    assert "a/run against b/run" in page.text
    assert "p (Holm)" in page.text


def test_nothing_of_a_run_is_changed(finished: Finished, cli: Cli) -> None:
    run = finished("run")
    before = fingerprint(run)
    written(cli, "run", "--out", "page.html")

    assert fingerprint(run) == before


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "report needs a run directory"),
        (("nowhere",), 1, "nowhere is not a run directory"),
        (("run", "--examples", "65"), 2, "--examples must be between 0 and 64"),
        (("run", "--examples", "0", "--out", "page.txt"), 2, "must end in .html"),
        (("run", "--examples", "0", "--out", "no/page.html"), 1, "cannot write"),
    ],
)
def test_refusals(args: tuple[str, ...], code: int, words: str, finished: Finished, cli: Cli) -> None:
    finished("run")
    assert_error(cli("report", *args), code, words)


def test_a_page_that_has_no_place_is_refused_before_any_work(
    finished: Finished, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished("run")
    monkeypatch.setattr("gambeson.app.report.records.read", lambda run: pytest.fail("records were read"))

    assert_error(cli("report", "run", "--out", "page.txt"), 2, "must end in .html")
    assert_error(cli("report", "run", "--out", "no/page.html"), 1, "cannot write no/page.html: there is no folder no")


def test_a_training_ends_with_its_page(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "at_the_end", reporting.at_the_end)
    result = cli("train", "standard", *SMALL, "--run", "run")

    assert result.out.rstrip().splitlines()[-1] == "report: run/report.html"
    assert Page(Path("run/report.html").read_text()).sections()[-1] == "overfitting"

    monkeypatch.setattr(reporting, "ENDING", ".pdf")  # what cannot be written does not undo the training
    result = cli("resume", "run")
    assert result.code == 0
    assert "no report: " in result.err


def test_a_chart_in_words() -> None:
    chart = line_chart(
        [Line("clean", (0, 1, 2), (10.0, 90.0, 50.0)), Line("lost", (0, 1), (float("nan"),) * 2)],
        "Accuracy",
        x="epoch",
        y="%",
        marks=[Mark(1.0, "collapse")],
    )
    assert chart.text == (
        "% against epoch. clean: 10 at 0, 50 at 2, largest 90 at 1; lost: no finite values. collapse at 1."
    )
    bars = bar_chart([Bar("a", 1.0, 0.5, 2.0), Bar("b", 123.4)], "Bars", x="points")
    assert bars.text == "points: a 1 (0.5 to 2); b 123."
    field = map_chart([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0], "Map", x="one", y="other", unit="loss")
    assert field.text == "loss over one and other: 4 at the centre, 1 to 4."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with Browser() as tab:
        yield tab


@pytest.fixture
def shown(finished: Finished, cli: Cli) -> list[Path]:
    fill(finished("a-run-with-quite-a-long-name-" + "x" * 60))
    fill(finished("two"))
    one = Path(cli("report", "two").out.strip())
    both = cli("report", "a-run-with-quite-a-long-name-" + "x" * 60, "two", "--examples", "2", "--out", "both.html")
    return [one, Path(both.out.strip())]


CONTRAST = """(() => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('title, desc, style') || e.closest('.skip')) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const front = parse(svg ? style.fill : style.color).slice(0, 3), back = behind(svg ? svg.parentElement : e);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    if ((high + .05) / (low + .05) < 4.5) poor.push([e.textContent.trim().slice(0, 30), front, back]);
  }
  return poor;
})()"""


def test_in_a_browser(shown: list[Path], browser: Browser, tmp_path: Path) -> None:
    """No horizontal scroll on a phone or a desktop, AA contrast in light and dark, no requests, something to see."""
    from PIL import Image

    for page in shown:
        for width in (320, 375, 1280):
            for dark in (False, True):
                browser.open(page, width, dark=dark)
                browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
                assert browser.run("document.documentElement.scrollWidth") <= width, (page, width)
                assert browser.run(CONTRAST) == [], (page, width, dark)
        browser.open(page, 375)
        smallest = "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))"
        assert browser.run(smallest) >= 8
        assert browser.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        for media, name in (("screen", "screen.png"), ("print", "print.png")):
            browser.open(page, 1280, media=media)
            browser.screenshot(tmp_path / name)
            with Image.open(tmp_path / name) as image:
                assert image.width == 1280
                assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50
    assert {address.split(":")[0] for address in browser.requests} == {"file", "data"}
    assert browser.errors == []
