"""Imports point one way: between the packages, between the sub-packages of `recipes`, and inside each package."""

from collections.abc import Iterable

import pytest

from tests.support.import_graph import Graph, Import
from tests.support.paths import ROOT

PLUGINS = ("attn2d", "depth_adaptive", "memory_layers")
PACKAGES = ("thoth_core", "fairseq_compat", *PLUGINS, "recipes", "benchmarks", "tests")
# Each imports only those before it.
ROOMS = (
    *("recipes.console", "recipes.storage", "recipes.config", "recipes.tokenization", "recipes.data"),
    *("recipes.training", "recipes.metrics", "recipes.reporting", "recipes.evaluation", "recipes.cli"),
)
# The fairseq layer of each plugin. Its other modules are plain PyTorch, usable without fairseq.
FAIRSEQ_LAYER = {
    "attn2d": {
        *("attn2d", "attn2d.config", "attn2d.decoder", "attn2d.embedder", "attn2d.encoder", "attn2d.model"),
        "attn2d.task",
    },
    "depth_adaptive": {
        *("depth_adaptive", "depth_adaptive.config", "depth_adaptive.criterion", "depth_adaptive.cut"),
        *("depth_adaptive.decoder", "depth_adaptive.encoder", "depth_adaptive.model"),
    },
    "memory_layers": {
        *("memory_layers", "memory_layers.config", "memory_layers.layers", "memory_layers.model"),
        *("memory_layers.optim", "memory_layers.trainer_patches", "memory_layers.usage_recording"),
    },
}
# Loading PyTorch takes seconds, and a command that reads results has no use for it.
WITHOUT_TORCH = ("recipes.console", "recipes.storage", "recipes.config", "recipes.metrics")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph.of_checkout(ROOT, PACKAGES)


def layer(module: str) -> str:
    """The layer of a module: a package, `PLUGIN plain`, `PLUGIN fairseq`, or a sub-package of `recipes`."""
    package, _, rest = module.partition(".")
    if package in PLUGINS:
        return f"{package} {'fairseq' if module in FAIRSEQ_LAYER[package] else 'plain'}"
    return f"recipes.{rest.partition('.')[0]}" if package == "recipes" and rest else package


def lower_layers() -> dict[str, set[str]]:
    """Layer → the layers that its modules may import, beside itself."""
    lower: dict[str, set[str]] = {"thoth_core": set(), "fairseq_compat": {"thoth_core"}, "recipes": set()}
    for plugin in PLUGINS:
        lower[f"{plugin} plain"] = {"thoth_core"}
        lower[f"{plugin} fairseq"] = {"thoth_core", "fairseq_compat", f"{plugin} plain"}
    installed = set(lower)
    for place, room in enumerate(ROOMS):
        lower[room] = {*installed, *ROOMS[:place]}
    # A command line has no caller but the shell; what others need of it belongs further down.
    lower["benchmarks"] = set(lower) - {"recipes.cli"}
    lower["tests"] = set(lower)
    return lower


def upward_imports(graph: Graph) -> list[str]:
    lower = lower_layers()
    messages = [
        f"{module}, line {imported.line}: {imported.module} is in no layer below {layer(module)}"
        for module, imported in graph.edges()
        if layer(imported.module) not in {*lower[layer(module)], layer(module)}
    ]
    return list(dict.fromkeys(messages))


def imports_of(graph: Graph, package: str, name: str) -> list[str]:
    """Chains of imports by which the modules of a package come to the package `name` of others."""
    return [
        " → ".join([*chain, name])
        for module in graph.ours
        if module == package or module.startswith(f"{package}.")
        for reached, chain in graph.reached_from(module).items()
        if any(other.module.partition(".")[0] == name for other in graph.others.get(reached, ()))
    ]


def none_of(faults: Iterable[str]) -> None:
    if lines := list(faults):
        pytest.fail("\n".join(lines), pytrace=False)


def test_imports_point_downwards(graph: Graph) -> None:
    none_of(upward_imports(graph))


def test_there_is_no_circle(graph: Graph) -> None:
    none_of(" → ".join([*circle, circle[0]]) for circle in graph.circles())


