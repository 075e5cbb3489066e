"""The command line ``oes-fast``; ``oes-fast --help`` describes it."""

from oes_fast.cli.app import main

__all__ = ["main"]
