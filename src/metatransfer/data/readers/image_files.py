"""Finds image files in folders and zip files, and the problems of those that cannot be used."""

import os
import posixpath
import re
import stat
import zipfile
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metatransfer.checks import check_folder
from metatransfer.errors import UserError, explained

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm"}
)
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


class ImageTree(ABC):
    """The image files of a folder or of a zip file by relative name, without hidden ones.

    Attributes:
        root: path of the folder or zip file.
        prefix: the folder of a zip file that contains everything, with ``/``; it is left out of relative names.
        passed_over: number of files that :meth:`files` found and that are not images, by extension.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.prefix = ""
        self.passed_over: Counter[str] = Counter()

    @abstractmethod
    def entries(self, inside: str = "") -> tuple[Collection[str], Collection[str]]:
        """Names of the folders and of the files directly in a folder.

        Raises:
            UserError: the folder cannot be used.
        """

    @abstractmethod
    def find(self, name: str) -> ImageFile | None:
        """One file by its relative name; two names of the same file give the same result."""

    @abstractmethod
    def _file(self, name: str) -> ImageFile:
        """One file that exists."""

    def folders(self, inside: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted."""
        return sorted(self.entries(inside)[0])

    def files(self, inside: str = "") -> list[ImageFile]:
        """The image files below a folder at any depth, sorted; those that cannot be used have a ``problem``."""
        try:
            folders, files = self.entries(inside)
        except UserError as error:
            return [ImageFile(self.root, inside, problem=str(error))]
        found: list[ImageFile] = []
        for entry in sorted([*folders, *files]):
            name = f"{inside}/{entry}" if inside else entry
            if entry in folders:
                found += self.files(name)
            elif is_image(entry):
                found.append(self._file(name))
            else:
                self.passed_over[kind_of(entry)] += 1
        return found


def open_tree(path: str | Path, what: str) -> ImageTree:
    """The image files of a folder or of a zip file."""
    place = Path(path).expanduser()
    return _ZipTree(place, what) if place.is_file() else _FolderTree(check_folder(place, what))


