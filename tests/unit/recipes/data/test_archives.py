"""Archives: what is read from them, and which are refused."""

import gzip
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.data import archives
from recipes.data.archives import Member, folder_files, read_members
from thoth_core.errors import UserError

FILES = {
    "de-en/train.de": b"Guten Tag.\n" * 400,
    "de-en/dev/dev.de": "schön\n".encode(),
    "de-en/README": b"read me\n",
}


def tar(files: dict[str, bytes], mode: str = "w:gz", *more: tarfile.TarInfo) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return written.getvalue()


def zipped(files: dict[str, bytes], mode: int = 0o100644) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def is_german(name: str) -> bool:
    return name.endswith(".de")


PACKED = {
    "a.tgz": tar(FILES),
    "a.tar": tar(FILES, "w"),
    "a.zip": zipped(FILES),
    "no ending": tar(FILES),  # the content decides, not the name
}


@pytest.mark.parametrize("name", PACKED)
def test_every_kind_of_archive_gives_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACKED[name])
    members, names = read_members(path, is_german)
    assert names == list(FILES)
    assert members == {
        base: Member(f"{path}/{full}", FILES[full])
        for base, full in {"train.de": "de-en/train.de", "dev.de": "de-en/dev/dev.de"}.items()
    }


def test_folders_and_archives_inside_archives(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    members, names = read_members(tmp_path / "folder", is_german)
    assert {base: member.content for base, member in members.items()} == {
        "train.de": FILES["de-en/train.de"],
        "dev.de": FILES["de-en/dev/dev.de"],
    }
    assert sorted(names) == sorted(FILES)
    assert folder_files(tmp_path / "folder", is_german) == sorted(tmp_path.rglob("*.de"))

    (tmp_path / "release.zip").write_bytes(zipped({"texts/de/en/de-en.tgz": tar(FILES)}))
    outer, _ = read_members(tmp_path / "release.zip", lambda name: name == "de-en.tgz")
    inner, _ = read_members(outer["de-en.tgz"], is_german)
    assert inner["dev.de"].content == FILES["de-en/dev/dev.de"]
    assert inner["dev.de"].origin == f"{tmp_path}/release.zip/texts/de/en/de-en.tgz/de-en/dev/dev.de"


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_cut_off_anywhere_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    """Random bytes in it, so that the archive is long; and nothing wanted in it, so that all must be checked anyhow."""
    noise = random.Random(3).randbytes(30_000)
    whole = (tar if name == "a.tgz" else zipped)({"x": noise, "y": noise[::-1]})
    (tmp_path / name).write_bytes(whole)
    assert read_members(tmp_path / name, is_german) == ({}, ["x", "y"])
    for length in (*range(4, 40, 7), *range(40, len(whole), 4001), *range(len(whole) - 30, len(whole), 3)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{name}: is cut off or damaged .*copy or download it again"):
            read_members(tmp_path / name, is_german)


def test_one_wrong_bit_is_seen(tmp_path: Path) -> None:
    """Noise does not shrink: a wrong bit of the archive is a wrong bit of the text, which only the checksum reveals."""
    noise = random.Random(3).randbytes(30_000)
    for name, whole in (("a.tgz", tar({"x.de": noise})), ("a.zip", zipped({"x.de": noise}))):
        for place in range(2000, len(whole) - 2000, 4999):
            damaged = bytearray(whole)
            damaged[place] ^= 8
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match="is cut off or damaged"):
                read_members(tmp_path / name, is_german)


ODD = b"Just text.\n" * 100
WRONG: dict[str, tuple[bytes, str]] = {
    "outside": (tar({"../x.de": ODD}), r"member '../x.de' would not stay inside"),
    "outside, later": (tar({"a/../../x": ODD}), r"member 'a/../../x' would not stay inside"),
    "absolute": (tar({"/etc/x.de": ODD}), r"member '/etc/x.de' would not stay inside"),
    "drive": (tar({r"C:\x.de": ODD}), r"member 'C:\\\\x.de' would not stay inside"),
    "line break": (tar({"a\nb": ODD}), r"member 'a\\nb' would not stay inside"),
    "zip, outside": (zipped({"../x.de": ODD}), r"member '../x.de' would not stay inside"),
    "zip, backslashes": (zipped({"..\\x.de": ODD}), r"member '..\\\\x.de' would not stay inside"),
    "symbolic link": (tar({}, "w:gz", special("x.de", tarfile.SYMTYPE, "/etc/passwd")), "member x.de is a link or"),
    "hard link": (tar({"y": ODD}, "w", special("x.de", tarfile.LNKTYPE, "y")), "member x.de is a link or device"),
    "device": (tar({}, "w:gz", special("x.de", tarfile.CHRTYPE)), "member x.de is a link or device"),
    "pipe": (tar({}, "w:gz", special("x.de", tarfile.FIFOTYPE)), "member x.de is a link or device"),
    "zip, link": (zipped({"x.de": b"/etc/passwd"}, 0o120777), "member x.de is a link"),
    "zip, password": (
        zipped({"x.de": ODD}).replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0").replace(
            b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
        ),
        "cannot be unpacked .*encrypted",
    ),
    "twice": (tar({"a/x.de": ODD, "b/x.de": ODD}), r"contains x.de twice \(.*/a/x.de and b/x.de\); remove one"),
    "empty file": (b"", "is an empty file, not a .tgz, .tar or .zip archive"),
    "web page": (b"<!DOCTYPE html><title>Google Drive", "is a web page, not a .tgz"),
    "text": (ODD, "is something else, not a .tgz"),
    "gzip of no tar": (gzip.compress(ODD), "is cut off or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_unsafe_and_odd_archives_are_refused(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_members(tmp_path / "a.tgz", is_german)
    assert str(caught.value).startswith(str(tmp_path / "a.tgz"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_that_swells(tmp_path: Path, pack: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LIMIT", 1 << 16)
    (tmp_path / "a").write_bytes(pack({"x.de": bytes((1 << 16) + 1)}))
    with pytest.raises(UserError, match=r"member x.de has 65,537 bytes, more than"):
        read_members(tmp_path / "a", is_german)
    (tmp_path / "a").write_bytes(pack({"x.de": bytes(1 << 16)}))
    assert len(read_members(tmp_path / "a", is_german)[0]["x.de"].content) == 1 << 16


def test_a_gzip_file_that_goes_on_after_its_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LIMIT", 1 << 16)
    (tmp_path / "a").write_bytes(gzip.compress(tar({"x.de": ODD}, "w") + bytes(1 << 20)))
    with pytest.raises(UserError, match="unpacks to more than"):
        read_members(tmp_path / "a", is_german)
