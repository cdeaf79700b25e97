"""What README, recipes and stories show is what the program understands, and the Python in the README runs."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from gambeson.app.cli import main
from gambeson.app.parsing import peek, split_words
from gambeson.app.recipes import find_recipe
from gambeson.app.training import train_flags, train_parser
from gambeson.app.tuning import finetune_parser
from gambeson.methods import method

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.startswith("gambeson train")
]
STORIES = [
    (path.stem, label, words)
    for path in sorted((ROOT / "docs" / "results").glob("*.yaml"))
    for label, words in yaml.safe_load(path.read_text())["rows"].items()
]


def understood(words):
    (word,), rest = split_words(words, train_flags())
    name, function = method(word)
    parser, _ = train_parser(name, function, peek(words, "data") or "digits")
    return parser.parse(rest)


def test_the_readme_shows_commands_and_stories_exist():
    assert len(COMMANDS) >= 3
    assert len(STORIES) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_understood(command):
    words = shlex.split(command)[2:]
    config = peek(words, "config")
    if config:
        assert find_recipe(config).is_file()
    else:
        assert understood(words)["data"]


@pytest.mark.parametrize(("story", "label", "words"), STORIES, ids=[f"{s}-{label}" for s, label, _ in STORIES])
def test_a_row_of_a_story_is_understood(story, label, words):
    if isinstance(words, dict):  # a row that fine-tunes another one
        how, *rest = words["finetune"].split()
        assert finetune_parser(how).parse(rest)["epochs"] == 10
        assert any(other == words["base"] and isinstance(line, str) for _, other, line in STORIES)
        return
    values = understood(words.split())
    assert 0 < values["eps"] <= 1
    assert values["val_fraction"] in (0, 0.05, 0.2)


def test_the_first_two_commands_are_the_issue_trackers_promise():
    first = [block.strip() for language, block in BLOCKS if language == "bash"][:2]
    assert first == [
        "pip install -e . -c constraints.txt && gambeson train n-lap",
        "pip install -e '.[dev]' -c constraints.txt && pytest",
    ]
    assert "pip install --quiet -e '.[dev]' -c constraints.txt && pytest" in (ROOT / ".ci" / "run").read_text()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--epochs", "1", "--attack", "clean", "--device", "cpu"]
    assert main(["train", "n-lap", *words]) == 0  # the first command's run, in one epoch
    assert 'gambeson.load_run("runs/digits-n-lap-1")' in README
    code = "\n".join(block for language, block in BLOCKS if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"\d+\.\d % \[", capsys.readouterr().out)
    assert (tmp_path / "runs/composed-1/checkpoints/final.safetensors").is_file()


def test_the_error_of_the_readme_is_the_one_that_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = [json.loads(block) for language, block in BLOCKS if language == "json"]
    assert main(["evaluate", "runs/nothing", "--json"]) == 1
    assert shown == [json.loads(capsys.readouterr().out)]


def test_links_of_the_readme_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
