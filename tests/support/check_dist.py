"""Check that a wheel and an sdist are complete: `python tests/support/check_dist.py FOLDER` (`make dist` calls it)."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("thoth_core", "fairseq_compat", "attn2d", "depth_adaptive", "memory_layers")
SOURCES = {".py", ".typed", ".h", ".cpp", ".cu"}


def package_files() -> set[str]:
    """The files of the packages in the checkout that an installation needs."""
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SOURCES
    }


def missing_from_wheel(names: set[str]) -> set[str]:
    return package_files() - names


def missing_from_sdist(names: set[str]) -> set[str]:
    """Building needs the shared headers, the build files and the licence too."""
    build = {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "native").glob("*")}
    return (package_files() | native | build) - names


def main(folder: Path) -> int:
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        print(f"error: {folder} must contain one wheel and one sdist, not {len(wheels)} and {len(sdists)}")
        return 1
    with zipfile.ZipFile(wheels[0]) as wheel:
        in_wheel = set(wheel.namelist())
    with tarfile.open(sdists[0]) as sdist:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    missing = {
        wheels[0].name: missing_from_wheel(in_wheel),
        sdists[0].name: missing_from_sdist(in_sdist),
    }
    for archive, names in missing.items():
        for name in sorted(names):
            print(f"error: {archive} lacks {name}")
    outside = {name.partition("/")[0] for name in in_wheel if "/" in name and ".dist-info/" not in name} - {*PACKAGES}
    for name in sorted(outside):
        print(f"error: {wheels[0].name} contains {name}, which is not to be installed")
    native = sorted(name.partition("/")[0] for name in in_wheel if name.endswith(".so"))
    print(f"{wheels[0].name} contains the native operators of: {', '.join(native) or 'no plugin'}")
    return int(any(missing.values()) or bool(outside))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
