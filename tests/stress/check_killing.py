"""Check that a recipe which was killed at any moment completes when it is called again, with the same result.

`python tests/stress/check_killing.py` does this for preparing, for evaluating an average of checkpoints, for evaluating
one checkpoint, and for writing a report. It calls the recipe without interruption, and then kills it (with everything
that it started, or its own process alone) at random moments between its start and its end. After each kill, the next
call of the recipe must complete, and what it writes must be the same byte for byte, without any other file. Only
measured times are left out of the comparison. Exit status 1 if anything differs.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import finish
from tests.stress.check_resuming import CORPUS, MODEL, completed, recipe

# The measured times in the files of an evaluation.
TIMES = {
    "scores.json": rb'"(seconds|tokens_per_second)": [0-9.]+',
    "scores.txt": rb"[0-9.]+ s, [0-9,]+ tokens per second",
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, without times."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = path.read_bytes()
            if path.name in TIMES:
                text, times = re.subn(TIMES[path.name], b"", text)
                assert times, path
            files[path.relative_to(folder).as_posix()] = text
    return files


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check(
    name: str, call: list[str], watched: Path, result: Path, kills: int, draw: random.Random, replace: str | None = None
) -> dict[str, int]:
    """Kill `call`, which writes `result` in `watched`, `kills` times; the option `replace` has it replace a result."""
    remove(result)
    begun = time.monotonic()
    completed(*call)
    seconds = time.monotonic() - begun
    expected = content(watched)
    wrong: list[str] = []
    number = missed = 0
    while number < kills and missed < 10 * kills:
        # Every other kill meets a first call, the others a call that has results to replace.
        if number % 2 == 0:
            remove(result)
        replacing = bool(replace) and number % 2 == 1
        process = recipe(*call, *([replace] if replacing else []))
        moment = draw.uniform(0.05, seconds)
        time.sleep(moment)
        if process.poll() is not None:  # it was faster this time
            missed += 1
            continue
        # Children of a killed recipe may run on for a while and use what a replacement needs.
        (os.killpg if number % 3 or replacing else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        completed(*call)
        assert result.exists()
        differing = differences(expected, content(watched))
        number += 1
        wrong += [f"kill {number} at {moment:.2f} s: {path}" for path in differing]
        print(f"{name:<9} {number:>3}  {moment:6.2f} s of {seconds:.2f}  {len(differing)} files differ", flush=True)
    for line in wrong[:10]:
        print(f"          {line}")
    return {"kills": number, "files": len(expected), "differ": len(wrong)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="number of kills of each recipe (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments (default: 1)")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("small.yaml").write_text(CORPUS)
        Path("tiny.yaml").write_text(MODEL.format(epochs=3, bf16="false"))
        run = Path("runs/small/tiny")

        prepare, data = ["prepare", "small.yaml"], Path("data")
        results = {"prepare": check("prepare", prepare, data, data / "small", options.kills, draw, "--force")}
        completed("train", "small", "tiny.yaml", "--cpu")
        evaluate = ["evaluate", "small", "tiny.yaml", "--cpu"]
        for name, more, result in (
            ("average", ["--average", "3"], "evaluation-average-3"),
            ("evaluate", [], "evaluation"),
        ):
            results[name] = check(name, [*evaluate, *more], run, run / result, options.kills, draw)
        completed(*evaluate, "--beam", "1", "--output", "greedy")
        report = ["report", str(run), "greedy", "--samples", "200"]
        results["report"] = check("report", report, run, run / "report.html", options.kills, draw)
    same = all(counts["differ"] == 0 and counts["kills"] == options.kills for counts in results.values())
    finish({"same": same, **results, "seed": options.seed})
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
