"""Local, remote and parallel ways to run a graph."""
