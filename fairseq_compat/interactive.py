"""Drop-in for fairseq-interactive: `python -m fairseq_compat.interactive` translates lines of text.

It takes fairseq-interactive's options. Checkpoints are loaded safely, errors are one line, logs are quiet, and no
sentence is left out of the batches.
"""

from fairseq_compat import commands, errors


def main() -> None:
    """Run the command."""
    commands.run("interactive")


if __name__ == "__main__":
    errors.main(main)
