"""Bounded numbers on command lines: one line names the option, the range and the value."""

import math
from collections.abc import Callable

import pytest

from recipes.cli.arguments import Parser, number, whole_number


@pytest.mark.parametrize(
    ("kind", "good", "wrong", "message"),
    [
        (whole_number(1, 10), ["1", "10"], ["0", "11", "1.5", "many", "nan"], "a whole number from 1 to 10"),
        (whole_number(0), ["0", "99999999"], ["-1", ""], "a whole number of at least 0"),
        (number(-1, 1), ["-1", "0.5", "1"], ["1.01", "nan", "x"], "a number from -1 to 1"),
        (number(0, 1, open_ends=True), ["0.5"], ["0", "1"], "a number above 0 and below 1"),
        (number(0, math.inf, open_ends=True), ["1e9"], ["0", "inf", "nan"], "a number above 0"),
    ],
)
def test_a_number_out_of_range_is_one_line(
    kind: Callable[[str], float], good: list[str], wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="recipes/x.sh")
    parser.add_argument("-s", "--size", type=kind)
    for text in good:
        assert parser.parse_args([f"--size={text}"]).size == float(text)
    for text in wrong:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"--size={text}"])
        assert end.value.code == 2
        assert capsys.readouterr().err == f"error: --size must be {message}, but is {text}; see recipes/x.sh --help\n"


def test_other_errors_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(prog="recipes/x.sh").parse_args(["--fast"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --fast; see recipes/x.sh --help\n"
