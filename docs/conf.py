"""Sphinx configuration; ``make docs`` builds the pages without a network."""

import dataclasses
from importlib.metadata import version as installed_version

project = "emte"
author = "the emte authors"
release = version = installed_version("emte")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.yowasp_wavedrom",
]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
napoleon_google_docstring = False
napoleon_custom_sections = [("Members", "params_style")]

html_theme = "alabaster"
html_theme_options = {
    "description": "Tag pipeline for Enhanced Memory Tagging",
    "page_width": "1080px",
    "fixed_sidebar": True,
}


def document_parameters(app, what, name, obj, options, lines) -> None:
    """Add the parameters of a dataclass, which are documented where they are declared."""
    if what == "class" and dataclasses.is_dataclass(obj):
        for field in dataclasses.fields(obj):
            default = getattr(field.default, "name", field.default)
            lines.append(f":param {field.name}: {field.metadata['doc']}; {default} by default")


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", document_parameters)
