"""A function of fairseq is replaced once, also where somebody else has wrapped it in the meantime."""

from collections.abc import Callable
from types import SimpleNamespace

from fairseq_compat import patching


def twice(function: Callable[[int], int]) -> Callable[[int], int]:
    return lambda x: 2 * function(x)


def test_replacing_again_changes_nothing() -> None:
    owner = SimpleNamespace(f=lambda x: x + 1)
    patching.replace(owner, "f", twice)
    assert owner.f(1) == 4
    ours = owner.f
    owner.f = lambda x: -ours(x)  # another package's wrapper
    patching.replace(owner, "f", twice)
    assert owner.f(1) == -4


def test_a_subclass_is_replaced_by_itself() -> None:
    class Base:
        def f(self) -> int:
            return 1

    class Derived(Base):
        pass

    patching.replace(Base, "f", lambda f: lambda self: f(self) + 10)
    patching.replace(Derived, "f", lambda f: lambda self: f(self) + 100)
    assert (Base().f(), Derived().f()) == (11, 111)


def test_a_replacement_for_a_while() -> None:
    owner = SimpleNamespace(f=1)
    with patching.replaced(owner, "f", 2):
        assert owner.f == 2
    assert owner.f == 1


def test_two_packages_wrap_the_same_function() -> None:
    def thrice(function: Callable[[int], int]) -> Callable[[int], int]:
        return lambda x: 3 * function(x)

    owner = SimpleNamespace(f=lambda x: x + 1)
    for _ in range(2):
        patching.replace(owner, "f", twice)
        patching.replace(owner, "f", thrice)
    assert owner.f(1) == 12
