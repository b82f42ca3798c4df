"""Page faults, as the kernel counts them."""

import ctypes
import resource

import pytest
from processes import run_ranks

from imgrec.data.allocator import PARAMETERS, keep_freed_memory

BLOCK = 2**26
PAGES = BLOCK // resource.getpagesize()


def faults_of_the_second_block(rank: int) -> int:
    """After a block of this size was used and freed."""
    keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(BLOCK)
        ctypes.memset(block, 1, BLOCK)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture(autouse=True)
def no_parameters(monkeypatch):
    for name in PARAMETERS.values():
        monkeypatch.delenv(name, raising=False)


def test_freed_memory_is_used_again():
    (faults,) = run_ranks(1, faults_of_the_second_block)
    assert faults < PAGES / 10


def test_the_setting_of_the_environment_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    (faults,) = run_ranks(1, faults_of_the_second_block)
    assert faults >= PAGES
