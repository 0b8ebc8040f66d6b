"""Losses: pure functions of arrays, one idea a file."""
