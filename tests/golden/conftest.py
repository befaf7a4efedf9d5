"""Golden cases: folders made by running the original programs.

`pytest tests/golden --golden DIR` runs every case folder under DIR. A case is checked by the module
`check_<kind>.py` whose kind is the longest prefix of the folder's name; a case without one is reported as such. At the
end stands what a case holds and no check has read.
Default: the cases committed beside this file, and `../shared/golden` where it exists.
"""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMITTED = HERE / "cases"
SHARED = HERE.parents[2] / "shared" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=None, help="folder of golden cases")
    parser.addoption("--vocab", type=Path, default=None, help="folder of vocabulary files (default: DIR/../vocab)")


def find_cases(config: pytest.Config) -> list[Path]:
    given = config.getoption("--golden")
    folders = [given] if given else [COMMITTED, SHARED]
    # By name: a committed case is a copy of the shared one.
    cases = {case.parent.name: case.parent for folder in folders for case in folder.glob("*/case.json")}
    return [cases[name] for name in sorted(cases)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        cases = find_cases(metafunc.config)
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for some in terminalreporter.stats.values() for report in some if hasattr(report, "nodeid")]
    told = {report.nodeid: dict(getattr(report, "user_properties", ())).get("unread") for report in reports}
    if any(told.values()):
        terminalreporter.section("golden cases hold what no check has read")
        for node, unread in told.items():
            for name in unread or ():
                terminalreporter.write_line(f"{node.rpartition('[')[2].rstrip(']')}: {name}")


@pytest.fixture
def vocab_folder(request: pytest.FixtureRequest, golden_case: Path) -> Path:
    own = golden_case.parent.parent / "vocab"
    return request.config.getoption("--vocab") or (own if own.is_dir() else SHARED.parent / "vocab")
