import platform
import runpy
import subprocess
import sys

import pytest

from metatransfer import host_memory

COUNT = """
import resource, runpy, sys
if sys.argv[2] == "kept":
    runpy.run_path(sys.argv[1])["keep_freed_memory"]()
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        block = bytearray(b"x") * 2**26
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults())
"""


def page_faults(mode: str, **environment: str) -> int:
    """Page faults of eight blocks of 64 MB, each freed before the next, in a process of its own."""
    command = [sys.executable, "-c", COUNT, host_memory.__file__, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("kept") * 10 < page_faults("as it is")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_the_environment_decides_where_it_says_something() -> None:
    assert page_faults("kept", MALLOC_TRIM_THRESHOLD_="131072") > 1000


def test_a_system_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    runpy.run_path(host_memory.__file__)["keep_freed_memory"]()
