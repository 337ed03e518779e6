"""Drop-in for fairseq-generate: `python -m fairseq_compat.generate` translates a binarised data set.

It takes fairseq-generate's options. Checkpoints are loaded safely, errors are one line, logs are quiet, and no
sentence is left out of the batches.
"""

from fairseq_compat import commands, errors


def main() -> None:
    """Run the command."""
    commands.run("generate")


if __name__ == "__main__":
    errors.main(main)
