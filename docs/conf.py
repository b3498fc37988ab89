"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from importlib.metadata import version as installed_version

project = "metatransfer"
author = "the metatransfer authors"
copyright = "the metatransfer authors"
release = installed_version("metatransfer")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_title = "metatransfer"
html_theme_options = {"show_prev_next": True, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
