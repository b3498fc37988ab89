"""Builds learn2learn 0.2.0 for Python 3.11 and later, where plain pip cannot.

    python tools/build_learn2learn.py --install           into the environment of this Python
    python tools/build_learn2learn.py --out wheels        the wheel only; with --install, one that is there is installed

The source distribution carries C files that an old Cython made for Python 3.7; they do not compile against Python 3.11.
The Cython sources beside them are fine, so this gets the distribution from the package index, checks it, removes the C
files and lets setuptools make them anew. A C compiler and Python's headers are needed.

With ``--install`` what ``import learn2learn`` needs comes along (gym, requests, scipy, tqdm), but not gsutil and qpth,
which it lists too and which serve downloads from Google's storage and the SVM head of MetaOptNet; ``pip check`` names
them.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.2.0"
SHA256 = "69f1d7cb0d0a6be7a2c6ad8e83e2ebbe70fb05e51d61e45e63078b40c75ea419"
NEEDED = ("gym", "requests", "scipy", "tqdm")


def main() -> None:
    """Reads the arguments and does as they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder that the wheel is put into")
    parser.add_argument("--install", action="store_true", help="install the wheel and what it needs")
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.install:
        parser.error("say what to do with the wheel: --install, or --out FOLDER")
    with tempfile.TemporaryDirectory() as folder:
        out = (arguments.out or Path(folder) / "wheel").absolute()
        wheel = made(out) or build(Path(folder), out)
        print(f"built {wheel.name}")
        if arguments.install:
            pip("install", *NEEDED)
            pip("install", "--no-deps", "--force-reinstall", str(wheel))


def made(out: Path) -> Path | None:
    """The wheel in a folder, or ``None``."""
    return next(out.glob(f"learn2learn-{VERSION}-*.whl"), None)


def build(folder: Path, out: Path) -> Path:
    """Makes the wheel.

    Args:
        folder: an empty folder to work in.
        out: where the wheel goes.

    Returns:
        The wheel.

    Raises:
        SystemExit: the distribution is not the one that is expected.
    """
    pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"learn2learn=={VERSION}")
    archive = folder / f"learn2learn-{VERSION}.tar.gz"
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{archive.name} is not the learn2learn {VERSION} that this script knows (SHA-256 differs).")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    source = folder / f"learn2learn-{VERSION}"
    for stale in source.glob("learn2learn/**/*.c"):
        stale.unlink()
    setup = source / "setup.py"
    text = setup.read_text(encoding="utf-8")
    if "extension_type = '.c'" not in text:
        raise SystemExit("setup.py of learn2learn is not as expected: its extensions are not built from C files.")
    setup.write_text(text.replace("extension_type = '.c'", "extension_type = '.pyx'", 1), encoding="utf-8")
    pip("wheel", "--no-deps", "--wheel-dir", str(out), str(source))
    wheel = made(out)
    assert wheel, "pip has made it"
    return wheel


def pip(*arguments: str) -> None:
    """Runs pip of this Python.

    Args:
        arguments: after ``pip``.

    Raises:
        SystemExit: pip failed; it has said why.
    """
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip {arguments[0]} failed; see above.")


if __name__ == "__main__":
    main()
