"""The docs as static HTML in both languages: docs/*.md and the README; a warning is an error, no network is used.

python tools/site/build.py [--out site] [--repository URL]

The Markdown stays as it is on GitHub. What differs here: a page has one name in both languages (`en/data.html`,
`zh/data.html`), the README is the first page, and links to files that are no pages lead to the repository: to URL, or
to the checkout in which `site/` lies. Needs the extra `docs`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHINESE = ".zh-CN.md"
LANGUAGES = {"en": ("en", "Hanlin 翰林"), "zh": ("zh_CN", "Hanlin 翰林")}
FIRST = "README.md"
MORE = {"CHANGELOG.md": "CHANGELOG", "CONTRIBUTING.md": "CONTRIBUTING", "SECURITY.md": "REPORTING"}
"""Pages beside docs/, in English only, and their names on the site (SECURITY is docs/security to a careless disk)."""
NAVIGATION = (
    ("Start", "入门", "start data recipes api"),
    ("Coming from", "从原版迁移", "coming_from_chatglm2 coming_from_cpm1 coming_from_cpm2 coming_from_cpm_bee"),
    ("Tune", "微调", "tuning preferences distillation comparing ccpm_comparison"),
    ("Pretrain", "预训练", "pretraining_data"),
    ("Evaluate and decide", "评测与决策", "evaluating suites decisions"),
    ("Serve", "服务", "serving"),
    ("Convert", "转换", "checkpoints exporting"),
    ("Many devices", "多卡多机", "launching layouts planning experts"),
    ("Accelerators", "加速器", "accelerators benchmarks"),
    ("Reference", "参考", "settings glossary reliability security releasing CHANGELOG REPORTING *"),
    ("Under the hood", "深入", "design numerics your_own_model adding_a_family CONTRIBUTING"),
)
"""Captions and pages; `*`: those that are named nowhere."""
LINK = re.compile(r"\[([^]]*)\]\((?!https?://|mailto:|#)([^)#\s]+)(#[^)\s]+)?\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"[\w/]+(\.zh-CN)?\.md")
BROKEN_LINE = re.compile(r"^(?!#)(.*[\u3000-\u9fff\uff00-\uffef])\n *(?=[\u3000-\u9fff\uff00-\uffef])", re.MULTILINE)
"""Between two Chinese characters: a browser would show a blank there."""
REDIRECT = """<!doctype html><meta charset="utf-8"><title>Hanlin 翰林</title>
<script>location.replace((navigator.language.startsWith("zh") ? "zh" : "en") + "/index.html")</script>
<a href="en/index.html">English</a> <a href="zh/index.html">简体中文</a>
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site")
    parser.add_argument("--repository", metavar="URL", help="where files of the repository are shown, as .../blob/main")
    parser.add_argument("--sources-only", action="store_true", help="write what Sphinx reads, and stop")
    args = parser.parse_args()
    for language in LANGUAGES:
        sources = args.out / ".sources" / language
        write_sources(sources, language)
        os.environ["HANLIN_REPOSITORY"] = args.repository or os.path.relpath(ROOT, args.out / language)
        if not args.sources_only and (code := run_sphinx(sources, args.out / language, language)):
            return code
    (args.out / "index.html").write_text(REDIRECT, "utf-8")
    return 0


def run_sphinx(sources: Path, out: Path, language: str) -> int:
    from sphinx.cmd.build import build_main

    code, title = LANGUAGES[language]
    options = ["-W", "--keep-going", "-q", "-c", str(Path(__file__).parent), "-D", f"language={code}"]
    return build_main([*options, "-D", f"html_title={title}", str(sources), str(out)])


def write_sources(sources: Path, language: str) -> None:
    """Every page of one language, its links led to where they are on the site, and the pictures."""
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir(parents=True)
    for path, name in pages(language):
        text = lead_links(path, language)
        if name == "index":
            text += "\n" + navigation(language)
        (sources / f"{name}.md").write_text(text, "utf-8")
    for picture in (path for kind in ("png", "svg") for path in (ROOT / "docs").rglob(f"*.{kind}")):
        target = sources / picture.relative_to(ROOT / "docs")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(picture, target)


def pages(language: str) -> Iterator[tuple[Path, str]]:
    """Files, and their names on the site."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        if not path.name.endswith(CHINESE):
            chinese = path.with_suffix(CHINESE)
            yield chinese if language == "zh" and chinese.exists() else path, path.stem
    yield ROOT / (FIRST if language == "en" else FIRST.replace(".md", CHINESE)), "index"
    for file, name in MORE.items():
        yield ROOT / file, name


def lead_links(path: Path, language: str) -> str:
    """The text of a page with the links of the site; blocks of code are left alone."""
    text = path.read_text("utf-8")
    blocks = FENCE.findall(text)
    parts = [LINK.sub(lambda link: _lead(link, path, language), part) for part in FENCE.split(text)]
    if language == "zh":
        parts = [BROKEN_LINE.sub(r"\1", part) for part in parts]
    return "".join(part + block for part, block in zip(parts, [*blocks, ""], strict=True))


def _lead(link: re.Match[str], path: Path, language: str) -> str:
    words, target, anchor = link[1], Path(os.path.normpath(path.parent / link[2])), link[3] or ""
    name = _name_on_site(target)
    if name is None and target.suffix in (".png", ".svg") and target.is_relative_to(ROOT / "docs"):
        return f"[{words}]({target.relative_to(ROOT / 'docs')})"
    if name is None:
        return f"[{words}](repository:{target.relative_to(ROOT)})"
    is_chinese = target.name.endswith(CHINESE)
    if is_chinese != (language == "zh") and (is_chinese or target.with_suffix(CHINESE).exists()):
        return f"[{words}](other:{'zh' if is_chinese else 'en'}/{name}.html)"
    words = "" if FILE_NAME.fullmatch(words) else words  # Sphinx puts the title there
    return f"[{words}]({name}.md{anchor})"


def _name_on_site(target: Path) -> str | None:
    name = target.name.replace(CHINESE, ".md")
    if target.parent == ROOT / "docs" and target.suffix == ".md":
        return name.removesuffix(".md")
    if target.parent == ROOT:
        return "index" if name == FIRST else MORE.get(name)
    return None


def navigation(language: str) -> str:
    """Sphinx's tables of contents, hidden on the page: the sidebar."""
    names = {name for _, name in pages(language)} - {"index"}
    named = {name for _, _, listed in NAVIGATION for name in listed.split()}
    text = ""
    for english, chinese, listed in NAVIGATION:
        order = [one for name in listed.split() for one in (sorted(names - named) if name == "*" else [name])]
        lines = "\n".join(name for name in order if name in names)
        if lines:
            caption = english if language == "en" else chinese
            text += f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