def kind_of(name: str) -> str:
    """The extension of a file, in lower case."""
    return PurePosixPath(name).suffix.lower() or "without extension"


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension."""
    return kind_of(name) in IMAGE_SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


class _FolderTree(ImageTree):
    """The image files of a folder."""

    def entries(self, inside: str = "") -> tuple[Collection[str], Collection[str]]:
        path = os.path.join(self.root, inside)
        problem = self._link_problem(inside)
        if problem:
            raise UserError(self._sentence(inside, problem))
        try:
            with os.scandir(path) as found:
                is_folder = {entry.name: entry.is_dir() for entry in found if not _hidden(entry.name)}
        except OSError as error:
            raise UserError(
                self._sentence(inside, f"cannot be listed ({error.strerror}): check its permissions")
            ) from error
        return {name for name in is_folder if is_folder[name]}, [name for name in is_folder if not is_folder[name]]

    def find(self, name: str) -> ImageFile | None:
        path = os.path.join(self.root, *PurePosixPath(name).parts)
        if not self._inside(os.path.abspath(path)) or not os.path.lexists(path):
            return None
        problem = self._link_problem(name)
        if problem:
            return ImageFile(self.root, name, problem=self._sentence(name, problem))
        return self._file(os.path.relpath(os.path.realpath(path), self.root).replace(os.sep, "/"))

    def _inside(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root.rstrip(os.sep) + os.sep)

    def _link_problem(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        target = os.path.realpath(os.path.join(self.root, *parts))
        if not self._inside(target):
            return f"is a link to '{target}', outside of '{self.root}': put the files themselves there"
        if not os.path.exists(target):
            return f"is a link to '{target}', which does not exist: remove it"
        above = {os.path.realpath(os.path.join(self.root, *parts[:depth])) for depth in range(len(parts))}
        return f"is a link to the folder '{target}' that contains it: remove it" if target in above else ""

    def _sentence(self, name: str, problem: str) -> str:
        return f"'{self.root}{'/' * bool(name)}{name}' {problem}."

    def _file(self, name: str) -> ImageFile:
        path = os.path.join(self.root, name)
        problem, status = "", None
        try:
            problem = self._link_problem(name) if os.path.islink(path) else ""
            status = os.stat(path)
        except OSError as error:
            problem = problem or f"cannot be read ({error.strerror}): check its permissions"
        if not problem and status is not None:
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
                problem = "is not a regular file: remove it"
            elif status.st_size > _MAX_FILE:
                problem = f"has {status.st_size} bytes, too many for an image: remove it"
        if problem or status is None:
            return ImageFile(self.root, name, problem=self._sentence(name, problem))
        # with the change time, because tools that unpack or copy may reset the modification time
        return ImageFile(self.root, name, status.st_size, f"{status.st_mtime_ns}-{status.st_ctime_ns}")


class _ZipTree(ImageTree):
    """The image files of a zip file, without a folder that contains everything."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path)
        problem = explained(f"{what} '{path}' cannot be read as a zip file", "give a folder or download it again")
        with problem, zipfile.ZipFile(self.root) as archive:
            members = archive.infolist()
        self._check([member.filename for member in members])
        visible = [member for member in members if not any(_hidden(part) for part in member.filename.split("/"))]
        self._members = {member.filename: member for member in visible if not member.is_dir()}
        self.prefix = self._wrapper()
        # the content of each folder: searching all members for every class would take minutes
        self._folders: dict[str, set[str]] = defaultdict(set)
        self._names: dict[str, list[str]] = defaultdict(list)
        for member in visible:
            if member.filename.startswith(self.prefix):
                self._place(member.filename.removeprefix(self.prefix))

    def _place(self, name: str) -> None:
        folder, _, base = name.rpartition("/")
        self._names[folder] += [base] if base else []
        while folder:
            above, _, below = folder.rpartition("/")
            self._folders[above].add(below)
            folder = above

    def _check(self, names: list[str]) -> None:
        plain = [name.replace("\\", "/") for name in names]
        for name, given in zip(plain, names, strict=True):
            if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
                raise UserError(
                    f"'{self.root}' holds the member '{given}', which would be unpacked outside of its folder: "
                    "do not use this file; download it from another source."
                )
        name, count = Counter(plain).most_common(1)[0] if plain else ("", 0)
        if count > 1:
            raise UserError(f"'{self.root}' holds two members named '{name}': pack it again with one of each.")

    def _wrapper(self) -> str:
        """The folder that contains everything; most zip files have one."""
        prefix = ""
        names = [name for name in self._members if is_image(name)]
        while names:
            tops = {name[len(prefix) :].partition("/")[0] for name in names}
            deeper = f"{prefix}{min(tops)}/"
            # a folder that directly contains images is a class
            if len(tops) > 1 or not all(name.startswith(deeper) and "/" in name[len(deeper) :] for name in names):
                break
            prefix = deeper
        return prefix

    def entries(self, inside: str = "") -> tuple[Collection[str], Collection[str]]:
        return self._folders.get(inside, set()), self._names.get(inside, [])

    def find(self, name: str) -> ImageFile | None:
        name = posixpath.normpath(name)
        return self._file(name) if self.prefix + name in self._members else None

    def _file(self, name: str) -> ImageFile:
        member = self._members[self.prefix + name]
        problem = ""
        if member.flag_bits & 1:
            problem = "is encrypted: pack it again without a password"
        elif member.file_size > _MAX_FILE:
            problem = f"has {member.file_size} bytes, too many for an image: remove it"
        elif stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link: pack the file itself"
        problem = f"'{member.filename}' in '{self.root}' {problem}." if problem else ""
        return ImageFile(self.root, member.filename, member.file_size, f"{member.CRC:08x}", True, problem)
