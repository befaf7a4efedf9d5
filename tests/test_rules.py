"""What CONTRIBUTING.md asks of the code and a machine can check, beside ruff, pyright and import-linter."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src/hanlin"
MODULES = {str(path.relative_to(SOURCES)): path for path in sorted(SOURCES.rglob("*.py"))}


def parsed(module: str) -> ast.Module:
    return parsed_file(MODULES[module])


@cache
def parsed_file(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# Families and originals -----------------------------------------------------------------------------------------------

ORIGINAL = re.compile(
    r"cpm[-_]?(1|2|ant)|(?<![a-z])bee(?![a-z])|chatglm|(?<![a-z])glm|bmtrain|opendelta|megatron", re.IGNORECASE
)
FILE_LAYOUTS = {
    "adapters/chatglm2_prefix": "the original's prefix checkpoint",
    "adapters/cpm2_prompts": "the original's checkpoint of soft prompts",
    "adapters/cpm_bee_delta": "the original's delta file",
    "data/sources/bee": "the original's binary data",
    "formats/megatron": "the checkpoints of a program that several families come from",
    "recipe/cpm2_prompts": "the original's file of settings of soft prompts",
}
KNOWN_ORIGINALS = {
    ("adapters/peft_config.py", "megatron_config"): "a key of PEFT's adapter_config.json",
    ("cli/_corpus.py", "cpm1"): "whose tokenizer `hanlin prepare --to indexed` takes when none is named",
    ("cli/inspect.py", "_bee"): "tells of data/sources/bee",
    ("cli/inspect.py", "_is_bee_file"): "tells of data/sources/bee",
    ("cli/prepare.py", "bee"): "the name of a data layout in --from and --to",
    ("recipe/other_names.py", "bmtrain"): "a value's old name, answered by the new one",
    ("recipe/other_names.py", "cpm1"): "a value's old name, answered by the new one",
    ("recipe/other_names.py", "cpm2"): "a value's old name, answered by the new one",
    ("recipe/other_names.py", "megatron"): "a value's old name, answered by the new one",
}


def test_only_families_know_families_and_originals() -> None:
    """Docstrings, comments and messages (texts of several words) may cite them; names and values may not."""
    found = {
        (module, word)
        for module in MODULES
        if not _is_of_a_family(module) and not _is_layout(module) and ORIGINAL.search(module + text_of(MODULES[module]))
        for word in [module, *_names_and_values(parsed(module))]
        if ORIGINAL.search(word)
    }
    assert found == set(KNOWN_ORIGINALS)


def _is_of_a_family(module: str) -> bool:
    return module.startswith("models/") and module.count("/") > 1 and not module.startswith("models/common/")


def _is_layout(module: str) -> bool:
    return any(module.removesuffix(".py") == layout or module.startswith(f"{layout}/") for layout in FILE_LAYOUTS)


def _names_and_values(tree: ast.Module) -> Iterator[str]:
    """Identifiers and one-word strings, without what comes from the module of a file layout."""
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    of_layouts = [node for node in imported if _is_layout((node.module or "").replace("hanlin.", "").replace(".", "/"))]
    known = {name for node in of_layouts for alias in node.names for name in (alias.name, alias.asname)}
    for node in ast.walk(tree):
        for word in _words(node):
            if word not in known and not (isinstance(node, ast.ImportFrom) and node in of_layouts):
                yield word


def _words(node: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [] if re.search(r"\s", text.strip()) else [text]
        case ast.ImportFrom(module=module, names=names):
            return [module or "", *(alias.name for alias in names)]
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            return [name]
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
    return []


# Names that were given up ---------------------------------------------------------------------------------------------

GIVEN_UP_NAMES = {
    "BeamManner", "Keeper", "Kept", "Parts", "Program", "Samples", "Shares", "SpanSight", "Standing", "Together",
    "Watch", "Whole", "Worker", "attend", "attend_grouped", "batch_rows", "batch_segments", "describe_parts",
    "look_at_own", "look_back", "micro_rows", "sees_earlier", "stand_ins", "two_sides",
}  # fmt: skip
GIVEN_UP_WORDS = {"blind", "contest", "keeper", "past", "rival", "rivals", "seam", "seams", "settle", "sew", "sight"}
GIVEN_UP_MODULES = {
    "assemble.py", "core/config.py", "core/effect.py", "core/fit.py", "core/group.py", "core/joined.py",
    "layers/buckets.py", "layers/contest.py", "loading.py", "models/fresh.py", "models/rows.py", "models/two_sides.py",
    "parallel/fit.py", "parallel/group.py", "parallel/place.py", "parallel/shares.py", "parallel/together.py",
    "parallel/worker.py", "parts.py", "planner/live.py", "planner/stand_ins.py", "tokens/batch_segments.py",
    "training/keeper.py", "training/watch.py",
}  # fmt: skip
THEIR_NAMES = {"past_key_values"}  # transformers' word for a cache
ANSWERED = {"src/hanlin/recipe/other_names.py", "tests/test_rules.py"}  # they have to say what an old name is now


def test_names_that_were_given_up_stay_away() -> None:
    assert not GIVEN_UP_MODULES & set(MODULES)
    found = {
        (name, word)
        for name, path in _all_python().items()
        if "def place" in text_of(path) or any(map(_is_given_up_name, re.findall(r"\w+", text_of(path))))
        for node in ast.walk(parsed_file(path))
        for word in _words(node)
        if _is_given_up(node, word)
    }
    assert not found


def test_texts_do_not_use_given_up_names_either() -> None:
    """Docs, recipes and comments; only names that are no English words."""
    unmistakable = re.compile("|".join(rf"\b{name}\b" for name in GIVEN_UP_NAMES if re.search("_|[a-z][A-Z]", name)))
    paths = [path for kind in ("md", "yaml", "py") for path in _ours(kind)]
    texts = {str(path.relative_to(ROOT)): text_of(path) for path in paths}
    found = {
        name: unmistakable.findall(text) for name, text in texts.items() if name not in {*ANSWERED, "CHANGELOG.md"}
    }
    assert not {name: words for name, words in found.items() if words}


def _is_given_up(node: ast.AST, word: str) -> bool:
    if isinstance(node, ast.Constant):
        return False
    return _is_given_up_name(word) or (isinstance(node, ast.FunctionDef) and word == "place")


@cache
def _is_given_up_name(word: str) -> bool:
    parts = re.findall(r"[A-Z]?[a-z]+", word)
    return word not in THEIR_NAMES and (
        word in GIVEN_UP_NAMES or bool(GIVEN_UP_WORDS & {part.lower() for part in parts})
    )


def _all_python() -> dict[str, Path]:
    names = {str(path.relative_to(ROOT)): path for path in _ours("py")}
    return {name: path for name, path in names.items() if name not in ANSWERED}


@cache
def _ours(kind: str) -> list[Path]:
    """All files of a kind; environments, caches and builds, which have many more, are not looked into."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".") and top.name != "build"]
    return sorted(path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if _is_of(path, kind))


