"""The files below a folder."""

import os
from pathlib import Path

__all__ = ["files_below"]


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted; links to folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back would be followed without end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [Path(place, name) for name in names]
    return sorted(files)
