"""Readers of parallel text in files: plain or gzipped text, TSV, JSON lines, parquet.

Each returns `Pairs`: the lines of both sides, strictly decoded and checked, and where they came from, so
that every complaint can name a file and a line.
"""

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from recipes.data.pairs import Pairs, pair_of, pairs_of_rows, refuse_huge, stored_columns
from thoth_core.errors import UserError

TABLES = (".tsv", ".jsonl", ".parquet")


# --- bytes to lines -----------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes:
    """The content of `path`, unpacked if its name ends in .gz."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error):
        raise UserError(f"{path}: the gzip file is truncated or damaged; copy it again") from None
    except gzip.BadGzipFile:
        raise UserError(f"{path}: is not a gzip file; remove .gz from its name or copy it again") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file") from None
    if not content:
        raise UserError(f"{path}: is empty; give a file with one sentence per line")
    return content


def decode(content: bytes, path: Path | str) -> str:
    """`content` as UTF-8 text without byte order mark; `UserError` naming the first line that is not."""
    for mark, encoding in ((b"\xff\xfe\0\0", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            raise UserError(f"{path}: is {encoding} text; convert it: iconv -f {encoding} -t UTF-8")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise UserError(f"{path}, line {line}: contains a NUL byte; give UTF-8 text (is it UTF-16 or a binary file?)")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: is not UTF-8 (byte 0x{content[error.start]:02x}); convert it, "
            "if it is Latin-1: iconv -f ISO-8859-1 -t UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a plain or gzipped text file."""
    return lines_of(read_bytes(path), str(path))


def lines_of(content: bytes, origin: str) -> list[str]:
    """The lines of a text. They end in \\n or \\r\\n and in nothing else."""
    text = decode(content, origin)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\n" not in text:
            raise UserError(f"{origin}: its lines end in carriage returns alone; convert it: tr '\\r' '\\n'")
    lines = text.removesuffix("\n").split("\n")
    refuse_huge(lines, origin)
    return lines


# --- a prefix: one file per language --------------------------------------------------------------------------


def read_prefix(prefix: Path, source: str, target: str) -> Pairs:
    """PREFIX.SOURCE and PREFIX.TARGET, each plain or .gz, line by line translations of each other."""
    paths = side(prefix, source), side(prefix, target)
    if os.path.samefile(*paths):
        raise UserError(f"{paths[0]} and {paths[1]}: are the same file; give the two languages in two files")
    sides = read_lines(paths[0]), read_lines(paths[1])
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{paths[0]} has {len(sides[0]):,} lines but {paths[1]} has {len(sides[1]):,}; "
            "give files whose lines are translations of each other"
        )
    return Pairs(*sides, (str(paths[0]), str(paths[1])))


def side(prefix: Path, language: str) -> Path:
    """The file PREFIX.LANGUAGE or PREFIX.LANGUAGE.gz: the one that exists."""
    plain, packed = Path(f"{prefix}.{language}"), Path(f"{prefix}.{language}.gz")
    if plain.exists() and packed.exists():
        raise UserError(f"{plain}: {packed.name} is there as well; remove one of the two")
    if not plain.exists() and not packed.exists():
        raise UserError(f"{plain}: no such file, nor {packed.name}; {contents(prefix.parent)}")
    return plain if plain.exists() else packed


def files_of(place: Path, source: str, target: str) -> tuple[Path, ...]:
    """The files that the prefix or table `place` stands for, which must exist."""
    if not is_table(place):
        return side(place, source), side(place, target)
    if not place.is_file():
        raise UserError(f"{place}: no such file; {contents(place.parent)}")
    return (place,)


def contents(folder: Path) -> str:
    """What `folder` contains, for the message about a missing file."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return f"the folder {folder} is empty"
    return f"{folder} contains {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


# --- tables: both languages in one file ---------------------------------------------------------------------


def is_table(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(TABLES)


def read_table(path: Path, columns: Sequence[str]) -> Pairs:
    """The two `columns` (source, target) of a .tsv, .jsonl (both may be .gz) or .parquet file.

    JSON lines and parquet may also hold a record `translation` with the two columns, as hub data sets do. A
    TSV file has the columns named in its first line, or else source and target as its only two columns.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".tsv"):
        rows = _tsv_rows(path, columns)
    elif name.endswith(".jsonl"):
        rows = _json_rows(path, columns)
    else:
        rows = _parquet_rows(path, columns)
    return pairs_of_rows(rows, str(path), columns)


def _tsv_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    lines = read_lines(path)
    header = lines[0].split("\t")
    named = all(column in header for column in columns)
    if named:
        places = header.index(columns[0]), header.index(columns[1])
        width = len(header)
    elif len(header) == 2:
        places, width = (0, 1), 2
    else:
        raise UserError(
            f"{path}, line 1: has {len(header)} columns; give two (source, tab, target), "
            f"or name the columns {columns[0]} and {columns[1]} in the first line"
        )
    rows = []
    for number, line in enumerate(lines[1:] if named else lines, 2 if named else 1):
        cells = line.split("\t")
        if len(cells) != width:
            raise UserError(
                f"{path}, line {number}: has {len(cells)} columns where line 1 has {width}; correct that line"
            )
        rows.append((cells[places[0]], cells[places[1]]))
    return rows


def _json_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UserError(f"{where}: is not JSON; give one object per line") from None
        rows.append(pair_of(record, columns, where))
    return rows


def _parquet_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = stored_columns(columns, file.schema_arrow.names, str(path))
        records = file.read(columns=names).to_pylist()
    except (pyarrow.ArrowException, OSError):
        raise UserError(f"{path}: is not a readable parquet file; copy it again") from None
    return [pair_of(record, columns, f"{path}, row {number}") for number, record in enumerate(records, 1)]
