"""Write the report of runs and photograph the top of it with Chromium: README's picture.

`python scripts/report_picture.py RUN [RUN...] --out docs/report.png`; `--dark`, `--width`, `--height` say what of it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gambeson.app import build
from gambeson.app.reporting import write

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)


def main() -> int:
    """Write and photograph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--data-dir")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser: one of {', '.join(BROWSERS)} is needed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        page, _ = write(
            [build.open_run(run) for run in options.runs], Path(folder) / "report.html", data_dir=options.data_dir
        )
        command = [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--screenshot={options.out.resolve()}"]
        command += [f"--window-size={options.width},{options.height}"]
        command += ["--blink-settings=preferredColorScheme=0"] if options.dark else []
        subprocess.run([*command, page.as_uri()], check=True, stderr=subprocess.DEVNULL)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
