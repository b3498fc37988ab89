"""Downloads what a data set's authors publish."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from metatransfer.checks import check_writable
from metatransfer.errors import UserError

_MAX_FILE = 2**30  # a mirror may send without end


def fetch(urls: Sequence[str], md5: str, target: Path) -> None:
    """Downloads a file from the first mirror that gives the right one.

    It is written beside its place and moved there when its checksum is right, so a half file is never taken for it.

    Args:
        urls: mirrors, in the order to try.
        md5: checksum, as the data set's authors publish it.
        target: where to put it.

    Raises:
        UserError: no mirror works; it says which file to put where.
    """
    check_writable(target.parent, "download folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                found = _copy(url, file)
            if found == md5:
                os.replace(temporary, target)
                return
            reasons.append(f"{url}: MD5 {found} instead of {md5}")
        except OSError as error:
            reasons.append(f"{url}: {error}")
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    raise UserError(
        f"{target.name} could not be downloaded ({'; '.join(reasons)}): get {urls[0]} on another machine and put it at "
        f"'{target}'."
    )


def _copy(url: str, file: io.BufferedWriter) -> str:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=30) as answer:
        while chunk := answer.read(2**18):
            size += len(chunk)
            if size > _MAX_FILE:
                raise OSError("the answer does not end")
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
