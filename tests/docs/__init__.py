"""Tests of the documentation: every block of every page runs, every name and error that it quotes is there."""
