"""Tests of single commands and of what all commands have in common; tests/test_cli.py tries the way through them."""
