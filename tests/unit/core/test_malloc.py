import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FAULTS_OF_A_SECOND_BLOCK = """
import ctypes, resource, sys
sys.path.insert(0, {root!r})
from sigma.core.malloc import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    source = FAULTS_OF_A_SECOND_BLOCK.format(root=str(ROOT), keep=keep)
    return int(subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_freed_block_is_used_again_without_page_faults():
    assert faults(keep=True) < 100
    assert faults(keep=False) > 10 * max(1, faults(keep=True))
