"""The command line."""

from metatransfer.cli.main import MetaTransferCLI, main

__all__ = ["MetaTransferCLI", "main"]
