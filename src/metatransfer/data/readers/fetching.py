"""Downloads what a data set's authors publish."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from metatransfer.checks import check_writable
from metatransfer.errors import UserError
from metatransfer.storage import atomic_file

_MAX_FILE = 2**30  # a mirror may send without end


def fetch(urls: Sequence[str], md5: str, target: Path) -> None:
    """Downloads a file from the first mirror that gives the right one.

    Raises:
        UserError: no mirror works; it says which file to put where.
    """
    check_writable(target.parent, "download folder")
    reasons = []
    for url in urls:
        try:
            with atomic_file(target) as draft:  # so a half file is never taken for it
                _copy(url, draft, md5)
            return
        except OSError as error:
            reasons.append(f"{url}: {error}")
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(reasons)}): get {urls[0]} on another machine and put it at "
        f"'{target}'."
    )


def _copy(url: str, draft: Path, md5: str) -> None:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=30) as answer, draft.open("wb") as file:
        while chunk := answer.read(2**18):
            size += len(chunk)
            if size > _MAX_FILE:
                raise OSError("the answer does not end")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != md5:
        raise OSError(f"MD5 {digest.hexdigest()} instead of {md5}")
