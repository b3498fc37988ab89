"""Downloads the files of published data sets."""

import hashlib
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from metatransfer.checks import check_writable
from metatransfer.errors import UserError
from metatransfer.storage import atomic_file

_MAX_FILE = 2**30  # a mirror may never stop sending


def fetch(urls: Sequence[str], md5: str, target: Path) -> None:
    """Downloads a file from the first mirror that serves it with the right MD5."""
    check_writable(target.parent, "download folder")
    reasons = []
    for url in urls:
        try:
            with atomic_file(target) as draft:
                _copy(url, draft, md5)
            return
        except (OSError, HTTPException) as error:
            reasons.append(f"{url}: {error}")
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(reasons)}): download {urls[0]} elsewhere and put it at "
        f"'{target}'."
    )


def _copy(url: str, draft: Path, md5: str) -> None:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=30) as answer, draft.open("wb") as file:
        while chunk := answer.read(2**18):
            if size == 0 and chunk.lstrip().startswith(b"<"):
                raise OSError("it sent a web page instead of the file, perhaps the login page of this network")
            size += len(chunk)
            if size > _MAX_FILE:
                raise OSError("the file is larger than 1 GiB")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != md5:
        raise OSError(f"MD5 {digest.hexdigest()} instead of {md5}")
