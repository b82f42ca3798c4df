"""Page faults, as the kernel counts them."""

import os
import resource
import sys

import pytest
from processes import run_command

from imgrec.data.allocator import PARAMETERS

BLOCK = 2**26
PAGES = BLOCK // resource.getpagesize()
SECOND_BLOCK = f"""
import ctypes, resource
from imgrec.data.allocator import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc({BLOCK})
    ctypes.memset(block, 1, {BLOCK})
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_second_block(**environment: str) -> int:
    """After a block of this size was used and freed; in a process that nothing was set in before."""
    plain = {name: value for name, value in os.environ.items() if name not in PARAMETERS.values()}
    done = run_command(sys.executable, "-c", SECOND_BLOCK, env=plain | environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again():
    assert faults_of_the_second_block() < PAGES / 10


def test_the_setting_of_the_environment_stands():
    assert faults_of_the_second_block(MALLOC_MMAP_THRESHOLD_="131072") >= PAGES


FLAGS_OF_A_BLOCK = f"""
import ctypes
from imgrec.data.allocator import keep_freed_memory, use_huge_pages
keep_freed_memory()
use_huge_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
middle = libc.malloc({BLOCK}) + {BLOCK} // 2
inside = False
for line in open("/proc/self/smaps"):
    first, _, last = line.split()[0].partition("-")
    if last:
        inside = int(first, 16) <= middle < int(last, 16)
    elif inside and line.startswith("VmFlags:"):
        print(line)
"""


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="this kernel has no huge pages")
def test_memory_comes_in_huge_pages():
    done = run_command(sys.executable, "-c", FLAGS_OF_A_BLOCK)
    assert "hg" in done.stdout.split(), done.stderr
