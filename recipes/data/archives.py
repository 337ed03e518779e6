"""Archives of raw text: members of .tgz, .tar and .zip files and of folders, and downloads that resume.

Nothing is unpacked to the disk, and an archive with a member that would not stay inside a folder, or is no
plain file, is refused whole.
"""

import contextlib
import fcntl
import gzip
import http.client
import io
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from recipes.console.messages import INTERVAL, say
from recipes.storage.corpus_folder import digest, is_open_file, made
from thoth_core.errors import UserError

LIMIT = 1 << 30  # bytes of one member; far more than any release holds, and it stops an archive that swells
ENDINGS = (".tgz", ".tar.gz", ".tar", ".zip")


@dataclass(frozen=True)
class Member:
    """One file of an archive or folder."""

    origin: str  # what to call it in messages: the archive and the member's name in it
    content: bytes


Wanted = Callable[[str], bool]  # whether a file of that name, without folders, is to be read


def read_members(source: Path | Member, wanted: Wanted) -> tuple[dict[str, Member], list[str]]:
    """The wanted files of an archive (also one inside another) or folder by their names, and all names there are.

    Raises a UserError for an archive that is damaged or unsafe, or that has two files of a wanted name.
    """
    origin = source.origin if isinstance(source, Member) else str(source)
    found: dict[str, Member] = {}
    names: list[str] = []
    try:
        for name, read in _entries(source, origin):
            names.append(name)
            base = name.rsplit("/", 1)[-1]
            if not wanted(base):
                continue
            if base in found:
                raise UserError(f"{origin}: holds {base} twice ({found[base].origin} and {name}); remove one of them")
            found[base] = Member(f"{origin}/{name}", read())
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{origin}: is cut off or damaged ({_reason(error)}); copy or download it again") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile: a method it does not know, a password
        raise UserError(f"{origin}: cannot be unpacked ({_reason(error)}); pack it anew as .tgz") from None
    except OSError as error:
        where = error.filename or origin
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); give a readable file") from None
    return found, names


def folder_files(folder: Path, wanted: Wanted) -> list[Path]:
    """The wanted files below `folder`, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if wanted(path.name) and path.is_file())


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _entries(source: Path | Member, origin: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name and reader of every file; a reader works until the next file is asked for."""
    if isinstance(source, Path) and source.is_dir():
        for path in folder_files(source, lambda _: True):
            yield path.relative_to(source).as_posix(), path.read_bytes
        return
    with io.BytesIO(source.content) if isinstance(source, Member) else source.open("rb") as file:
        beginning = file.read(512)
        file.seek(0)
        if beginning.startswith(b"PK\x03\x04"):
            yield from _zip_entries(file, origin)
        elif beginning.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield from _tar_entries(unpacked, origin)
                _finish(unpacked, origin)
        elif beginning[257:262] == b"ustar":
            yield from _tar_entries(file, origin)
        else:
            is_page = beginning.lstrip().lower().startswith((b"<!doctype html", b"<html"))
            what = "a web page" if is_page else "an empty file" if not beginning else "something else"
            raise UserError(f"{origin}: is {what}, not a .tgz, .tar or .zip archive; copy or download it again")


