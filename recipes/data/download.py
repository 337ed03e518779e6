"""Downloads that resume and are checked against a SHA-256."""

import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from recipes.console.messages import INTERVAL, say
from recipes.storage.corpus_folder import digest, made
from recipes.storage.disk import sync
from recipes.storage.locks import locked
from thoth_core.errors import UserError

ATTEMPTS = 5  # in a row that bring no new byte
PAUSE = 2.0  # seconds before the second attempt, twice as many before each later one
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 16  # bytes
ELSEWHERE = "get the archive elsewhere and give it with --from ARCHIVE"

# The address of a file in a data set of the Hugging Face hub or of a mirror of it.
_HUB_PATH = re.compile(r"/datasets/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<filename>.+)")


def download(url: str, target: Path, sha256: str) -> None:
    """Fetch `url` to the file `target` unless it is there with the right SHA-256.

    An interrupted download leaves what has come in TARGET.part, from which the next call continues.

    Raises:
        UserError: the file cannot be fetched, or has another SHA-256.
    """
    if _complete(target, sha256):
        return
    part = Path(f"{target}.part")
    lock = Path(f"{target}.lock")
    with (
        made(target.parent),
        locked(lock, what=f"another process downloads {target}", patience=None, remove=True),
    ):
        if _complete(target, sha256):  # by the process that held the lock before
            return
        say(f"downloading {url}")
        if hub := _HUB_PATH.fullmatch(urlsplit(url).path):
            _fetch_from_hub(url, hub.groupdict(), part)
        else:
            resumed = _fetch(url, part)
            if resumed and digest(part) != sha256:  # the beginning may be another file's
                say(f"{url}: what had come before does not fit; fetching the whole file")
                part.unlink()
                _fetch(url, part)
        if (actual := digest(part)) != sha256:
            part.unlink()
            raise UserError(
                f"{url}: what came has the SHA-256 {actual}, but {sha256} was expected; try again later, or get the "
                "official archive elsewhere and give it with --from ARCHIVE"
            )
        sync(part)
        part.rename(target)


def _complete(target: Path, sha256: str) -> bool:
    return target.exists() and digest(target) == sha256


# --- the Hugging Face hub -----------------------------------------------------------------------------------


def _fetch_from_hub(url: str, file: dict[str, str], part: Path) -> None:
    """Fetch a file of a data set to `part`. The library resumes from what it keeps in a folder beside it."""
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    folder = part.with_suffix(".hub")
    address = urlsplit(url)
    try:
        fetched = huggingface_hub.hf_hub_download(
            file["repo_id"],
            unquote(file["filename"]),
            revision=unquote(file["revision"]),
            repo_type="dataset",
            local_dir=folder,
            endpoint=f"{address.scheme}://{address.netloc}",
        )
    except Exception as error:  # the library and the libraries below it raise many kinds
        if not any(folder.rglob("*.incomplete")):
            shutil.rmtree(folder, ignore_errors=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url}: cannot be fetched ({reason}); try again later, or {ELSEWHERE}") from None
    Path(fetched).replace(part)
    shutil.rmtree(folder, ignore_errors=True)


# --- other servers ------------------------------------------------------------------------------------------


def _fetch(url: str, part: Path) -> bool:
    """Append to `part` what it lacks of `url`. Returns whether it kept bytes from before.

    Raises:
        UserError: the server refuses the file, or several attempts in a row brought nothing new.
    """
    before, attempts, pause = _size(part), 0, PAUSE
    while True:
        start = _size(part)
        total, problem = _fetch_once(url, part)
        if problem is None:
            return before > 0 and _size(part) >= before
        attempts = 1 if _size(part) > start else attempts + 1
        if attempts >= ATTEMPTS:
            size = _size(part)
            if not size:
                part.unlink(missing_ok=True)
            of = f" of {total:,}" if total else ""
            raise UserError(
                f"{url}: cannot be fetched ({problem}); {size:,}{of} bytes have come: the same command continues from "
                f"there, or {ELSEWHERE}"
            )
        say(f"{url}: {problem}; trying again")
        time.sleep(pause if attempts > 1 else PAUSE)
        pause = min(2 * pause, 60.0)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _fetch_once(url: str, part: Path) -> tuple[int | None, str | None]:
    """One request. Returns the size of the whole file, if the server reports it, and what went wrong, if anything."""
    start, total = _size(part), None
    request = urllib.request.Request(url, headers={"User-Agent": "thoth-seq2seq", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        status = f"the server answers {error.code} {error.reason}"
        if error.code == 416:  # there is nothing from `start` on: the file is complete
            return start, None
        if error.code in (408, 429) or error.code >= 500:
            return None, status
        raise UserError(f"{url}: {status}; {ELSEWHERE}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        return None, _reason(error)
    with response:
        if start and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        problem = _append(response, part, start, total, url.rsplit("/", 1)[-1])
    if problem is None and total is not None and _size(part) < total:
        return total, "the connection ended too early"
    return total, problem


def _append(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, name: str) -> str | None:
    """Write `response` behind the first `start` bytes of `part`, with progress. Returns what went wrong, or None."""
    last, of = time.monotonic(), f" of {total / 1e6:,.0f}" if total else ""
    with part.open("ab") as file:
        file.truncate(start)
        while True:
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                return _reason(error)
            if not block:
                return None
            file.write(block)
            if time.monotonic() - last > INTERVAL:
                last = time.monotonic()
                say(f"downloading {name}: {file.tell() / 1e6:,.0f}{of} MB")


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())
