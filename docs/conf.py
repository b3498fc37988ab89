"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import importlib
import inspect
import pkgutil
import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, get_origin

import metatransfer

project = "metatransfer"
author = "the metatransfer authors"
copyright = "the metatransfer authors"
release = installed_version("metatransfer")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx.ext.viewcode",
]
# a page lists what its class defines; the tables of the default template repeat the members of torch and Lightning
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
autosummary_imported_members = True
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_title = "metatransfer"
html_theme_options = {"show_prev_next": True, "secondary_sidebar_items": ["page-toc"]}
# the table of contents of the whole documentation beside every page
html_sidebars = {"**": ["contents.html"]}
html_show_sourcelink = False


def public_names() -> dict[str, list[str]]:
    """The names of each package's ``__all__``; a name belongs to the package that is nearest to its definition."""
    packages = [info.name for info in pkgutil.walk_packages(metatransfer.__path__, "metatransfer.") if info.ispkg]
    packages.append("metatransfer")
    exporters: dict[str, list[str]] = {}
    for package in packages:
        for name in getattr(importlib.import_module(package), "__all__", ()):
            exporters.setdefault(name, []).append(package)
    names: dict[str, list[str]] = {package: [] for package in packages}
    for name, exporting in exporters.items():
        home = getattr(getattr(importlib.import_module(exporting[0]), name), "__module__", None) or ""
        names[max(exporting, key=lambda one: (f"{home}.".startswith(f"{one}."), len(one)))].append(name)
    return {package: sorted(found, key=str.lower) for package, found in names.items() if found}


def write_api_pages(folder: Path) -> None:
    """Writes one page for each package; each of its classes and functions has a page of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package, names in public_names().items():
        module = importlib.import_module(package)
        title = package.removeprefix("metatransfer.")
        text = f"{title}\n{'=' * len(title)}\n\n{(module.__doc__ or '').strip()}\n\n.. currentmodule:: {package}\n\n"
        kinds = {name: getattr(module, name) for name in names}
        # on Python 3.11 an alias such as list[int] passes as a class
        kinds = {name: one for name, one in kinds.items() if get_origin(one) is None}
        documented = [name for name, one in kinds.items() if inspect.isclass(one) or inspect.isfunction(one)]
        listed = "\n".join(f"   {name}" for name in documented)
        text += f".. autosummary::\n   :toctree: names\n   :nosignatures:\n\n{listed}\n" if documented else ""
        for name in names:  # autodoc would print the docstring of dict or str for a constant
            if name not in documented:
                text += f"\n.. py:data:: {name}\n\n   ``{getattr(module, name)!r}``\n"
        (folder / f"{title}.rst").write_text(text)


write_api_pages(Path(__file__).parent / "api" / "generated")


def setup(app: Any) -> None:
    """Leaves out what others add: scikit-learn's ``set_fit_request``, and ``(*args, **kwargs)`` of torch and typing."""

    def skip(app: Any, what: str, name: str, value: object, skipped: bool, options: Any) -> bool | None:
        return True if re.fullmatch(r"set_\w+_request", name) else None

    def sign(
        app: Any, what: str, name: str, value: object, options: Any, arguments: str | None, result: str | None
    ) -> tuple[str, None] | None:
        home = getattr(value.__init__, "__module__", "")
        return ("", None) if what == "class" and home in ("typing", "torch.nn.modules.module") else None

    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", sign)