def _tar_entries(stream: Any, origin: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    # As a stream: going back in a gzip file would mean unpacking it again from its beginning.
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            _refuse_unsafe(member.name, member.size, origin)
            if member.isdir():
                continue
            if not member.isreg():
                raise UserError(
                    f"{origin}: member {member.name} is a link or device, which no text archive needs; "
                    "get the official archive"
                )
            data = archive.extractfile(member)
            assert data is not None  # it is a regular file
            yield member.name.removeprefix("./"), data.read


def _finish(stream: gzip.GzipFile, origin: str) -> None:
    """Read what follows the tar file: only at the end of the stream does gzip compare its checksum."""
    left = LIMIT
    while block := stream.read(1 << 20):
        left -= len(block)
        if left < 0:
            raise UserError(f"{origin}: unpacks to more than {LIMIT >> 30} GiB after its end; get the official archive")


def _zip_entries(file: IO[bytes], origin: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            _refuse_unsafe(member.filename, member.file_size, origin)
            if (member.external_attr >> 28) == 0o12:  # the file type of a Unix mode: a symbolic link
                raise UserError(
                    f"{origin}: member {member.filename} is a link, which no text archive needs; "
                    "get the official archive"
                )
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.read(member)  # type: ignore[misc]


def _refuse_unsafe(name: str, size: int, origin: str) -> None:
    outside = name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match("[A-Za-z]:", name)
    if outside or not name.isprintable():
        raise UserError(
            f"{origin}: member {name!a} would not stay inside the archive's folder; get the official archive"
        )
    if size > LIMIT:
        raise UserError(f"{origin}: member {name} has {size:,} bytes, more than {LIMIT >> 30} GiB; is it damaged?")


# --- downloads ----------------------------------------------------------------------------------------------

TRIES = 5  # in a row that bring nothing new
PAUSE = 2.0  # seconds before the second try, twice as many before each later one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16


def download(url: str, place: Path, sha256: str) -> None:
    """Fetch `url` to the file `place`, whose SHA-256 must be `sha256`; nothing is fetched if it is there and right.

    What has come stays in PLACE.part when a download is interrupted, and the next one goes on from there.
    """
    if place.exists() and digest(place) == sha256:
        return
    with made(place.parent), _part_of(place) as part:
        # Another process may have fetched it while this one was waiting.
        if not (place.exists() and digest(place) == sha256):
            say(f"downloading {url}")
            resumed = _fetch(url, part)
            found = digest(Path(part.name))
            if found != sha256 and resumed:  # the beginning may be another file's
                say(f"{url}: what had come before does not fit; fetching it whole")
                part.truncate(0)
                _fetch(url, part)
                found = digest(Path(part.name))
            if found != sha256:
                part.truncate(0)
                raise UserError(
                    f"{url}: what came has the SHA-256 {found}, but {sha256} was expected; try again later, or get "
                    "the official archive elsewhere and give it with --from ARCHIVE"
                )
            os.fsync(part.fileno())
            Path(part.name).rename(place)


@contextlib.contextmanager
def _part_of(place: Path) -> Iterator[IO[bytes]]:
    """PLACE.part, open for appending and locked; removed if nothing is in it."""
    path = Path(f"{place}.part")
    while True:
        with path.open("ab") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another process that downloads {place}")
                fcntl.flock(part, fcntl.LOCK_EX)
            # Its last holder may have renamed or removed the file after we opened it: then we lock nothing.
            if not is_open_file(part, path):
                continue
            try:
                yield part
            finally:
                if not _size(part):
                    path.unlink(missing_ok=True)
            return


def _fetch(url: str, part: IO[bytes]) -> bool:
    """Append to `part` what it lacks of `url`. Returns whether it held something before that was kept."""
    tries, pause, had = 0, PAUSE, _size(part)
    while True:
        before = _size(part)
        total, problem = _fetch_once(url, part)
        if problem is None:
            return had > 0 and _size(part) >= had
        tries = 1 if _size(part) > before else tries + 1
        if tries >= TRIES:
            of = f" of {total:,}" if total else ""
            raise UserError(
                f"{url}: cannot be fetched ({problem}); {_size(part):,}{of} bytes have come: the same command goes on "
                "from there, or get the archive elsewhere and give it with --from ARCHIVE"
            )
        say(f"{url}: {problem}; trying again")
        time.sleep(pause if tries > 1 else PAUSE)
        pause = min(2 * pause, 60.0)


def _size(part: IO[bytes]) -> int:
    part.flush()
    return os.fstat(part.fileno()).st_size


def _fetch_once(url: str, part: IO[bytes]) -> tuple[int | None, str | None]:
    """One request: (the whole file's size if it was told, what went wrong or None)."""
    start, total = _size(part), None
    request = urllib.request.Request(url, headers={"User-Agent": "thoth-seq2seq", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing from `start` on: it is all here
            return start, None
        if error.code in (408, 429) or error.code >= 500:
            return None, f"the server answers {error.code} {error.reason}"
        raise UserError(
            f"{url}: the server answers {error.code} {error.reason}; get the archive elsewhere and give it with "
            "--from ARCHIVE"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        return None, _reason_of(error)
    with answer:
        if start and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            part.truncate(0)  # the server sends the whole file
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        last = time.monotonic()
        while True:
            try:
                block = answer.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                return total, _reason_of(error)
            if not block:
                break
            part.write(block)
            if time.monotonic() - last > INTERVAL:
                last = time.monotonic()
                of = f" of {total / 1e6:,.0f}" if total else ""
                say(f"downloading {url.rsplit('/', 1)[-1]}: {_size(part) / 1e6:,.0f}{of} MB")
    if total is not None and _size(part) < total:
        return total, "the connection ended too early"
    return total, None


def _reason_of(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())
