"""The recipes: from raw text to a score. Run from a checkout (`recipes/prepare.sh CORPUS`); not installed."""
