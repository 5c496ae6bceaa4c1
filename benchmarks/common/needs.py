"""Say which packages lack that some files of the project import at once; install nothing.

    python -m benchmarks.common.needs benchmarks/energy/table.py        # fails if something lacks
    python -m benchmarks.common.needs --runnable tests/*/test_*_cuda.py # prints the files that lack nothing

Imports at the top of the files are followed into the project's own modules, but not into functions, nor into
``try`` and ``with``: those are optional. Only the standard library is used here, because the packages may be
what lacks.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ("modfast", "benchmarks", "tests")

# Where a package's name is another than that of its module.
PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}


def imported(source: str, package: str) -> set[str]:
    """Return the full names of the modules that a source imports at its top.

    >>> sorted(imported("import numpy as np\\nfrom .a import b\\nfrom os import path", "one.two"))
    ['numpy', 'one.two.a', 'one.two.a.b', 'os', 'os.path']
    """
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def own_files(name: str, beside: Path) -> list[Path]:
    """Return the files of the project that an import of a module runs, packages above it included."""
    parts = name.split(".")
    if parts[0] not in OWN:
        # Tests import helpers from their folder and from that of conftest.py, setup.py what lies beside it.
        folders = (beside, ROOT / "tests", ROOT)
        return [path for folder in folders if (path := folder / f"{parts[0]}.py").is_file()]
    places = [ROOT.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    files = [place / "__init__.py" for place in places] + [places[-1].with_suffix(".py")]
    return [path for path in files if path.is_file()]


def third_party(files: Iterable[Path]) -> set[str]:
    """Return the top names of the modules that files need at once and that the project does not hold."""
    waiting, seen, needed = [path.resolve() for path in files], set[Path](), set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        package = ".".join(path.parent.relative_to(ROOT).parts)
        for name in imported(path.read_text(encoding="utf-8"), package):
            if found := own_files(name, path.parent):
                waiting += found
            elif name.split(".")[0] not in {*OWN, *sys.stdlib_module_names}:
                needed.add(name.split(".")[0])
    return needed


def lacking(files: Iterable[Path]) -> list[str]:
    """Return the packages that are needed and cannot be found, by the names that pip knows."""
    return sorted(PACKAGES.get(name, name) for name in third_party(files) if find_spec(name) is None)


def tell(path: Path, lacks: Sequence[str]) -> None:
    print(
        f"{sys.executable} lacks {', '.join(lacks)}, which {path} needs; nothing was installed. "
        f"With a network: {sys.executable} -m pip install {' '.join(lacks)}",
        file=sys.stderr,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 if something lacks; with --runnable only if no file can run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runnable", action="store_true", help="print the files that lack nothing")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args(arguments)
    runnable = []
    for path in options.files:
        if lacks := lacking([path]):
            tell(path, lacks)
        else:
            runnable.append(path)
    if options.runnable:
        print(*runnable)
        return 0 if runnable else 1
    return 0 if len(runnable) == len(options.files) else 1


if __name__ == "__main__":
    sys.exit(main())
