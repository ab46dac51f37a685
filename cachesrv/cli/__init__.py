"""The command line. ``main`` is the console script."""

from cachesrv.cli.main import main

__all__ = ["main"]
