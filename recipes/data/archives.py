"""Archives of raw text: the files in .tgz, .tar and .zip archives and in folders.

Nothing is unpacked to the disk. An archive is refused as a whole if a member would not stay inside a folder or is not a
plain file.
"""

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thoth_core.errors import UserError

LIMIT = 1 << 30  # bytes of one member, far more than in any release: an archive cannot fill the memory
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
    members: dict[str, Member] = {}
    names: list[str] = []
    try:
        for name, read in _entries(source, origin):
            names.append(name)
            base = name.rsplit("/", 1)[-1]
            if not wanted(base):
                continue
            if base in members:
                raise UserError(
                    f"{origin}: contains {base} twice ({members[base].origin} and {name}); remove one of them"
                )
            members[base] = Member(f"{origin}/{name}", read())
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{origin}: is cut off or damaged ({_reason(error)}); copy or download it again") from None
    except (NotImplementedError, RuntimeError) as error:  # zipfile: a method it does not know, a password
        raise UserError(f"{origin}: cannot be unpacked ({_reason(error)}); pack it again as .tgz") from None
    except OSError as error:
        where = error.filename or origin
        raise UserError(f"{where}: cannot be read ({error.strerror or error}); give a readable file") from None
    return members, names


def folder_files(folder: Path, wanted: Wanted) -> list[Path]:
    """The wanted files below `folder`, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if wanted(path.name) and path.is_file())


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _entries(source: Path | Member, origin: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name and reader of every file; a reader works until the next file is requested."""
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
    # As a stream: seeking back in a gzip file would unpack it again from its beginning.
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
