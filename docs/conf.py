"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

import importlib
import pkgutil
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

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
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
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
html_show_sourcelink = False


def public_names() -> dict[str, list[str]]:
    """The names of each package's ``__all__``; a name belongs to the innermost package that exports it."""
    packages = [info.name for info in pkgutil.walk_packages(metatransfer.__path__, "metatransfer.") if info.ispkg]
    exported = {name: list(getattr(importlib.import_module(name), "__all__", ())) for name in packages}
    for name, names in exported.items():
        inner = {one for other in packages if other.startswith(f"{name}.") for one in exported[other]}
        exported[name] = [one for one in names if one not in inner]
    return {name: names for name, names in exported.items() if names}


def write_api_pages(folder: Path) -> None:
    """Writes one page for each package, with a page of its own for each of its public names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package, names in public_names().items():
        title = package.removeprefix("metatransfer.")
        doc = (importlib.import_module(package).__doc__ or "").strip()
        listed = "\n".join(f"   {name}" for name in sorted(names, key=str.lower))
        (folder / f"{title}.rst").write_text(
            f"{title}\n{'=' * len(title)}\n\n{doc}\n\n.. currentmodule:: {package}\n\n"
            f".. autosummary::\n   :toctree: names\n   :nosignatures:\n\n{listed}\n"
        )


write_api_pages(Path(__file__).parent / "api" / "generated")
