"""Downloads from a server that misbehaves, and from a copy of the Hugging Face hub."""

import hashlib
import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.data import download as downloads
from recipes.data.download import download
from thoth_core.errors import UserError

CONTENT = random.Random(1).randbytes(300_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Sends CONTENT. `plan` says how the next answers go wrong: a status, or after how many bytes they break off."""

    plan: list[int | str]
    requested: list[str | None]  # the Range of each request


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.server.requested.append(requested)
        fault = self.server.plan.pop(0) if self.server.plan else len(CONTENT)
        if isinstance(fault, int) and fault < 0:
            self.send_error(-fault)
            return
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and fault != "whole" else 0
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
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.plan, running.requested = [], []
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
    assert server.requested == [None], "what is there is not fetched again"
    place.write_bytes(b"damaged")
    download(address(server), place, SUM)
    assert place.read_bytes() == CONTENT


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, -503, 0, 50_000, -429]
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.requested == [None, *["bytes=100000-"] * 3, *["bytes=150000-"] * 2]


def test_a_server_that_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, "whole"]
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_giving_up_keeps_what_came_for_the_next_call(server: Server, tmp_path: Path) -> None:
    server.plan = [100_000, *[-500] * 10]
    with pytest.raises(UserError) as caught:
        download(address(server), tmp_path / "a", SUM)
    assert "the server answers 500 Internal Server Error); 100,000 bytes have come: the same command continues" in str(
        caught.value
    )
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:100_000]
    assert not (tmp_path / "a").exists()
    server.plan, server.requested = [], []
    download(address(server), tmp_path / "a", SUM)
    assert server.requested == ["bytes=100000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert not (tmp_path / "a.part").exists()


@pytest.mark.parametrize("before", [b"of another file" * 1000, CONTENT + b"too much"])
def test_the_beginning_of_another_file_is_thrown_away(server: Server, tmp_path: Path, before: bytes) -> None:
    (tmp_path / "a.part").write_bytes(before)
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.requested == [f"bytes={len(before)}-", None]


def test_all_had_come_but_the_rename(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT)
    download(address(server), tmp_path / "a", SUM)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_sum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.plan = ["other"]
    digest = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(UserError, match=f"what came has the SHA-256 {digest}, but {SUM} was expected; try again later"):
        download(address(server), tmp_path / "new" / "a", SUM)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.plan = [-404]
    with pytest.raises(UserError, match=r"the server answers 404 Not Found; get the archive elsewhere .*--from"):
        download(address(server), tmp_path / "new" / "a", SUM)
    assert len(server.requested) == 1
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
    assert len(server.requested) == 1


# --- the Hugging Face hub -----------------------------------------------------------------------------------


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as one file of a data set, as the hub does."""

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_GET(self) -> None:
        self._send(body=True)

    def _send(self, *, body: bool) -> None:
        if self.path != f"/datasets/IWSLT/iwslt/resolve/{'a' * 40}/data/de/de-en.tgz":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("ETag", '"of the content"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if body:
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder of a data set."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/datasets/IWSLT/iwslt/resolve/{'a' * 40}/data/de"
        running.shutdown()
        thread.join()


def test_a_file_of_the_hub(hub: str, tmp_path: Path) -> None:
    download(f"{hub}/de-en.tgz", tmp_path / "new" / "a", SUM)
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_a_file_of_the_hub_with_another_sum(hub: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"what came has the SHA-256 {SUM}, but {'0' * 64} was expected"):
        download(f"{hub}/de-en.tgz", tmp_path / "new" / "a", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fr-en\.tgz: cannot be fetched .*--from ARCHIVE") as caught:
        download(f"{hub}/fr-en.tgz", tmp_path / "new" / "a", SUM)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
