"""Check that corpora are read, tokenised and split as by the original scripts, and measure an archive of official size.

`python tests/stress/check_corpora.py` with any of

- `--sets FOLDER`: XML sets of WIT3 (SET.PAIR.LANG.xml). Prints the aligned pairs of each.
- `--moses FOLDER`: raw.LANG with tok.LANG, tok.lc.LANG and tok.noescape.LANG, the output of tokenizer.perl and
  lowercase.perl for it. Prints how many lines differ from ours.
- `--text PREFIX`: plain text PREFIX.de and PREFIX.en (or .gz). It is made into an archive of the form and size of
  iwslt14's de-en.tgz. Prints seconds and memory (of all processes together) of both preparations, and compares their
  split counts with the rule of fairseq's prepare-iwslt14.sh. A second call must do nothing.

Exit status 1 if a line differs, a count departs from the rule, or a second call does anything.
"""

import argparse
import contextlib
import gzip
import io
import itertools
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import finish, machine
from recipes.data import wit3
from recipes.tokenization import moses
from tests.stress.check_killing import content

TALK, EVERY = 100, 23  # sentences per talk; fairseq takes every 23rd pair for validation
SETS = {"dev2010": 900, "TEDX.dev2012": 1_100, "tst2010": 1_500, "tst2011": 1_400, "tst2012": 1_850}


def sets(folder: Path) -> dict[str, int]:
    """{set and pair: aligned pairs}. Raises a UserError for a set that is not aligned."""
    aligned = {}
    for stem in sorted({path.name.rsplit(".", 2)[0] for path in folder.glob("*.xml")}):
        languages = stem.rsplit(".", 1)[1].split("-")
        paths = [folder / f"{stem}.{language}.xml" for language in languages]
        sides = [wit3.xml_documents(path.read_bytes(), path.name) for path in paths]
        counts = [[len(document.sentences) for document in side] for side in sides]
        assert counts[0] == counts[1], stem
        aligned[stem] = sum(counts[0])
        print(f"{stem:<32} {aligned[stem]:>6,} pairs in {len(counts[0])} documents", flush=True)
    return aligned


def tokens(folder: Path) -> dict[str, int]:
    """{language: number of lines that differ from the scripts' output, in all three forms together}."""
    differing = {}
    for path in sorted(folder.glob("raw.*")):
        language = path.suffix.removeprefix(".")
        raw = path.read_bytes().decode("utf-8").split("\n")
        forms: dict[str, Callable[[str], str]] = {
            "tok": lambda line, of=language: moses.tokenise(line, of),
            "tok.lc": lambda line, of=language: moses.lowercase(moses.tokenise(line, of)),
            "tok.noescape": lambda line, of=language: moses.tokenise(line, of, escape=False),
        }
        differ = 0
        for form, ours in forms.items():
            theirs = (folder / f"{form}.{language}").read_bytes().decode("utf-8").split("\n")
            differ += sum(ours(line) != line_of for line, line_of in zip(raw, theirs, strict=True))
        differing[language] = differ
        print(f"{language}: {len(raw) - 1:,} lines, {differ} differ", flush=True)
    return differing


# --- an archive ---------------------------------------------------------------------------------------------


def lines(prefix: Path, language: str) -> list[str]:
    """The lines of PREFIX.LANG or PREFIX.LANG.gz."""
    path = prefix.with_name(f"{prefix.name}.{language}")
    text = path.read_text("utf-8") if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes()).decode()
    return text.removesuffix("\n").split("\n")


def longer(text_lines: list[str]) -> Iterator[str]:
    """Without end, other lines of the same text: each line, each with the next one, each with the next two, ..."""
    for count in itertools.count(1):
        for first in range(len(text_lines)):
            yield " ".join(text_lines[(first + k) % len(text_lines)] for k in range(count))