def _is_of(path: Path, kind: str) -> bool:
    return path.suffix == f".{kind}" and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def test_tests_leave_no_folders_behind() -> None:
    """Folders of `mkdtemp` stay; `scratch` (tests/drills/scratch.py) and pytest's are taken away."""
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert [path.name for path in tests if re.search(r"\bmkdtemp\b", text_of(path))] == []


# Types ----------------------------------------------------------------------------------------------------------------

OF_EVERY_MODEL = {"Attention", "Block", "DecoderBlock", "DecoderContext", "EncoderBlock", "FeedForward", "Inputs"}


def test_what_tests_import_of_each_other_stands_once() -> None:
    """Their folders are on one path, where the first file of a name hides the others."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    places = [ROOT / folder for folder in settings["pythonpath"]]
    imported = {
        node.module
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(parsed_file(path))
        if isinstance(node, ast.ImportFrom) and node.module and "." not in node.module
    }
    several = {name for name in imported if sum((place / f"{name}.py").is_file() for place in places) > 1}
    assert not several, f"files of one name in several folders of tests, and imported by it: {several}"


def test_a_public_name_of_a_type_means_one_type() -> None:
    rooms: dict[str, list[str]] = {}
    for module in MODULES:
        for name in _public_types(parsed(module)):
            rooms.setdefault(name, []).append(module)
    clashes = {name: found for name, found in rooms.items() if len(found) > 1}
    of_models = {name for name, found in clashes.items() if all(module.endswith("/model.py") for module in found)}
    assert set(clashes) == of_models & OF_EVERY_MODEL, clashes


def test_tokenizers_and_processors_have_types() -> None:
    """Their protocols: core.tokenizer.Tokenizer, data.processor.SampleProcessor, models.family.Processor."""
    untyped = {
        (module, node.lineno)
        for module in MODULES
        if not _is_of_a_family(module) and module != "recipe/tuning.py"  # below the rooms that have the protocols
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.arg | ast.AnnAssign) and re.fullmatch("_?(tokenizer|processor)", _name_of(node))
        if node.annotation is not None and ast.unparse(node.annotation).startswith("Any")
    }
    assert not untyped


def _name_of(node: ast.arg | ast.AnnAssign) -> str:
    return node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)


def _public_types(tree: ast.Module) -> Iterator[str]:
    """Classes, and aliases of types: names such as `Tensors = dict[str, Tensor]`; type variables are none."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if not isinstance(value, ast.Call):
                pass
            case _:
                continue
        if re.match(r"[A-Z]\w*[a-z]", name):
            yield name


# Sizes ----------------------------------------------------------------------------------------------------------------

FILE_LINES, FUNCTION_LINES = 500, 45
KNOWN_LONG_FUNCTIONS = {("recipe/unused_settings.py", "_rules"): "a table, an entry a rule"}


def test_files_are_short() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert not {module: count for module, count in lines.items() if count > FILE_LINES}


def test_functions_are_short() -> None:
    """The docstring counts; most have 5 to 25 lines."""
    long = {
        (module, node.name)
        for module in MODULES
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES
    }
    assert long == set(KNOWN_LONG_FUNCTIONS)
