"""Code and documents are written in plain English, in the terms of the field.

The rules list words that the project once used for things that have usual names. The first of them are written with a
class of one letter, so that searching the checkout for the words does not find this file.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.paths import ROOT, tracked_files

OWN_NAME = "tests/unit/repository/test_wording.py"


@dataclass(frozen=True)
class Rule:
    """Words to avoid.

    Attributes:
        pattern: a regular expression. A space in it stands for white space, also between the lines of a comment or
            the strings that Python joins.
        instead: what to write.
        allowed: beginnings of the names of files in which the words stand for something else.
    """

    pattern: str
    instead: str
    allowed: tuple[str, ...] = ()

    def matches(self, text: str) -> Iterator[re.Match[str]]:
        return re.finditer(self.pattern.replace(" ", r"[\s#/*\"'>]+"), text, flags=re.IGNORECASE)


# Plural nouns that are counted per unit; none that is also a verb in the third person.
COUNTED = (
    "tokens|words|sub-words|sentences|seconds|milliseconds|microseconds|ms|bits|nats|rows|lines|bytes|slots|heads|"
    "operations|multiplications|sub-keys|keys|MB|GB|KB|cells|characters|pairs|sequences|samples|MACs|FLOPs"
)
UNITS = (
    "second|minute|hour|update|token|sentence|batch|epoch|word|sub-word|character|half|head|row|line|step|layer|block|"
    "device|process|run|search"
)
RULES = {
    "again": Rule(r"\b[a]new\b", "again, or from scratch"),
    "repair": Rule(r"\b[m]end(s|ed|ing)?\b", "fix, repair, work around"),
    "predict": Rule(r"\b[f]oret(ell\w*|old)\b", "predict, estimate"),
    "choice": Rule(r"\bwhich[e]ver of\b", "the one of"),
    "average": Rule(r"\bin [t]he mean\b", "on average"),
    "report": Rule(r"\b(told|tells|telling)\b(?!( [\w'`-]+){0,4} apart)", "reported, reports, says"),
    "rate": Rule(
        rf"\b({COUNTED}) an? ({UNITS})\b|\bupdates (a second|an hour|an epoch)\b", "per second, per update, ..."
    ),
    "depend": Rule(r"\b(hangs? on|hung on)\b", "depends on"),
    "affect": Rule(r"\b(not|nothing) moves? the (result|score)s?\b|\bmoves the (result|score)s?\b", "affects"),
    "unexpected": Rule(r"\bholds other things\b|\bthan belong\b", "contains unexpected files"),
    "fairseq": Rule(r"\b(the|bare) host\b|\bhost's\b", "fairseq, fairseq's", ("recipes/storage/",)),
    # The formats of WIT3 name documents so, and so did older evaluations of ours.
    "document": Rule(
        r"(?<!TED\s)\btalks?\b",
        "document",
        (
            *("recipes/metrics/sentences.py", "tests/unit/recipes/metrics/test_results.py"),
            *("tests/unit/recipes/data/test_wit3.py", "tests/stress/check_corpora.py"),
        ),
    ),
    "tokens": Rule(r"\bsub-words\b", "tokens (after sub-word segmentation)"),
    "navigation": Rule(r">\s*(Back|On)\s*<", "Previous, Next"),
}
# Names of modules, functions, classes, arguments and variables that do not say what they stand for.
VAGUE = ("found", "asked", "shown", "told", "tells", "given", "placing")


@dataclass(frozen=True)
class Finding:
    line: int
    message: str


def phrases(text: str, *, name: str = "") -> list[Finding]:
    """The words of RULES in a text, those aside that are allowed in the file of that name."""
    return [
        Finding(text.count("\n", 0, match.start()) + 1, f"'{' '.join(match[0].split())}'; write: {rule.instead}")
        for rule in RULES.values()
        if not name.startswith(rule.allowed or ("\0",))
        for match in rule.matches(text)
    ]


def python_findings(text: str) -> list[Finding]:
    """Vague names that a module defines, and docstrings without a subject."""
    findings = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name, line = node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            name, line = node.asname, node.lineno
        else:
            continue
        if name.strip("_") in VAGUE:
            findings.append(Finding(line, f"the name '{name}'; write: what it stands for"))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node) or ""
            if docstring.startswith("Of "):
                line = getattr(node, "lineno", 1)
                findings.append(
                    Finding(line, "a docstring that begins with 'Of'; write: a sentence, or a noun with it")
                )
    return findings


def findings(name: str) -> list[Finding]:
    content = (ROOT / name).read_bytes()
    if b"\0" in content:  # a picture
        return []
    text = content.decode()
    vague = [Finding(1, f"the name of the module '{word}'") for word in VAGUE if name.endswith(f"/{word}.py")]
    return vague + phrases(text, name=name) + (python_findings(text) if name.endswith(".py") else [])


def test_words_to_avoid() -> None:
    names = [name for name in tracked_files() if name not in (OWN_NAME, "LICENSE")]
    report = [f"{name}:{each.line}: {each.message}" for name in names for each in findings(name)]
    if report:
        pytest.fail("\n".join(report), pytrace=False)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_allowance_is_needed(rule: Rule) -> None:
    for beginning in rule.allowed:
        names = tracked_files(f"{beginning}*")
        assert any(list(rule.matches((ROOT / name).read_text(encoding="utf-8"))) for name in names), beginning


# --- the rules themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text"),
    (
        ("again", "build it an" + "ew"),
        ("repair", "# Men" + "ding fairseq"),
        ("predict", "how well a model fore" + "tells a text"),
        ("choice", "whichever" + "\n    # of the two"),
        ("average", '"blocks in "\n        "the' + ' mean"'),
        ("report", "the score that the log tells"),
        ("rate", "4,000 tokens a\nsecond"),
        ("rate", "bits a character"),
        ("depend", "The result hangs on the seed."),
        ("affect", "maximum tokens; does not move the result"),
        ("fairseq", "the loss is the host's"),
        ("document", "sentences of one talk"),
        ("tokens", "longest source, in sub-words"),
        ("navigation", "<button> On </button>"),
    ),
)
def test_the_dialect_is_noticed(rule: str, text: str) -> None:
    (finding,) = phrases("\n" + text)
    assert finding.line == 2
    assert finding.message.endswith(RULES[rule].instead)


@pytest.mark.parametrize(
    "text",
    (
        "a second seed",
        "tokens per second; a second run",
        "It tells the two systems apart.",
        "makes a token independent of its batch",
        "the mean exit; in this mean, weights",
        "the name of this host",
        "TED talks",
        "sub-word segmentation",
        "recommend, amend, mendacious",
    ),
)
def test_plain_english_passes(text: str) -> None:
    assert phrases(text) == []


@pytest.mark.parametrize(
    "source",
    (
        "def f():\n  found = 1",
        "\nfor told in (): pass",
        "\nclass A:\n  def shown(self): ...".replace("\nclass", "class"),
        "\ndef f(*, given=1): ...",
        "self = 1\nself.asked = 2",
        "\nimport x as placing",
        'x = 1\ndef f():\n    "Of the loss: its gradient."',
    ),
)
def test_vague_names_are_noticed(source: str) -> None:
    assert [finding.line for finding in python_findings(source)] == [2]
