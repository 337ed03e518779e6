"""Where the checkout is, and which files belong to it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tracked_files(*patterns: str) -> list[str]:
    """Names relative to ROOT of the files that git tracks, or would track: new ones too, ignored and deleted ones not.

    Args:
        patterns: of git's pathspecs, such as `*.py`, which matches in every folder; none for all files.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listing.split("\0") if name and (ROOT / name).is_file()})
