"""``python -m metatransfer`` is the command ``lightning``."""

from metatransfer.cli import main

if __name__ == "__main__":
    main()
