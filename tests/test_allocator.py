"""Page faults, as the kernel counts them."""

import os
import resource
import sys

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
