"""What is compiled is kept, and whatever stands in the way of that is told or gone around.

Compilers here are scripts: they make a library with nothing in it.
"""

import ctypes
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time

import pytest

from moesaic.kernels.native import build

REAL = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(
    REAL is None or os.name != "posix", reason="there is no compiler to make libraries with"
)

_COMPILER = """#!/bin/sh
PATH="{path}"
echo "$@" >> "{log}"
for out; do :; done
case " $* " in
  *" --version "*) echo "compiler {version}" ;;
  *" -shared "*) {first}; exec "{real}" -shared -x c /dev/null -o "$out" ;;
  *) : > "$out" ;;
esac
"""

Install = Callable[..., None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and no compiler."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "home"


@pytest.fixture
def install(home: Path) -> Install:
    """``install(name, first=":", version=1)``: a compiler that runs a command before it links."""

    def write(name: str = "c++", first: str = ":", version: int = 1) -> None:
        script = home.parent / "bin" / name
        given = {"real": REAL, "log": log(home), "path": os.defpath}
        script.write_text(_COMPILER.format(**given, first=first, version=version))
        script.chmod(0o755)

    return write


def log(home: Path) -> Path:
    return home.parent / "log"


def links(home: Path) -> int:
    """How often something was compiled to the end, or nearly."""
    return log(home).read_text().count("-shared") if log(home).exists() else 0


def found() -> ctypes.CDLL | str:
    """As a process finds it that has not asked before."""
    return build.library.__wrapped__()


def kept(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "moesaic" / "native").glob("*"))


def test_what_was_compiled_is_kept_and_found_again(home: Path, install: Install):
    install()
    assert isinstance(found(), ctypes.CDLL)
    assert isinstance(found(), ctypes.CDLL)
    assert links(home) == 1
    assert len(kept(home)) == 1


@pytest.mark.parametrize("what", ["processor", "compiler"])
def test_another_processor_or_compiler_has_a_library_of_its_own(
    home: Path, install: Install, what: str, monkeypatch: pytest.MonkeyPatch
):
    install()
    found()
    if what == "processor":
        monkeypatch.setattr(build, "_processor", lambda: "flags: fewer")
    else:
        install(version=2)
    found()
    assert links(home) == len(kept(home)) == 2


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"no library"])
def test_a_damaged_library_is_compiled_anew(home: Path, install: Install, damage: bytes):
    install()
    found()
    [path] = kept(home)
    path.unlink()
    path.write_bytes(damage)
    assert isinstance(found(), ctypes.CDLL)
    assert links(home) == 2
    assert kept(home) == [path]
    assert path.read_bytes() != damage


def test_a_home_that_cannot_be_written_costs_no_more_than_the_time(home: Path, install: Install):
    install()
    home.write_text("no folder")
    assert isinstance(found(), ctypes.CDLL)
    assert isinstance(found(), ctypes.CDLL)
    assert links(home) == 2


def test_a_home_that_is_full_likewise(home: Path, install: Install):
    install(first=f'case "$out" in "{home}"*) echo "no space left" >&2; exit 1;; esac')
    assert isinstance(found(), ctypes.CDLL)
    assert kept(home) == []


def test_a_user_without_a_home_likewise(
    home: Path, install: Install, monkeypatch: pytest.MonkeyPatch
):
    def nowhere() -> Path:
        raise RuntimeError("no home")

    install()
    monkeypatch.setattr(Path, "home", nowhere)
    assert isinstance(found(), ctypes.CDLL)
    assert kept(home) == []


def test_what_an_ended_process_left_is_in_nobodys_way(home: Path, install: Install):
    install()
    left = home / ".cache" / "moesaic" / "native" / "unfinished-abc"
    left.mkdir(parents=True)
    (left / "decode.cpp.o").write_bytes(b"half")
    being_made = left.with_name("unfinished-now")
    being_made.mkdir()
    os.utime(left, (0, 0))
    assert isinstance(found(), ctypes.CDLL)
    assert not left.exists()
    assert being_made.exists()


def test_a_library_that_nothing_used_for_a_month_is_removed_when_another_is_made(
    home: Path, install: Install
):
    install()
    found()
    [first] = kept(home)
    others = [first.with_name(f"{name}.so") for name in ("0123456789abcdef", "fedcba9876543210")]
    for other, days in zip(others, (29, 31), strict=True):
        other.touch()
        last = time() - days * 24 * 3600
        os.utime(other, (last, last))
    found()
    assert kept(home) == sorted([first, *others])
    install(version=2)
    found()
    assert set(kept(home)) >= {first, others[0]}
    assert others[1] not in kept(home)
    assert len(kept(home)) == 3


def test_a_library_is_kept_as_long_as_it_is_used(home: Path, install: Install):
    install()
    found()
    [path] = kept(home)
    os.utime(path, (0, 0))
    assert isinstance(found(), ctypes.CDLL)
    install("g++", version=2)
    (home.parent / "bin" / "c++").unlink()
    found()
    assert path in kept(home)
    assert links(home) == len(kept(home)) == 2


def test_several_may_compile_at_once(home: Path, install: Install):
    install(first="sleep 0.2")
    with ThreadPoolExecutor(4) as several:
        assert all(
            isinstance(each, ctypes.CDLL) for each in several.map(lambda _: found(), range(4))
        )
    assert len(kept(home)) == 1


def test_a_compiler_that_fails_leaves_the_turn_to_the_next(home: Path, install: Install):
    install("c++", first="echo no such instruction >&2; exit 1")
    install("g++")
    assert isinstance(found(), ctypes.CDLL)


def test_why_there_is_no_library_is_told(home: Path, install: Install):
    assert found() == "no C++ compiler was found (looked for c++, g++, clang++)"
    told = "In file included from decode.cpp\ndecode.cpp:1: error: no omp.h\ncompilation terminated"
    install(first=f"printf '%s' '{told}' >&2; exit 1")
    why = f"{home.parent}/bin/c++ could not compile it: decode.cpp:1: error: no omp.h"
    assert found() == why
    (home.parent / "bin" / "c++").write_text("no program")
    assert "c++ could not compile it: " in str(found())


def test_what_it_costs_that_there_is_no_library_is_told_with_what_to_install(
    home: Path, caplog: pytest.LogCaptureFixture
):
    found()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "nothing is compiled for this processor: no C++ compiler was found (looked for c++, g++, "
        "clang++). All but the setting form works without, but on a CPU text is written 4 to 10 "
        "times slower, and training takes longer; install a C++ compiler with OpenMP, as with: "
        "apt install g++"
    )


def test_that_it_is_compiled_is_told_once(
    home: Path, install: Install, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    install()
    found()
    found()
    assert caplog.messages == ["compiling for this processor, once"]
