"""Loading of plugins, also of those whose package is imported already."""

import sys
from argparse import Namespace
from pathlib import Path

from fairseq.utils import import_user_module


def load(user_dir: str | Path) -> None:
    """Import the plugin in the folder `user_dir` and register its models, tasks, criteria and optimizers.

    fairseq's `import_user_module` does nothing for a package that is imported already, as by `import memory_layers`.
    Such a package registers its parts in a function `register()` of its own, which is called here. It may be called
    several times.

    Raises:
        FileNotFoundError: there is no such folder.
        ImportError: another package of that name is imported.
    """
    import_user_module(Namespace(user_dir=str(user_dir)))
    register = getattr(sys.modules[Path(user_dir).resolve().name], "register", None)
    if register is not None:
        register()
