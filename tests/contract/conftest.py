"""Which families sign the contract: those named by `--family`, else all of ours and the example of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from family_cases import Case, case_of

from hanlin.models.family import family_names, load_family

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_model.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--family", action="append", default=[], help="a .py file that defines `family`, or a name; may be repeated"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    families = metafunc.config.getoption("--family") or [*family_names(), str(EXAMPLE)]
    if "layout" in metafunc.fixturenames:
        # A file of another program (pack) is written and not read, so nothing comes back from it.
        forms = {family: load_family(family).formats for family in families}
        pairs = [(family, layout) for family in families for layout, form in forms[family].items() if not form.pack]
        metafunc.parametrize(("case", "layout"), pairs, ids=_short, indirect=["case"], scope="session")
    else:
        metafunc.parametrize("case", families, ids=_short, indirect=True, scope="session")


def _short(name: str) -> str:
    return Path(name).stem


@pytest.fixture(scope="session")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """The case of a family, made once."""
    made: dict[str, Case] = {}

    def make(family: str) -> Case:
        if family not in made:
            made[family] = case_of(family, tmp_path_factory.mktemp(_short(family)))
        return made[family]

    return make


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest, make_case: Callable[[str], Case]) -> Case:
    return make_case(request.param)
