"""Measure all tables of times again: results into ``benchmarks/*/results/``, and the pages from them.

    python -m benchmarks.figures.renew --cifar10 imagefolder:DIR [--only NAME ...]

For a quiet machine. Each table is measured by its own process into ``out/bench/renewed/``; those that are
there are taken as they are, so that what was stopped goes on. ``--again`` measures them anew.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from .pages import ROOT

MEASURED = ROOT / "out" / "bench" / "renewed"
RUNS = ROOT / "out" / "bench" / "cifar10"
PICTURE = ROOT / "docs" / "speed" / "spectral_scaling.png"

# The name of results, the module that makes them, and what it is given besides --json.
COMMANDS: dict[str, tuple[str, ...]] = {
    "energy/cpu": ("benchmarks.energy.table",),
    "energy/busy": ("benchmarks.energy.busy",),
    "optim/cpu": ("benchmarks.optim.table",),
    "spectral/cpu": ("benchmarks.spectral.table",),
    "spectral/solvers": ("benchmarks.spectral.solvers",),
    "spectral/scaling": ("benchmarks.spectral.scaling", "--picture", str(MEASURED / PICTURE.name)),
    "circuits/cpu": ("benchmarks.circuits.table",),
    "circuits/units": ("benchmarks.circuits.units",),
    "circuits/convolutions": ("benchmarks.circuits.convolutions", "--threads", "1"),
    "examples/cpu": ("benchmarks.examples.seconds",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", metavar="DATA", help="cifar10 or imagefolder:DIR, for circuits/cpu")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    options = parser.parse_args(arguments)
    if "circuits/cpu" in options.only and not options.cifar10:
        parser.error("--cifar10 is needed for circuits/cpu; or name others by --only")
    failed = []
    for name in options.only:
        file = MEASURED / f"{name.replace('/', '-')}.json"
        if file.exists() and not options.again:
            print(f"{name}: there since {time.ctime(file.stat().st_mtime)}", flush=True)
            continue
        start = time.monotonic()
        try:
            command = [*COMMANDS[name], *(runs(options.cifar10) if name == "circuits/cpu" else ())]
            run(*command, "--json", str(file))
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        else:
            print(f"{name}: took {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"not measured, so no page is changed: {', '.join(failed)}", file=sys.stderr)
        return 1
    for name in options.only:
        place = ROOT / "benchmarks" / f"{name.replace('/', '/results/')}.json"
        shutil.copyfile(MEASURED / f"{name.replace('/', '-')}.json", place)
        if name == "spectral/scaling":
            shutil.copyfile(MEASURED / PICTURE.name, PICTURE)
    # Another process reads the new results.
    run("benchmarks.figures", "--write")
    return 0


def run(module: str, *options: str) -> None:
    MEASURED.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", module, *options], check=True, cwd=ROOT)


def runs(data: str) -> list[str]:
    """Train the networks whose circuits are timed, unless they are there; return options with them."""
    folders = [RUNS / "plain-seed42", RUNS / "modular-seed42"]
    if not all((folder / "results.json").exists() for folder in folders):
        options = ["--data", data, "--seed", "42", "--seeds", "1", "--out", str(RUNS), "--overwrite"]
        run("modfast", "reproduce", *options)
    return ["--run", *map(str, folders), "--data", data]


if __name__ == "__main__":
    raise SystemExit(main())