def test_no_import_is_hidden_from_the_interpreter(graph: Graph) -> None:
    """`if TYPE_CHECKING:` hides circles."""
    hidden = [
        f"{module}, line {imported.line}"
        for imports in (graph.ours, graph.others)
        for module, those in imports.items()
        for imported in those
        if imported.for_types_alone
    ]
    none_of(hidden)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_fairseq_layer_is_as_small_as_listed(plugin: str, graph: Graph) -> None:
    """Exactly the listed modules need fairseq, themselves or by what they import."""
    modules = [module for module in graph.ours if module.partition(".")[0] == plugin]
    needing = {
        module
        for module in modules
        for reached in graph.reached_from(module)
        if reached.partition(".")[0] == "fairseq_compat"
        or any(other.module.partition(".")[0].startswith("fairseq") for other in graph.others.get(reached, ()))
    }
    assert needing == FAIRSEQ_LAYER[plugin]


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_no_torch(package: str, graph: Graph) -> None:
    none_of(imports_of(graph, package, "torch"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_there(room: str, graph: Graph) -> None:
    assert room in graph.ours


def test_every_sub_package_of_recipes_has_a_place(graph: Graph) -> None:
    assert {layer(module) for module in graph.ours if module.startswith("recipes.")} == set(ROOMS)


# --- the checker itself, on small sources ------------------------------------------------------------------------


SOURCES = dict.fromkeys(
    (
        *("thoth_core.__init__", "thoth_core.cpu", "fairseq_compat.__init__", "fairseq_compat.errors"),
        *("attn2d.__init__", "attn2d.ops", "attn2d.model", "depth_adaptive.__init__", "depth_adaptive.halting"),
        *("recipes.__init__", "recipes.storage.__init__", "recipes.storage.disk", "recipes.cli.__init__"),
        *("recipes.cli.train", "recipes.metrics.__init__", "recipes.metrics.quality", "benchmarks.common"),
        *("recipes.evaluation.translator", "recipes.training.plan", "tests.support.__init__", "tests.support.paths"),
    ),
    "",
)


def test_imports_are_read_from_every_form() -> None:
    graph = Graph.of_sources(
        {
            "recipes.__init__": "",
            "recipes.data.__init__": "",
            "recipes.data.build": (
                "import torch.nn as nn, recipes.data.cleaning\n"
                "from recipes.data import wit3, __doc__\n"
                "from . import cleaning\n"
                "from .wit3 import read\n"
                "def later():\n"
                "    from recipes.data.wit3 import write\n"
                "    import_module({'clean': 'recipes.data.cleaning'}['clean'])\n"
            ),
            "recipes.data.cleaning": "",
            "recipes.data.wit3": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import recipes.data.build",
        }
    )
    assert graph.ours["recipes.data.build"] == [
        Import("recipes.data.cleaning", 1),
        Import("recipes.data.wit3", 2),
        Import("recipes.data", 2),
        Import("recipes.data.cleaning", 3),
        Import("recipes.data.wit3", 4),
        Import("recipes.data.wit3", 6),
        Import("recipes.data.cleaning", 7),
    ]
    assert graph.others["recipes.data.build"] == [Import("torch.nn", 1)]
    assert graph.ours["recipes.data.wit3"] == [Import("recipes.data.build", 3, for_types_alone=True)]


@pytest.mark.parametrize(
    ("module", "source", "layers"),
    (
        ("recipes.storage.disk", "def f():\n    from recipes.cli import train", "recipes.storage"),
        ("recipes.evaluation.translator", "import recipes.cli.train", "recipes.evaluation"),
        ("recipes.training.plan", "from recipes.metrics.quality import bleu", "recipes.training"),
        ("attn2d.ops", "from attn2d import model", "attn2d plain"),
        ("attn2d.ops", "import fairseq_compat", "attn2d plain"),
        ("attn2d.model", "from depth_adaptive import halting", "attn2d fairseq"),
        ("depth_adaptive.model", "from recipes.storage import disk", "depth_adaptive fairseq"),
        ("fairseq_compat.launch", "from attn2d import ops", "fairseq_compat"),
        ("thoth_core.cpu", "from fairseq_compat import errors", "thoth_core"),
        ("benchmarks.common", "from recipes.cli import train", "benchmarks"),
        ("recipes.cli.train", "from tests.support import paths", "recipes.cli"),
    ),
)
def test_an_upward_import_is_noticed(module: str, source: str, layers: str) -> None:
    (message,) = upward_imports(Graph.of_sources(SOURCES | {module: source}))
    assert message.startswith(f"{module}, line {source.count(chr(10)) + 1}: ")
    assert message.endswith(f"is in no layer below {layers}")


def test_downward_imports_pass() -> None:
    changes = {
        "recipes.cli.train": "from recipes.storage import disk\nfrom attn2d.model import x\nimport fairseq_compat",
        "attn2d.model": "from attn2d import ops\nfrom fairseq_compat import errors\nfrom thoth_core import cpu",
        "tests.support.paths": "from recipes.cli import train",
    }
    graph = Graph.of_sources(SOURCES | changes)
    assert upward_imports(graph) == []
    assert graph.circles() == []


@pytest.mark.parametrize(
    ("changes", "circle"),
    (
        # Two modules of one package.
        (
            {"attn2d.ops": "from attn2d import model", "attn2d.model": "import attn2d.ops"},
            ["attn2d.model", "attn2d.ops"],
        ),
        # A package's own module, and one beside it.
        (
            {"attn2d.__init__": "from attn2d import ops", "attn2d.ops": "import attn2d"},
            ["attn2d.__init__", "attn2d.ops"],
        ),
        # Two sub-packages, without a circle between modules.
        (
            {
                "recipes.cli.train": "import recipes.storage.disk",
                "recipes.storage.locks": "def f():\n    import recipes.cli.arguments",
                "recipes.cli.arguments": "",
            },
            ["recipes.cli", "recipes.storage"],
        ),
        # Three packages.
        (
            {
                "attn2d.ops": "import thoth_core.cpu",
                "thoth_core.cpu": "import fairseq_compat",
                "fairseq_compat.errors": "from attn2d import model",
            },
            ["attn2d", "thoth_core", "fairseq_compat"],
        ),
    ),
)
def test_a_circle_is_noticed(changes: dict[str, str], circle: list[str]) -> None:
    assert Graph.of_sources(SOURCES | changes).circles() == [circle]


def test_what_comes_with_an_import_is_followed() -> None:
    changes = {
        "recipes.metrics.quality": "from recipes.storage import disk",
        "recipes.storage.disk": "def f():\n    from attn2d import ops",
        "attn2d.ops": "import torch.nn",
    }
    graph = Graph.of_sources(SOURCES | changes)
    assert imports_of(graph, "recipes.metrics", "torch") == [
        "recipes.metrics.quality → recipes.storage.disk → attn2d.ops → torch"
    ]
