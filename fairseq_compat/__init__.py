"""What the plugins share about fairseq: safe loading, launching, saving, clear errors."""

_installed = False


def install() -> None:
    """Apply the mends to fairseq that the modules named below describe.

    Every plugin calls it when it is imported; calling it again changes nothing.
    """
    global _installed
    if _installed:
        return
    _installed = True
    from fairseq_compat import batching, checkpoints, errors, launch, numpy_names, randomness, resuming

    batching.install()
    checkpoints.install()
    resuming.install()
    launch.install()
    randomness.install()
    numpy_names.install()
    errors.install()
