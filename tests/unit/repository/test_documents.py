"""The documents say what the code does: options, defaults, architectures, commands, links."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fairseq import options
from fairseq.tasks.translation import TranslationConfig

from attn2d.config import ARCHITECTURES, PervasiveConfig
from attn2d.model import PervasiveModel
from attn2d.options import check
from attn2d.task import PervasiveTranslationConfig
from recipes.reporting import results_tables
from recipes.reporting.published_results import Translations
from tests.support.paths import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PLUGIN_PAGE = ROOT / "docs" / "attn2d.md"
# The task's, interpolated into the model's options.
LENGTHS = ("max_source_positions", "max_target_positions")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def documented_options() -> dict[str, list[str]]:
    """Flag → default, valid values and meaning, of the plugin's page: its tables that begin with `flag`."""
    described: dict[str, list[str]] = {}
    inside = False
    for first, *cells in rows(PLUGIN_PAGE.read_text(encoding="utf-8")):
        if not first.startswith(("`--", "---")):
            inside = first == "flag"
        elif inside and first.startswith("`"):
            flag = first.strip("`")
            assert flag not in described, f"{flag} is documented twice"
            assert len(cells) == 3, f"{flag} has {len(cells) + 1} cells in its row"
            described[flag] = cells
    return described


def code_defaults() -> dict[str, str]:
    """Flag → default as it should stand in the documents, of everything that the plugin adds."""
    fields = {field.name: field.default for field in dataclasses.fields(PervasiveConfig)}
    fields |= {name: getattr(TranslationConfig(), name) for name in LENGTHS}
    fields["max_grid_cells"] = PervasiveTranslationConfig().max_grid_cells
    fields.pop("_name")
    return {
        f"--{name.replace('_', '-')}": "off" if value is False else "none" if value is None else f"`{value}`"
        for name, value in fields.items()
    }


def test_every_option_is_documented_with_its_default() -> None:
    documented = {flag: cells[0] for flag, cells in documented_options().items()}
    assert documented == code_defaults()


def test_documented_choices_are_the_code_s() -> None:
    documented = documented_options()
    for field in dataclasses.fields(PervasiveConfig):
        choices = getattr(field.type, "__members__", None)
        if choices:
            flag = f"--{field.name.replace('_', '-')}"
            cell = documented[flag][1]
            assert re.findall(r"`([^`]+)`", cell) == [choice.value for choice in choices.values()], flag


def test_documented_ranges_are_the_code_s() -> None:
    """The lowest documented value passes, the one below it is refused by name."""
    for flag, (_, valid, _) in documented_options().items():
        name = flag.removeprefix("--").replace("-", "_")
        if name == "max_grid_cells":
            continue
        if lowest := re.search(r"at least (\d+)", valid):
            low, too_low = int(lowest[1]), int(lowest[1]) - 1
            others = {"positions": "none"}
        elif valid == "0 to below 1":
            low, too_low, others = 0.0, 1.0, {}
        else:
            continue
        others |= dict.fromkeys(LENGTHS, 64)
        check(PervasiveConfig(**{**others, name: low}), joined=False)
        with pytest.raises(ValueError, match=f"^{flag} must be"):
            check(PervasiveConfig(**{**others, name: too_low}), joined=False)


def test_documented_architectures_are_the_code_s() -> None:
    table = rows(PLUGIN_PAGE.read_text(encoding="utf-8"))
    start = next(index for index, row in enumerate(table) if row[0] == "option" and "`pervasive`" in row)
    names = [name.strip("`") for name in table[start][1:]]
    assert set(names) == {"pervasive", *ARCHITECTURES}
    documented: dict[str, dict[str, str]] = {name: {} for name in names}
    for flags, *values in table[start + 2 :]:
        if not flags.startswith("`--"):
            break
        for flag in re.findall(r"`--([a-z-]+)`", flags):
            for name, value in zip(names, values, strict=True):
                documented[name][flag.replace("-", "_")] = value.strip("`")
    for name in names:
        config = PervasiveConfig(**ARCHITECTURES.get(name, {}))
        for option, value in documented[name].items():
            irrelevant = value == "" and config.convnet != option.partition("_")[0]
            assert irrelevant or str(getattr(config, option)) == value, (name, option)
        assert documented[name].keys() >= ARCHITECTURES.get(name, {}).keys(), name


def anchors(document: Path) -> set[str]:
    """What links into a document may name, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name} links to {name}, which is not there"
        assert not anchor or anchor in anchors(path), f"{document.name} links to #{anchor}, which {path.name} lacks"


@every_document
def test_named_files_exist(document: Path) -> None:
    """Paths of the checkout that are named in the text or in commands; * stands for anything."""
    folders = "attn2d|depth_adaptive|memory_layers|fairseq_compat|recipes|benchmarks|tests|docs"
    names = re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*[\w*]", document.read_text(encoding="utf-8"))
    for name in names:
        assert list(ROOT.glob(name.replace("NAME", "*"))), f"{document.name} names {name}, which is not there"


def commands(document: Path) -> list[list[str]]:
    """The shell commands in a document's indented code and in its code spans, words split, comments off."""
    text = document.read_text(encoding="utf-8")
    indented = "\n".join(line[4:] if line.startswith("    ") else "" for line in text.splitlines())
    lines = indented.replace("\\\n", " ").splitlines() + re.findall(r"`([^`\n]+)`", text)
    starts = ("recipes/", "fairseq-", "torchrun ", "python ", "make ")
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each script says about itself."""
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    return {
        script.name: subprocess.run(
            [str(script), "--help"], check=True, capture_output=True, text=True, env=environment
        ).stdout
        for script in sorted(ROOT.glob("recipes/*.sh"))
        if script.name != "environment.sh"  # the others source it
    }


@pytest.mark.slow
@every_document
def test_options_of_recipes_exist(document: Path, helps: dict[str, str]) -> None:
    for script, *words in commands(document):
        if not script.endswith(".sh"):
            continue
        own = words[: words.index("--")] if "--" in words else words
        for word in own:
            if word.startswith("--"):
                known = re.findall(r"--[a-z0-9-]+", helps[Path(script).name])
                assert word in known, f"{document.name}: {script} has no {word}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted(path.name for path in ROOT.glob("recipes/*.sh") if path.stem != "environment")
)
def test_every_option_of_a_recipe_is_documented(script: str, helps: dict[str, str]) -> None:
    """docs/recipes.md has a section for each recipe, which names every option of it and no other."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {script}\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(--[a-z0-9-]+)", section))
    # Options stand at the beginning of a line, or after a comma; others are mentioned in the text of an option.
    own = set(re.findall(r"(?:^  |\[)(?:-\w, )?(--[a-z0-9-]+)", helps[script], flags=re.M)) - {"--help"}
    assert documented == own


