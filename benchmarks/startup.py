"""What ``lightning --help`` costs beside importing Lightning: alternating runs in one go, medians and their ratio.

Usage: python benchmarks/startup.py [runs]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import lightning.pytorch": [sys.executable, "-c", "import lightning.pytorch"],
    "lightning --help": [sys.executable, "-m", "metatransfer", "--help"],
}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=5)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # the first round warms the disk cache
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {runs} alternating runs")
    for name, median in medians.items():
        print(f"{name:28s} {median:6.2f} s  ({', '.join(f'{value:.2f}' for value in seconds[name][1:])})")
    print(f"ratio {medians['lightning --help'] / medians['import lightning.pytorch']:.2f}")


if __name__ == "__main__":
    main()
