"""Sphinx's configuration for both languages of the site; `build.py` gives the language and the title."""

import logging
import os

logging.getLogger("jieba").setLevel(logging.WARNING)  # it cuts Chinese words for the search

project = "Hanlin 翰林"
extensions = ["myst_parser"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["hanlin.css"]
html_copy_source = False
html_show_sphinx = True
html_show_copyright = False
highlight_language = "text"
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "repository": os.environ["HANLIN_REPOSITORY"] + "/{{path}}",
    "other": "../{{path}}",  # a page in the other language
}
myst_heading_anchors = 4  # as GitHub names them
suppress_warnings = ["misc.highlighting_failure"]  # JSON and YAML with `...` in them
