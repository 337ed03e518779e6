"""Fixes for fairseq: safe loading, saving, exact resuming, launching, clear errors.

Importing this package changes nothing. `install` applies the fixes; our commands call it, and so do our models and
tasks when fairseq sets them up. docs/fairseq_compat.md lists what it replaces.
"""


def install() -> None:
    """Apply the fixes that training and decoding need. Calling it again changes nothing."""
    from fairseq_compat import batching, checkpoint_patches, errors, launch, numpy_names, randomness, resuming

    batching.install()
    checkpoint_patches.install()
    resuming.install()
    launch.install()
    randomness.install()
    numpy_names.install()
    errors.install_hook()
