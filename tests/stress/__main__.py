"""Run every stress test, one after the other: `make stress`, or `python -m tests.stress --data FOLDER`."""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# What a program needs of the data folder: option → path below the folder.
DATA = {
    "check_corpora": {
        "--sets": "iwslt15_en_vi_xml",
        "--moses": "moses_fixture",
        "--text": "multi30k/train",
    }
}


def exists(path: Path) -> bool:
    """Is `path` a file, a folder, or a prefix of files?"""
    return path.exists() or any(path.parent.glob(f"{path.name}.*"))


def arguments(program: str, data: Path) -> list[str] | None:
    """The options of a program; None if it needs data and none of them is there."""
    needed = DATA.get(program, {})
    words = [word for option, name in needed.items() if exists(data / name) for word in (option, str(data / name))]
    return None if needed and not words else words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="FOLDER", help="real text to read")
    parser.add_argument("programs", nargs="*", help="names such as check_resuming (default: all)")
    options = parser.parse_args()
    outcome: dict[str, str] = {}
    for program in options.programs or sorted(path.stem for path in FOLDER.glob("check_*.py")):
        words = arguments(program, options.data)
        if words is None:
            outcome[program] = f"not run: none of its data is in {options.data}"
            continue
        print(f"\n=== {program} {' '.join(words)}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"tests.stress.{program}", *words]).returncode
        outcome[program] = "passed" if status == 0 else f"FAILED with exit status {status}"
    print()
    for program, result in outcome.items():
        print(f"{program}: {result}")
    return int(any(result.startswith("FAILED") for result in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
