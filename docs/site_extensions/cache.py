"""Where the outputs of notebooks are kept between builds."""

import hashlib
import shutil
from pathlib import Path


def notebook_cache(root: Path) -> Path:
    """Return a folder for outputs that this state of the package made, and remove those of other states."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("modfast", "csrc") for path in (root / folder).rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".so"):
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    folder = root / "build" / "docs" / "notebooks"
    kept = folder / digest.hexdigest()[:16]
    for other in folder.glob("*"):
        if other != kept:
            shutil.rmtree(other)
    return kept
