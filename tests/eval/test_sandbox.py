"""Programs of every bad kind in a limited process, with the system's guards and with Python's."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from moesaic.errors import ConfigError
from moesaic.eval import sandbox
from moesaic.eval.child import landlock
from moesaic.eval.sandbox import Limits, Outcome, isolation, run_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guards are Linux's")

SMALL = Limits(seconds=60, cpu_seconds=1, memory_bytes=1 << 28, file_bytes=1 << 16)
KERNEL = [True, False]
HAS_LANDLOCK = landlock.supported_abi() >= landlock.NEEDED_ABI


def run(program: str, tests: str = "", kernel: bool = True) -> Outcome:
    return run_code(program, tests, SMALL, kernel)


def what_works(attempts: Sequence[str], kernel: bool = True, **names: str) -> list[str]:
    """Those of some statements that raise no error, run one after the other in one program."""
    outcome = run(
        "import multiprocessing, os, resource, socket, sqlite3, subprocess, urllib.request\n"
        f"globals().update({names})\n"
        f"for attempt in {[*attempts]}:\n"
        "    try:\n        exec(attempt)\n    except (OSError, sqlite3.Error):\n        pass\n"
        "    else:\n        print(attempt)",
        kernel=kernel,
    )
    assert outcome.passed, outcome.reason
    return outcome.output.splitlines()


@pytest.mark.parametrize("kernel", KERNEL)
def test_a_program_passes_if_its_tests_hold(kernel: bool):
    right = run("def double(x):\n    return 2 * x", "assert double(4) == 8", kernel)
    wrong = run("def double(x):\n    return x", "assert double(4) == 8, 'four'", kernel)
    assert right.passed
    assert right.reason == ""
    assert not wrong.passed
    assert wrong.reason == "AssertionError: four"


@pytest.mark.parametrize("program", ["def f(:", "1 / 0", "import moesaic_plus", "'\ud800'"])
def test_a_program_that_does_not_run_fails(program: str):
    assert not run(program).passed


@pytest.mark.parametrize("leaving", ["import sys; sys.exit(0)", "import os; os._exit(0)", "quit()"])
def test_leaving_before_the_tests_with_status_0_is_no_success(leaving: str):
    assert not run(leaving).passed
    inside = f"def f(x):\n    {leaving}"
    assert not run(inside, "f(1)\nassert False").passed


def test_nothing_that_is_printed_stands_for_a_success():
    words = "passed", "ok", '{"passed": true}', "0" * 16
    program = f"import sys\nfor word in {words}:\n    print(word)\n    print(word, file=sys.stderr)"
    outcome = run(f"{program}\nraise ValueError('no')")
    assert not outcome.passed
    assert outcome.reason == "ValueError: no"
    assert outcome.output.startswith("passed\nok\n")


def test_what_is_written_into_the_pipes_stands_for_no_success():
    program = (
        "import os\n"
        "for pipe in range(3, 64):\n"
        "    try:\n        os.write(pipe, b'passed' * 4)\n    except OSError:\n        pass\n"
        "os._exit(0)"
    )
    assert not run(program).passed


def test_closing_the_pipes_is_no_success():
    assert not run("import os; os.closerange(3, 64)").passed


@pytest.mark.parametrize(
    "trick",
    [
        "AssertionError = Exception",
        "import builtins; builtins.AssertionError = type('A', (Exception,), {})",
        "import builtins; builtins.compile = builtins.exec = lambda *_, **__: None",
        "import os; os.write = os.read = os._exit = lambda *_: b''",
        "import sys; sys.excepthook = print; sys.settrace(lambda *_: None)",
        "def check(candidate):\n    return None",
    ],
)
def test_replacing_what_tests_are_made_of_does_not_make_them_pass(trick: str):
    assert not run(trick, "def check(candidate):\n    assert candidate == 2\ncheck(1)").passed


def test_an_endless_loop_ends_when_its_computing_time_is_used_up():
    outcome = run("while True:\n    pass")
    assert not outcome.passed
    assert "CPU time limit exceeded" in outcome.reason


def test_a_program_that_waits_ends_when_its_time_is_up():
    outcome = run_code("import time\ntime.sleep(600)", limits=Limits(seconds=0.5))
    assert not outcome.passed
    assert outcome.reason == "took longer than 0.5 seconds"
    assert outcome.seconds < 60


def test_ten_gigabytes_are_not_there():
    assert run("x = bytearray(10 << 30)").reason == "MemoryError"


def test_deep_recursion_ends_in_a_failure():
    assert run("def f():\n    f()\nf()").reason.startswith("RecursionError")
    endless = "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n    return f([x])\nf([])"
    assert not run(endless).passed


def test_a_huge_file_is_not_written():
    outcome = run("open('large', 'wb').write(bytes(1 << 20))")
    assert outcome.reason.startswith("OSError: [Errno 27]")


def test_many_files_are_ended_at_the_bound_of_the_folder():
    program = "for n in range(10 ** 9):\n    open(str(n), 'w').write('x')"
    limits = Limits(seconds=60, cpu_seconds=30, folder_bytes=1 << 20)
    assert run_code(program, limits=limits).reason == "wrote more than 1048576 bytes"


def test_huge_output_is_an_error_and_its_end_is_kept():
    outcome = run("while True:\n    print('x' * 1000)")
    assert not outcome.passed
    assert len(outcome.output) == 4000


@pytest.mark.parametrize("kernel", KERNEL)
def test_there_is_no_network(kernel: bool):
    connections = (
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.create_connection(('127.0.0.1', 9))",
        "urllib.request.urlopen('http://127.0.0.1:9')",
    )
    assert what_works(connections, kernel) == []


@pytest.mark.parametrize("kernel", KERNEL)
def test_there_are_no_further_processes(kernel: bool):
    starts = (
        "while True: os.fork()",
        "if os.system('true'): raise OSError",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "multiprocessing.Process(target=print).start()",
    )
    assert what_works(starts, kernel) == []


def test_there_are_threads():
    program = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run(program).passed


@pytest.mark.parametrize("kernel", KERNEL)
def test_other_processes_are_out_of_reach(kernel: bool):
    reaches = (
        "os.kill(os.getppid(), 0)",
        "os.killpg(os.getpgid(os.getppid()), 0)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1 << 40, 1 << 40))",
        "open(f'/proc/{os.getppid()}/environ').read()",
    )
    assert what_works(reaches, kernel) == []


@pytest.mark.parametrize("kernel", KERNEL)
def test_files_of_others_are_out_of_reach(kernel: bool, tmp_path: Path):
    file, new = tmp_path / "file", tmp_path / "new"
    file.write_text("kept")
    before = file.stat()
    touches = (
        "open(FILE).read()",
        "open(FILE, 'w')",
        "open(FILE, 'a')",
        "open(NEW, 'w')",
        "os.listdir(FOLDER)",
        "os.remove(FILE)",
        "os.rename(FILE, 'here')",
        "os.link(FILE, 'here')",
        "os.symlink(FILE, 'here')",
        "os.truncate(FILE, 0)",
        "os.chmod(FILE, 0o777)",
        "os.utime(FILE)",
        "os.mkdir(NEW)",
        "os.open(FILE, os.O_RDONLY | os.O_TRUNC)",
        "sqlite3.connect(NEW)",
        "open('/proc/self/environ').read()",
    )
    names = {"FILE": str(file), "NEW": str(new), "FOLDER": str(tmp_path)}
    assert what_works(touches, kernel, **names) == []
    assert file.read_text() == "kept"
    assert (file.stat().st_mode, file.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert not new.exists()


@pytest.mark.parametrize("kernel", KERNEL)
def test_a_program_may_write_in_its_own_folder_which_is_empty_before_and_gone_after(kernel: bool):
    program = (
        "import os, tempfile\n"
        "print(os.getcwd())\n"
        "assert os.listdir() == []\n"
        "open('a', 'w').write('text')\n"
        "assert open('a').read() == 'text'\n"
        "os.rename('a', 'b')\n"
        "assert os.listdir() == ['b']\n"
        "tempfile.TemporaryFile().close()"
    )
    outcome = run(program, kernel=kernel)
    assert outcome.passed, outcome.reason
    assert not Path(outcome.output.strip()).exists()


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "kept")
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        program = (
            "import os, sys\n"
            "assert 'SECRET' not in os.environ\n"
            "assert not sys.stdin.read()\n"
            "assert not any('site-packages' in path for path in sys.path)\n"
            f"try:\n    os.fstat({file.fileno()})\nexcept OSError:\n    pass\n"
            f"else:\n    assert {file.fileno()} < 10, 'an open file'"
        )
        assert run(program).passed


def test_python_s_own_library_is_there():
    names = "asyncio ctypes dataclasses decimal hashlib heapq random sqlite3 statistics typing zlib"
    assert run(f"import {', '.join(names.split())}").passed


def test_sets_have_the_same_order_in_every_run():
    program = "print(list({'one', 'two', 'three', 'four', 'five'}))"
    assert run(program).output == run(program).output


def test_a_program_is_not_the_main_module():
    assert run("if __name__ == '__main__':\n    raise ValueError").passed


def test_what_guards_a_program_is_told():
    expected = f"Landlock {landlock.supported_abi()}" if HAS_LANDLOCK else "audit hook"
    assert isolation() == {"memory": "limited", "calls": "seccomp", "files": expected}
    without = run("", kernel=False).isolation
    assert without == {"memory": "limited", "calls": "audit hook", "files": "audit hook"}


def test_programs_run_side_by_side():
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(run("", f"assert {n} % 2")))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.passed for outcome in outcomes) == [False, False, True, True]


def test_a_machine_without_limits_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox.os, "name", "nt")
    with pytest.raises(ConfigError, match="use Linux or macOS, or leave out the tasks that run"):
        run_code("")


def test_an_interpreter_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"on this machine \(the process did not start\)"):
        run_code("")