def after(words: list[str], option: str) -> list[int]:
    return [n + 1 for n, word in enumerate(words[:-1]) if word == option]


@every_document
def test_corpora_and_models_of_recipes_exist(document: Path) -> None:
    own = {"mine", "CORPUS", "MODEL", "NAME", "..."}  # the reader's
    # And those that a document has prepared under a name.
    own |= {words[n] for each in DOCUMENTS for words in commands(each) for n in after(words, "--name")}
    corpora = {path.stem for path in ROOT.glob("recipes/corpora/*.yaml")} | own
    models = {path.stem for path in ROOT.glob("recipes/models/*.yaml")} | own
    for script, *words in commands(document):
        if Path(script).name not in ("prepare.sh", "train.sh", "evaluate.sh", "calibrate.sh") or not words:
            continue
        assert words[0].startswith("-") or words[0].endswith(".yaml") or words[0] in corpora, words
        if Path(script).name != "prepare.sh" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1].endswith(".yaml") or words[1] in models, words


def parsed(command: list[str]) -> object | None:
    """A documented fairseq command's options, None if it is no such command."""
    parsers = {
        "fairseq-train": options.get_training_parser,
        "fairseq-generate": options.get_generation_parser,
        "fairseq-interactive": lambda: options.get_generation_parser(interactive=True),
    }
    program, words = command[0], command[1:]
    if program in ("torchrun", "python") and "fairseq_compat.train" in words:
        program, words = "fairseq-train", words[words.index("fairseq_compat.train") + 1 :]
    if program not in parsers or not words or "..." in words or words[0].startswith("-"):
        return None
    return options.parse_args_and_arch(parsers[program](), words)


@every_document
def test_fairseq_commands_are_understood(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(document):
        parsed(command)  # exits on an option or choice that fairseq and the plugin do not know


def test_documented_settings_are_those_of_the_model_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands for the papers' two networks against recipes/models."""
    monkeypatch.chdir(ROOT)
    seen = set()
    for command in commands(PLUGIN_PAGE):
        if command[0] != "fairseq-train" or not {"--update-freq", "--max-epoch"} & set(command):
            continue
        arguments = parsed(command)
        name = arguments.arch  # type: ignore[union-attr]
        model = yaml.safe_load((ROOT / "recipes" / "models" / f"{name}.yaml").read_text(encoding="utf-8"))
        words = [ROOT / "data", "--user-dir", "attn2d", "--source-lang", "de", "--target-lang", "en"]
        for option, value in model["train"].items():
            words += [f"--{option}"] if value is True else [f"--{option}", value]
        recipe = parsed(["fairseq-train", *map(str, words)])
        assert vars(recipe) | {"data": arguments.data} == vars(arguments)  # type: ignore[union-attr]
        seen.add(name)
    assert seen == {"pervasive", "pervasive_densenet"}


def test_hydra_names_are_those_of_the_code() -> None:
    from fairseq.models import MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    words = next(
        command for command in commands(PLUGIN_PAGE) if command[0] == "fairseq-hydra-train" and len(command) > 1
    )
    settings = dict(word.lstrip("+").split("=", 1) for word in words[1:])
    assert issubclass(MODEL_REGISTRY[settings["model._name"]], PervasiveModel)
    assert settings["task._name"] in TASK_REGISTRY
    model = {field.name for field in dataclasses.fields(PervasiveConfig)}
    task = {field.name for field in dataclasses.fields(PervasiveTranslationConfig)} | {"_name"}
    for name in settings:
        group, _, option = name.partition(".")
        if group in ("model", "task"):
            assert option in (model if group == "model" else task), name


def commits_of_results() -> set[str]:
    """The commits that the pages of results and results/*.json name."""
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("RESULTS.md", "lab-notes.md"))
    named = set(re.findall(r"\bcommits? ([0-9a-f]{7,40})\b", pages))
    for result in results_tables.read_results().values():
        commits = result.commits
        named |= {*commits.trained, *commits.evaluated} if isinstance(result, Translations) else set(commits)
    return named


def test_commits_of_the_results_exist() -> None:
    """A figure has a commit that can be checked out; a copy without its history cannot show it."""
    named = commits_of_results()
    assert len(named) > 20
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        return
    missing = sorted(commit for commit in named if git("cat-file", "-e", f"{commit}^{{commit}}").returncode)
    assert not missing


def git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
