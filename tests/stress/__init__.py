"""Programs that kill, resume, compare and count for minutes; `make stress` runs all of them.

Each `check_*.py` here is a program of its own with `--help`. It prints a readable account, one JSON object as the last
line, and exits with 1 if a check fails.
"""
