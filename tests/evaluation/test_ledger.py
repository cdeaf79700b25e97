"""The state of an evaluation on disk: its folder, made by one of several processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gambeson.core.errors import RunError
from gambeson.evaluation.ledger import Ledger


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("seed", [0, 1])
def test_another_process_writes_the_identity_meanwhile(
    at: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the folder is listed: the same work goes on, other work is refused."""
    plain = Path.iterdir

    def listed(folder: Path) -> Iterator[Path]:
        if at == "before":
            (tmp_path / "identity.json").write_text(json.dumps({"seed": seed}))
        paths = list(plain(folder))
        (tmp_path / "identity.json").write_text(json.dumps({"seed": seed}))
        return iter(paths)

    monkeypatch.setattr(Path, "iterdir", listed)
    if seed == 0:
        Ledger(tmp_path, {"seed": 0})
    else:
        with pytest.raises(RunError, match="seed is 1 there, 0 here"):
            Ledger(tmp_path, {"seed": 0})


def test_what_a_kill_left_half_written_is_no_state(tmp_path: Path) -> None:
    (tmp_path / ".identity.17.partial").write_text('{"se')

    Ledger(tmp_path, {"seed": 0})

    assert json.loads((tmp_path / "identity.json").read_text()) == {"seed": 0}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "state").touch()

    with pytest.raises(RunError, match="state is a file"):
        Ledger(tmp_path / "state", {})
