"""Loading of the plugins' compiled operators."""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch


def load_beside(module: str) -> bool:
    """Load the extension ``_C`` beside the file ``module``, if there is one. Returns whether there is.

    Raises:
        ImportError: it was built against another PyTorch.
    """
    for suffix in EXTENSION_SUFFIXES:
        library = Path(module).with_name("_C" + suffix)
        if library.exists():
            try:
                torch.ops.load_library(str(library))
            except OSError as error:
                raise ImportError(
                    f"{library} does not fit PyTorch {torch.__version__} ({error}): build it again (pip install "
                    "--no-build-isolation -e . in the checkout) or delete it to do without native operators"
                ) from error
            return True
    return False
