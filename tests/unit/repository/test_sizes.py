"""Files are small: one responsibility each."""

import pytest

from tests.support.paths import ROOT, tracked_files

LIMIT = 400  # lines of a Python file


def test_no_python_file_is_long() -> None:
    names = [name for name in tracked_files("*.py") if not name.startswith("tests/")]
    assert len(names) > 100
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names}
    if lines := [f"{name} has {length} lines" for name, length in lengths.items() if length > LIMIT]:
        pytest.fail("\n".join(lines), pytrace=False)


def test_recipes_has_no_module_outside_its_sub_packages() -> None:
    assert [path.name for path in (ROOT / "recipes").glob("*.py")] == ["__init__.py"]
