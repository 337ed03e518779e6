"""Drop-in for fairseq-validate: `python -m fairseq_compat.validate` computes losses on a data set.

It takes fairseq-validate's options. Checkpoints are loaded safely, errors are one line, logs are quiet, and no
sentence is left out of the batches.
"""

from fairseq_compat import commands, errors


def main() -> None:
    """Run the command."""
    commands.run("validate")


if __name__ == "__main__":
    errors.main(main)