def talks(source: Iterator[str], count: int) -> Iterator[tuple[int, list[str]]]:
    for number in range(1, -(-count // TALK) + 1):
        yield number, list(itertools.islice(source, min(TALK, count - (number - 1) * TALK)))


def train_tags(source: Iterator[str], count: int) -> str:
    """A train.tags file of `count` sentences, titles and descriptions among them."""
    text = []
    for number, sentences in talks(source, count):
        text += [f"<url>http://www.ted.com/talks/{number}</url>", "<keywords>talks</keywords>", "<speaker>A</speaker>",
                 f"<talkid>{number}</talkid>", f"<title>{sentences[0]}</title>",
                 f"<description>{sentences[1]}</description>", *sentences[2:]]  # fmt: skip
    return "\n".join(text) + "\n"


def xml(source: Iterator[str], count: int, name: str, language: str) -> str:
    text = ['<?xml version="1.0" encoding="UTF-8"?>', "<mteval>", f'<srcset setid="{name}" srclang="{language}">']
    for number, sentences in talks(source, count):
        text += [f'<doc docid="{number}" genre="lectures">', f"<talkid>{number}</talkid>"]
        text += [f'<seg id="{k}"> {escaped(line)} </seg>' for k, line in enumerate(sentences, 1)]
        text += ["</doc>"]
    return "\n".join([*text, "</srcset>", "</mteval>"]) + "\n"


def escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;")


def archive(prefix: Path, path: Path, pairs: int) -> None:
    """de-en.tgz as WIT3 has it: `pairs` of training text, and the five sets of iwslt14."""
    with tarfile.open(path, "w:gz") as tar:
        for language in ("de", "en"):
            source = longer(lines(prefix, language))
            files = {f"train.tags.de-en.{language}": train_tags(source, pairs)}
            for name, count in SETS.items():
                title = f"IWSLT14.{'' if name.startswith('TEDX') else 'TED.'}{name}"
                files[f"{title}.de-en.{language}.xml"] = xml(source, count, title, language)
            for name, text in files.items():
                member = tarfile.TarInfo(f"de-en/{name}")
                member.size = len(text.encode())
                tar.addfile(member, io.BytesIO(text.encode()))


def memory(process: int) -> int:
    """Bytes that a process and its children, as far as there are any, hold together: shared pages count once."""
    total = 0
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(memory(int(child)) for child in (task / "children").read_text().split())
        match = re.search(r"(?m)^Pss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
        total += int(match[1]) * 1024 if match else 0
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # it has just ended
    return total


def prepared(corpus: str, path: Path) -> tuple[float, int]:
    """Seconds and peak bytes of `recipes/prepare.sh CORPUS --from PATH`."""
    call = [str(ROOT / "recipes/prepare.sh"), corpus, "--from", str(path)]
    begun, most = time.monotonic(), 0
    with open("prepare.log", "a+", encoding="utf-8") as log:
        process = subprocess.Popen(
            call, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHON": sys.executable}
        )
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        assert process.returncode == 0, Path("prepare.log").read_text("utf-8")[-2000:]
    return seconds, most


def preparation(corpus: str, path: Path, pairs: int) -> dict[str, Any]:
    """Prepare twice."""
    seconds, most = prepared(corpus, path)
    folder = Path("data", corpus)
    before, times = content(folder), {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    again, _ = prepared(corpus, path)
    same = content(folder) == before and times == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    counts = {
        split: len((folder / f"text/{split}.de").read_bytes().decode().split("\n")) - 1
        for split in ("train", "valid", "test")
    }
    kept = counts["train"] + counts["valid"]
    by_rule = counts["valid"] == kept // EVERY and counts["test"] == sum(SETS.values()) and kept <= pairs
    print(f"{corpus}: {seconds:.1f} s, {most / 2**20:,.0f} MB, {counts}, second call {again:.2f} s", flush=True)
    return {"seconds": round(seconds, 1), "megabytes": round(most / 2**20), "counts": counts, "by_rule": by_rule,
            "second_seconds": round(again, 2), "second_does_nothing": same}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, metavar="FOLDER", help="folder of XML sets")
    parser.add_argument("--moses", type=Path, metavar="FOLDER", help="folder of raw text and of the scripts' output")
    parser.add_argument("--text", type=Path, metavar="PREFIX", help="prefix of parallel text in de and en")
    parser.add_argument("--pairs", type=int, default=171_000, help="training pairs in the archive (default: 171,000)")
    options = parser.parse_args()
    if not (options.sets or options.moses or options.text):
        parser.error("give --sets, --moses or --text")
    results: dict[str, Any] = {}
    if options.sets:
        results["sets"] = sets(options.sets)
    if options.moses:
        results["lines_that_differ"] = tokens(options.moses)
    if options.text:
        prefix = options.text.absolute()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            archive(prefix, Path("de-en.tgz"), options.pairs)
            for corpus in ("iwslt14.de-en", "iwslt14.de-en.paper"):
                results[corpus] = preparation(corpus, Path("de-en.tgz"), options.pairs)
    finish({**results, "machine": machine()})
    archives = [figures for figures in results.values() if isinstance(figures, dict) and "by_rule" in figures]
    right = all(figures["by_rule"] and figures["second_does_nothing"] for figures in archives)
    return 0 if right and not any(results.get("lines_that_differ", {}).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
