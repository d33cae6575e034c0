"""The command line in this process, as tests/test_cli.py has it."""

from __future__ import annotations

from tests.test_cli import command

__all__ = ["command"]
