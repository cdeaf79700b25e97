"""`gambeson diagnose spectra`: singular values of the layers, and their drift, at any checkpoints of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gambeson.app.options import SpectraOptions
from gambeson.app.parsing import name_of, parse_run


def spectra(args: list[str]) -> int:
    """`gambeson diagnose spectra RUN [options]`."""
    description = "Measure the singular values of every layer's weight, and how far weights drift between checkpoints."
    path, options = parse_run("diagnose spectra", description, SpectraOptions, args)
    import torch

    from gambeson.app import build, layered, states
    from gambeson.diagnosis import draw_spectra, measure_spectra
    from gambeson.diagnosis.groups import parse_groups
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json

    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    checkpoints = build.listed_checkpoints(run, options.checkpoint, "final, or best,final, or snapshots")
    loaded = [build.load_model(run, name, torch.device("cpu")) for name in checkpoints]
    loaded.sort(key=lambda one: one[3])  # drift is from one step to a later one
    layers = None
    if options.layers is not None:
        groups = parse_groups(loaded[0][0], options.layers)
        layers = list(dict.fromkeys(name for names in groups.values() for name in names))
    found = measure_spectra({f"{name} (step {step})": model for model, _, name, step in loaded}, layers)
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "unfinished": states.unfinished(run),
        **found.to_dict(),
        "versions": versions(),
    }
    stem = name_of("spectra", options, "layers", "checkpoint")
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.png"
    out.parent.mkdir(exist_ok=True)
    draw_spectra(found, out, run.path.name)
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else layered.spectra(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0
