"""Fixtures of the tests of the grid operators."""

from collections.abc import Callable, Iterator

import pytest
import torch

from attn2d.backend import Backend, select


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Run a test on either backend; the native one fails with the remedy where it is not built."""
    return select(request.param)


@pytest.fixture
def native() -> Backend:
    """Fails with the remedy where the native operators are not built."""
    return select("native")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, and restores the previous one."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
