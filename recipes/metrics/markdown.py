"""Rows of tables in Markdown."""


def row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def rule(columns: int) -> str:
    """The line between the head of a table and its rows."""
    return row(*["---"] * columns)
