"""recipes/archives.py: what is read from archives, which are refused, and downloads from a server that misbehaves."""

import gzip
import hashlib
import http.server
import io
import random
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.data import archives
from recipes.data.archives import Member, download, folder_files, read_members
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
    "no ending": tar(FILES),  # the content tells, not the name
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
    """Noise does not shrink: a wrong bit of the archive is a wrong bit of the text, which only the checksum tells."""
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
    "twice": (tar({"a/x.de": ODD, "b/x.de": ODD}), r"holds x.de twice \(.*/a/x.de and b/x.de\); remove one"),
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


# --- downloads ----------------------------------------------------------------------------------------------

CONTENT = random.Random(1).randbytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Sends CONTENT. `plan` says how the next answers go wrong: a status, or after how many bytes they break off."""

    plan: list[int | str]
    asked: list[str | None]  # the Range of each request


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        fault = self.server.plan.pop(0) if self.server.plan else len(CONTENT)
        if isinstance(fault, int) and fault < 0:
            self.send_error(-fault)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "whole" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        body = CONTENT[::-1] if fault == "other" else CONTENT
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + fault] if isinstance(fault, int) else body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(archives, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.plan, running.asked = [], []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/de-en.tgz"


def test_a_download_and_its_repetition(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "new" / "de-en.tgz"
    download(address(server), place, SUM)
    assert place.read_bytes() == CONTENT
    assert [path.name for path in place.parent.iterdir()] == ["de-en.tgz"]
    download(address(server), place, SUM)
    assert server.asked == [None], "what is there is not fetched again"
    place.write_bytes(b"damaged")
    download(address(server), place, SUM)
    assert place.read_bytes() == CONTENT


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, -503, 0, 50_000, -429]
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, *["bytes=100000-"] * 3, *["bytes=150000-"] * 2]


def test_a_server_that_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, "whole"]
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_giving_up_keeps_what_came_for_the_next_call(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, *[-500] * 10]
    with pytest.raises(UserError) as caught:
        download(address(server), tmp_path / "a", SUM)
    assert "the server answers 500 Internal Server Error); 100,000 bytes have come: the same command goes" in str(
        caught.value
    )
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]
    assert not (tmp_path / "a").exists()
    server.plan, server.asked = [], []
    download(address(server), tmp_path / "a", SUM)
    assert server.asked == ["bytes=100000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert not (tmp_path / "a.part").exists()


@pytest.mark.parametrize("before", [b"of another file" * 1000, CONTENT + b"too much"])
def test_the_beginning_of_another_file_is_thrown_away(server: Server, tmp_path: Path, before: bytes) -> None:
    (tmp_path / "a.part").write_bytes(before)
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(before)}-", None]


def test_all_had_come_but_the_rename(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT)
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_sum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.plan = ["other"]
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(UserError, match=f"what came has the SHA-256 {found}, but {SUM} was expected; try again later"):
        download(address(server), tmp_path / "new" / "a", SUM)
    assert list(tmp_path.iterdir()) == []


def test_what_no_second_try_mends(server: Server, tmp_path: Path) -> None:
    server.plan = [-404]
    with pytest.raises(UserError, match=r"the server answers 404 Not Found; get the archive elsewhere .*--from"):
        download(address(server), tmp_path / "new" / "a", SUM)
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path: Path, server: Server) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched \(Connection refused\); 0 bytes have come"):
        download("http://127.0.0.1:9/de-en.tgz", tmp_path / "new" / "a", SUM)
    assert list(tmp_path.iterdir()) == []


def test_two_downloads_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=download, args=(address(server), tmp_path / "a", SUM)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert not (tmp_path / "a.part").exists()
    assert len(server.asked) == 1
