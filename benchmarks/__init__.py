"""Benchmarks: each compares two things within one run and reports the ratio."""
