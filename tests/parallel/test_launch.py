from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanlin.core.errors import ConfigError
from hanlin.parallel.launch import run_ranks_here

SMALL_RANK = Path(__file__).with_name("small_rank.py")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

POLITE = """\
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(60)
"""

LAUNCHER = """\
import sys
from hanlin.parallel.launch import run_ranks_here
sys.exit(run_ranks_here([sys.executable, "-c", sys.argv[1], sys.argv[2]], 2))
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", f"import json, os, pathlib, sys, time\n{code}", *map(str, arguments)]


def wait_until(is_so, seconds: float = 60) -> bool:
    limit = time.monotonic() + seconds
    while not (answer := is_so()) and time.monotonic() < limit:
        time.sleep(0.02)
    return answer


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # a zombie only waits to be counted
    except FileNotFoundError:
        return False


@pytest.fixture
def launched(tmp_path):
    """A launcher of two polite ranks in a process of its own, and the ranks' process numbers."""
    command = [sys.executable, "-c", LAUNCHER, POLITE, str(tmp_path)]
    # A shell lets what it starts in the background ignore Ctrl-C, nohup the end of a terminal; that is inherited.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    process = subprocess.Popen(command, start_new_session=True)
    for number, handler in before.items():
        signal.signal(number, handler)
    files = [tmp_path / "0", tmp_path / "1"]
    assert wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    pids = [int(file.read_text()) for file in files]
    yield process, pids
    process.kill()
    process.wait()


def test_each_rank_is_told_who_it_is_as_torchrun_tells_it(tmp_path):
    code = "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(json.dumps(dict(os.environ)))"
    assert run_ranks_here(python(code, tmp_path), 3) == 0
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [(env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) for env in told] == [(r, r, "3") for r in "012"]
    assert len({env["MASTER_PORT"] for env in told}) == 1
    assert all(env["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"] for env in told)  # the user's own wins


def test_only_the_main_rank_speaks(capfd):
    assert run_ranks_here(python("print('I am', os.environ['RANK'])"), 2) == 0
    assert capfd.readouterr().out == "I am 0\n"


def test_a_failed_rank_is_named_with_its_last_words(caplog):
    code = "if os.environ['RANK'] == '1': sys.exit('the cause')\ntime.sleep(60)"
    command = python(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hanlin.parallel.launch.GRACE_SECONDS", 0.2)
        assert run_ranks_here(command, 2) == 1
    assert caplog.messages == ["rank 1 failed with exit code 1\n  rank 1 said:\n  the cause"]


def test_what_each_rank_says_stays_in_its_log(tmp_path, caplog):
    """Start after start, behind what is there; the last words of a failed rank are those of its last start."""
    code = "print('I am', os.environ['RANK']); sys.exit(int(sys.argv[1]) * (os.environ['RANK'] == '1'))"
    logs, command = tmp_path / "run" / "logs", python(code)
    assert run_ranks_here([*command, "0"], 3, logs=logs) == 0
    assert run_ranks_here([*command, "5"], 3, logs=logs) == 5
    assert sorted(path.name for path in logs.iterdir()) == ["rank_1.log", "rank_2.log"]
    lines = (logs / "rank_2.log").read_text().splitlines()
    begins, words = lines[0::2], lines[1::2]
    assert words == ["I am 2", "I am 2"]
    assert all(re.match(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d attempt 0: .*python", line) for line in begins)
    assert caplog.messages == ["rank 1 failed with exit code 5\n  rank 1 said:\n  I am 1"]


def test_a_log_that_cannot_be_written_is_told_before_anything_starts(tmp_path):
    os.mkfifo(tmp_path / "rank_1.log")  # it would be waited for
    with pytest.raises(ConfigError, match=r"rank_1.log: is a pipe"):
        run_ranks_here(python("pass"), 2, logs=tmp_path)
    (tmp_path / "rank_1.log").unlink()
    (tmp_path / "rank_1.log").mkdir()
    with pytest.raises(ConfigError, match=r"rank_1.log: .*; the words of ranks go there"):
        run_ranks_here(python("pass"), 2, logs=tmp_path)


def test_what_a_rank_has_started_ends_too(tmp_path):
    code = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(str(child.pid))
sys.exit(5)"""
    assert run_ranks_here(python(code, tmp_path), 1) == 5
    assert wait_until(lambda: not is_alive(int((tmp_path / "0").read_text())))


def test_a_failed_run_is_started_anew_so_often_and_no_more(tmp_path, caplog):
    code = """
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
pathlib.Path(sys.argv[1], str(attempt)).touch()
sys.exit(0 if attempt == int(sys.argv[2]) else 1)"""
    assert run_ranks_here(python(code, tmp_path, 2), 1, max_restarts=3) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert "rank 0 failed with exit code 1; starting all 1 ranks anew (2 of 3)" in caplog.messages
    assert run_ranks_here(python(code, tmp_path, 2), 1, max_restarts=1) == 1


def test_a_user_s_mistake_is_not_tried_again(tmp_path):
    code = "pathlib.Path(sys.argv[1], os.environ['TORCHELASTIC_RESTART_COUNT']).touch()\nsys.exit(2)"
    assert run_ranks_here(python(code, tmp_path), 1, max_restarts=3) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_all_ranks_save_and_end(launched, number):
    process, pids = launched
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    assert not any(map(is_alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process die with its parent")
def test_no_rank_outlives_a_killed_launcher(launched):
    process, pids = launched
    process.kill()
    assert wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_after_a_killed_rank_the_run_goes_on_from_its_last_checkpoint(tmp_path, capfd, caplog):
    command = [sys.executable, str(SMALL_RANK), str(tmp_path), "5", "how=kill", "rank=1", "step=2"]
    assert run_ranks_here(command, 2, max_restarts=1) == 0
    captured = capfd.readouterr()
    assert captured.out.split("\n")[:-1] == [f"step {n}" for n in (1, 2, 3, 4, 5)]  # none twice
    assert "rank 1 does not answer" in captured.err
    assert "step=3" in captured.err
    assert caplog.messages[0].startswith("rank 1 was killed (SIGKILL)")


@pytest.mark.slow
def test_a_hung_rank_is_killed_after_the_time_out(tmp_path, caplog):
    command = [sys.executable, str(SMALL_RANK), str(tmp_path), "5", "how=hang", "rank=0", "step=1", "timeout=1"]
    start = time.monotonic()
    assert run_ranks_here(command, 2) == 3
    assert time.monotonic() - start < 600  # else half an hour
    assert "rank 0 did not answer the others and was killed" in caplog.text
    assert "step=2" in caplog.text
    assert not is_alive(int((tmp_path / "pid0").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl of Linux")
def test_a_child_whose_parent_died_before_it_could_ask_ends_too():
    command = "import os; from hanlin.parallel.launch import _die_with; _die_with(os.getppid() + 1); print('lives')"
    ran = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (-signal.SIGKILL, "")
