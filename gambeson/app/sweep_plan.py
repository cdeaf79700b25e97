"""The plan of a sweep: its rows times seeds, every command line understood by its own parser before one is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gambeson.app import corrupting, training, tuning
from gambeson.app.measuring import attack_names, check_attacks
from gambeson.app.options import TrainOptions
from gambeson.app.parsing import UsageError, peek
from gambeson.app.sweep_file import corruption_options, count_of, read_sweep, seeds_of
from gambeson.app.sweep_rows import Row, rows_of
from gambeson.core.errors import GambesonError, InputError, nearest

SET = {"seed": "seeds", "attack": "attack", "run": "--root"}
"""Options that the sweep itself gives to every command, and where they are said."""


@dataclass(frozen=True)
class Job:
    """A row and a seed.

    Attributes:
        label: The row.
        seed: The seed.
        path: The run directory.
        command: The words after `gambeson` that begin it.
        base: The run directory that it starts from.
        record: What the run's record must say, of a training; a fine-tuning's follows from its base.
    """

    label: str
    seed: int
    path: Path
    command: tuple[str, ...]
    base: Path | None = None
    record: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Row and seed in words."""
        return f"{self.label} seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its commands print."""
        return Path(f"{self.path}.log")


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep does.

    Attributes:
        file: Where it is written.
        root: Folder of the runs.
        seeds: The seeds.
        labels: The rows of the table.
        attack: The attacks, comma-separated.
        jobs: Every row and seed; what others start from comes before them.
        pairs: Pairs of labels whose difference is asked for.
        ood: The words after `gambeson corruptions RUN`, or None.
        threads: Threads of a command.
        slots: Commands at a time.
        slurm: Parameters of SLURM.
    """

    file: Path
    root: Path
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    attack: str
    jobs: tuple[Job, ...]
    pairs: tuple[tuple[str, str], ...]
    ood: str | None
    threads: int
    slots: int
    slurm: dict[str, Any]

    @property
    def attacks(self) -> list[str]:
        """The attacks."""
        return attack_names(self.attack)

    @property
    def columns(self) -> list[str]:
        """What the table has of every run: an accuracy per attack, and the one out of distribution."""
        return [*self.attacks, *(["ood"] if self.ood else [])]

    @property
    def ood_record(self) -> str | None:
        """The name of the record of `gambeson corruptions` in RUN/diagnosis."""
        return None if self.ood is None else f"{corrupting.record_name('final', corruption_options(self.ood))}.json"

    def of(self, label: str) -> list[Job]:
        """The jobs of a row, by seed."""
        return [job for job in self.jobs if job.label == label]


def plan_of(file: Path, root: Path | None = None, only: str | None = None) -> Plan:
    """Read a sweep's file, and understand all that would be run.

    Args:
        file: The file.
        root: Folder of the runs; `runs/NAME` of the file's name where there is none.
        only: Labels, comma-separated: only these rows, and what they start from.

    Raises:
        InputError: What the file says, a row or a setting is not what it should be.
        FileError: The file cannot be read.
        UsageError: A row is not a command line.
    """
    content = read_sweep(file)
    root = root or Path("runs") / file.stem
    seeds = seeds_of(content, file)
    threads, slots = (count_of(content, key) for key in ("threads", "jobs"))
    attack = content.get("attack", TrainOptions.attack)
    attack = ",".join(map(str, attack)) if isinstance(attack, list) else str(attack)
    check_attacks(attack, None)
    ood = content.get("ood")
    if ood is not None:
        corruption_options(str(ood))
    slurm = content.get("slurm", {})
    if not isinstance(slurm, dict):
        raise InputError(f"slurm must be a table of parameters, got {slurm!r}")
    rows, groups = rows_of(content, file.parent)
    pairs = _pairs(content.get("pairs", []), groups)
    if only is not None:
        rows = _chosen(rows, only, groups)
        pairs = [pair for pair in pairs if {*pair} <= {row.label for row in rows}]
    jobs = _jobs(rows, seeds, attack, root)
    labels = tuple(row.label for row in rows)
    return Plan(
        file, root, seeds, labels, attack, jobs, tuple(pairs), None if ood is None else str(ood), threads, slots, slurm
    )


def _pairs(given: Any, groups: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """Pairs of labels; of two rows with grids those are paired that the grid names alike."""
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise InputError(f"pairs must be a list of pairs of labels, got {given!r}", hint="such as pairs: [[A, B]]")
    singles = {name: {"": name} for group in groups.values() for name in group.values()}
    known = {**singles, **groups}
    found: list[tuple[str, str]] = []
    for pair in given:
        for label in map(str, pair):
            if label not in known:
                raise InputError(f"pairs name an unknown row {label!r}", hint=nearest(label, known))
        a, b = (known[str(label)] for label in pair)
        if len(a) == 1 or len(b) == 1:
            found += [(one, other) for one in a.values() for other in b.values()]
        else:
            found += [(a[suffix], b[suffix]) for suffix in a if suffix in b]
    return found


def _chosen(rows: list[Row], only: str, groups: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """The rows with these labels, and those that they start from."""
    by = {row.label: row for row in rows}
    known = {**{label: {"": label} for label in by}, **groups}
    words = [only] if only in known else [word.strip() for word in only.split(",") if word.strip()]
    kept: set[str] = set()
    for word in words:
        if word not in known:
            raise InputError(f"--only names an unknown row {word!r}", hint=nearest(word, known))
        for label in known[word].values():
            following: str | None = label
            while following is not None:
                kept.add(following)
                following = by[following].base
    if not kept:
        raise InputError("--only names no row", hint=f"known: {', '.join(by)}")
    return [row for row in rows if row.label in kept]


def _jobs(rows: list[Row], seeds: tuple[int, ...], attack: str, root: Path) -> tuple[Job, ...]:
    """Every row and seed, by how many others it follows, then by seed."""
    by = {row.label: row for row in rows}
    depth = {row.label: _depth(row, by) for row in rows}
    folders: dict[Path, str] = {}
    found = []
    for level in sorted(set(depth.values())):
        level_rows = [row for row in rows if depth[row.label] == level]
        records = {row.label: _understood(row) for row in level_rows}
        for seed in seeds:
            for row in level_rows:
                path = folder(root, row.label, seed)
                if folders.setdefault(path, row.label) != row.label:
                    raise InputError(f"the rows {folders[path]!r} and {row.label!r} would share the folder {path}")
                common = ("--seed", str(seed), "--attack", attack, "--run", str(path))
                base = None if row.base is None else folder(root, row.base, seed)
                if base is None:
                    command = ("train", *row.words, *common)
                else:
                    command = ("finetune", row.words[0], str(base), *row.words[1:], *common)
                record = copy.deepcopy(records[row.label])
                if record is not None:
                    record["settings"]["seed"] = seed
                    record["attack"] = attack
                found.append(Job(row.label, seed, path, command, base, record))
    return tuple(found)


def folder(root: Path, label: str, seed: int) -> Path:
    """The run directory of a row and a seed.

    Examples:
        >>> str(folder(Path("runs"), "V-LAP 8/255", 3))
        'runs/V-LAP-8_255-seed3'
    """
    return root / f"{label.replace(' ', '-').replace('/', '_')}-seed{seed}"


def _depth(row: Row, by: Mapping[str, Row]) -> int:
    return 0 if row.base is None else 1 + _depth(by[row.base], by)


def _understood(row: Row) -> dict[str, Any] | None:
    """What the record of a training row must say; a row that the command would refuse is refused here.

    Raises:
        GambesonError: As the command would say it, with the row's label.
    """
    words = list(row.words)
    for option, where in SET.items():
        if peek(words, option) is not None:
            raise InputError(
                f"row {row.label!r} says --{option}, which the sweep gives to every row: say it in {where}"
            )
    if "-h" in words or "--help" in words:
        raise InputError(f"row {row.label!r} asks for help")
    try:
        if row.base is not None:
            how, *rest = words
            if how not in tuning.TITLES:
                raise UsageError(f"unknown way of fine-tuning {how!r}", hint=nearest(how, tuning.TITLES))
            if peek(rest, "weights") is not None:
                raise InputError("--weights does not go with a base")
            tuning.understand(how, ["RUN", *rest])
            return None
        return _record(words)
    except GambesonError as error:
        raise type(error)(f"row {row.label!r}: {error.message}", hint=error.hint) from None


def _record(words: list[str]) -> dict[str, Any]:
    from gambeson.data import FACTS
    from gambeson.data.catalog import require_data
    from gambeson.models import require_model

    asked = training.understand(words)
    record = training.call_of(asked)
    require_data(asked.options.data)
    require_model(record["model"]["name"], record["model"]["width"])
    if record["method"]["args"]["eps"] is None and asked.options.data in FACTS:
        record["method"]["args"]["eps"] = FACTS[asked.options.data].eps
    return record
