"""Sphinx's configuration for both languages of the site; `build.py` gives the language and the title."""

import logging
import os

from sphinx.application import Sphinx
from sphinx.search.zh import SearchChinese

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


class ChineseSearch(SearchChinese):
    """Sphinx's own, whose page names a stemmer that is not there (9.0), and takes a query in Chinese for one word."""

    language_name = "English"  # of the stemmer
    js_splitter_code = """
var splitQuery = (query) => {
  const segmenter = new Intl.Segmenter("zh", { granularity: "word" });
  const parts = query.match(/[\\u3400-\\u9fff]+|[^\\s\\u3000-\\u303f\\u3400-\\u9fff\\uff00-\\uffef]+/gu) || [];
  const words = parts.flatMap((part) =>
    /[\\u3400-\\u9fff]/.test(part)
      ? [...segmenter.segment(part)].map((one) => one.segment)
      : part.match(/[\\p{L}\\p{N}_]+/gu) || []
  );
  const longer = words.filter((word) => word.length > 1); // the index has no words of one character
  return longer.length ? longer : parts;
};
"""


def setup(app: Sphinx) -> None:
    app.add_search_language(ChineseSearch)
