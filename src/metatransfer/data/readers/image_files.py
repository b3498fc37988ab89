"""Finds image files in folders and zip files, and the problems of those that cannot be used."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

from metatransfer.checks import check_folder
from metatransfer.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_MAX_FILE = 256 * 2**20  # larger than any photograph; a zip member may claim any size


class ImageFile(NamedTuple):
    """One image file, not yet opened.

    Attributes:
        container: the folder or zip file that contains it.
        name: its path in the container, with ``/``.
        size: in bytes.
        stamp: changes with the content: the times of the file, or the checksum in the zip file.
        zipped: whether ``container`` is a zip file.
        problem: a sentence that says why it cannot be used; empty if no problem is known.
    """

    container: str
    name: str
    size: int = 0
    stamp: str = ""
    zipped: bool = False
    problem: str = ""

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"'{self.name}' in '{self.container}'" if self.zipped else f"'{self.container}/{self.name}'"


def open_tree(path: str | Path, what: str) -> ImageTree:
    """The image files of a folder or of a zip file."""
    place = Path(path).expanduser()
    return _ZipTree(place, what) if place.is_file() else _FolderTree(check_folder(place, what))


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


class _FolderTree:
    """The image files of a folder by relative name, without hidden ones."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)

    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted."""
        with os.scandir(os.path.join(self.root, inside)) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))

    def files(self, inside: str = "") -> list[ImageFile]:
        """The image files below a folder at any depth, sorted; those that cannot be used have a ``problem``."""
        problem = self._link_problem(os.path.join(self.root, inside), ())
        if problem:
            return [self._unusable(inside, problem)]
        return list(self._walk(inside, (os.path.realpath(os.path.join(self.root, inside)),)))

    def find(self, name: str) -> ImageFile | None:
        """One file by its relative name."""
        path = os.path.join(self.root, *PurePosixPath(name).parts)
        if not self._inside(os.path.abspath(path)) or not os.path.lexists(path):
            return None
        problem = self._link_problem(path, ())
        return self._unusable(name, problem) if problem else self._file(name, path)

    def _inside(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root.rstrip(os.sep) + os.sep)

    def _link_problem(self, path: str, above: tuple[str, ...]) -> str:
        target = os.path.realpath(path)
        if not self._inside(target):
            return f"is a link to '{target}', outside of '{self.root}': put the files themselves there"
        if not os.path.exists(target):
            return f"is a link to '{target}', which does not exist: remove it"
        return f"is a link to the folder '{target}' that contains it: remove it" if target in above else ""

    def _unusable(self, name: str, problem: str) -> ImageFile:
        return ImageFile(self.root, name, problem=f"'{self.root}/{name}' {problem}.")

    def _walk(self, inside: str, above: tuple[str, ...]) -> Iterator[ImageFile]:
        try:
            with os.scandir(os.path.join(self.root, inside)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield self._unusable(inside, f"cannot be listed ({error.strerror}): check its permissions")
            return
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            folder = entry.is_dir()
            if _hidden(entry.name) or not (folder or _is_image(entry.name)):
                continue
            problem = self._link_problem(entry.path, above) if entry.is_symlink() else ""
            if problem:
                yield self._unusable(name, problem)
            elif folder:
                # keeps the target of a link among the folders above, so that a loop of links ends
                yield from self._walk(name, (*above, os.path.realpath(entry.path)))
            else:
                yield self._file(name, entry.path)

    def _file(self, name: str, path: str) -> ImageFile:
        try:
            status = os.stat(path)
        except OSError as error:
            return self._unusable(name, f"cannot be read ({error.strerror}): check its permissions")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            return self._unusable(name, "is not a regular file: remove it")
        if status.st_size > _MAX_FILE:
            return self._unusable(name, f"has {status.st_size} bytes, too many for an image: remove it")
        # with the change time, because tools that unpack or copy may reset the modification time
        return ImageFile(self.root, name, status.st_size, f"{status.st_mtime_ns}-{status.st_ctime_ns}")


class _ZipTree:
    """The image files of a zip file by relative name, without a folder that contains everything."""

    def __init__(self, path: Path, what: str) -> None:
        self.root = os.path.realpath(path)
        try:
            with zipfile.ZipFile(self.root) as archive:
                members = archive.infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{what} '{path}' cannot be read as a zip file ({error}): give a folder or download it again."
            ) from error
        seen: set[str] = set()
        for member in members:
            self._check(member, seen)
        visible = [member for member in members if not any(_hidden(part) for part in member.filename.split("/"))]
        self._members = {member.filename: member for member in visible if not member.is_dir()}
        self._prefix = self._wrapper()
        # the content of each folder: searching all members for every class would take minutes
        self._folders: dict[str, set[str]] = {}
        self._images: dict[str, list[str]] = {}
        for member in visible:
            if member.filename.startswith(self._prefix):
                self._place(member.filename)

    def _place(self, name: str) -> None:
        folder, _, base = name.removeprefix(self._prefix).rpartition("/")
        if _is_image(base):
            self._images.setdefault(folder, []).append(name)
        while folder:
            above, _, below = folder.rpartition("/")
            self._folders.setdefault(above, set()).add(below)
            folder = above

    def _check(self, member: zipfile.ZipInfo, seen: set[str]) -> None:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
            raise UserError(
                f"'{self.root}' holds the member '{member.filename}', which would be unpacked outside of its folder: "
                "do not use this file; download it from another source."
            )
        if name in seen:
            raise UserError(f"'{self.root}' holds two members named '{name}': pack it again with one of each.")
        seen.add(name)

    def _wrapper(self) -> str:
        """The folder that contains everything; most zip files have one."""
        prefix = ""
        names = [name for name in self._members if _is_image(name)]
        while names:
            tops = {name[len(prefix) :].partition("/")[0] for name in names}
            deeper = f"{prefix}{min(tops)}/"
            # a folder that directly contains images is a class
            if len(tops) > 1 or not all(name.startswith(deeper) and "/" in name[len(deeper) :] for name in names):
                break
            prefix = deeper
        return prefix

    def folders(self, inside: str = "") -> list[str]:
        return sorted(self._folders.get(inside, ()))

    def files(self, inside: str = "") -> list[ImageFile]:
        found = [self._file(name) for name in self._images.get(inside, ())]
        for folder in self.folders(inside):
            found += self.files(f"{inside}/{folder}" if inside else folder)
        return sorted(found, key=lambda file: file.name)

    def find(self, name: str) -> ImageFile | None:
        full = self._prefix + name
        return self._file(full) if full in self._members else None

    def _file(self, name: str) -> ImageFile:
        member = self._members[name]
        problem = ""
        if member.flag_bits & 1:
            problem = "is encrypted: pack it again without a password"
        elif member.file_size > _MAX_FILE:
            problem = f"has {member.file_size} bytes, too many for an image: remove it"
        elif stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link: pack the file itself"
        problem = f"'{name}' in '{self.root}' {problem}." if problem else ""
        return ImageFile(self.root, name, member.file_size, f"{member.CRC:08x}", True, problem)


ImageTree: TypeAlias = _FolderTree | _ZipTree
"""The image files of a folder or of a zip file."""
