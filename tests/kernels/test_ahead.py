"""Kernels are compiled side by side before they are launched, under the keys of the launch."""

import signal
import subprocess
import threading
import time

import pytest
import torch

pytest.importorskip("triton")

from sigma_kernels import counters, dispatch
from sigma_kernels.ahead import KernelsAhead, why_not_ahead
from tests.kernels.fake_gpu import fake_gpu, forget_kernels

pytestmark = pytest.mark.skipif(dispatch.interpreting(), reason="the interpreter compiles nothing")


@pytest.fixture
def gpu(tmp_path):
    with fake_gpu(tmp_path) as fake:
        yield fake


@pytest.fixture
def ahead(gpu):
    with KernelsAhead() as kernels:
        yield kernels


def norm_both_ways(width: int = 64) -> None:
    from sigma_kernels.rms_norm.kernel import launch_backward, launch_forward

    x = torch.ones(16, width)
    y, _, rstd = launch_forward(x, None, None, 1e-6)
    launch_backward(y, None, x, None, rstd, want_dweight=False)


def entries(folder) -> int:
    return len(list(folder.glob("*/*.cubin")))


def test_what_a_rehearsal_would_launch_is_loaded_and_then_launched_as_it_is(gpu, ahead, tmp_path):
    with ahead.rehearsal():
        norm_both_ways()
        norm_both_ways()
    assert ahead.wait() == 2
    assert gpu.launched == []
    assert sorted(gpu.loaded) == ["_rms_norm_bwd_kernel", "_rms_norm_fwd_kernel"]
    assert entries(tmp_path) == 2
    norm_both_ways()
    assert gpu.launched == ["_rms_norm_fwd_kernel", "_rms_norm_bwd_kernel"]
    assert len(gpu.loaded) == 2, "the step has loaded nothing more"
    assert entries(tmp_path) == 2, "the step has compiled nothing more"


def test_no_two_threads_parse_at_once(gpu, monkeypatch):
    from triton.runtime.jit import JITCallable

    inside, met, begun = threading.Lock(), [], threading.Barrier(2)

    def parse(function):
        met.append(not inside.acquire(blocking=False))
        time.sleep(0.05)
        inside.release()

    monkeypatch.setattr(JITCallable, "parse", parse)
    with KernelsAhead():

        def one() -> None:
            begun.wait(30)
            JITCallable.parse(None)  # type: ignore[arg-type]

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert met == [False, False]
    assert JITCallable.parse is parse


def test_a_kept_cache_holds_what_a_launch_itself_compiled(gpu, ahead, tmp_path):
    norm_both_ways()
    forget_kernels()
    before = entries(tmp_path)
    with ahead.rehearsal():
        norm_both_ways()
    assert ahead.wait() == 2
    assert entries(tmp_path) == before == 2


def test_kernels_are_compiled_in_several_threads_and_none_before_the_rehearsal_ends(gpu, monkeypatch):
    both, ended = threading.Barrier(2, timeout=30), threading.Event()
    load = KernelsAhead._load

    def load_together(self, kernel, data):
        assert ended.is_set()
        both.wait()
        load(self, kernel, data)

    monkeypatch.setattr(KernelsAhead, "_load", load_together)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with KernelsAhead() as ahead:
        with ahead.rehearsal():
            norm_both_ways()
            ended.set()
        assert ahead.wait() == 2


def test_a_stop_gives_up_what_no_thread_has_begun_and_leaves_no_thread(gpu, monkeypatch):
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def load(self, kernel, data):
        loaded.append(kernel)
        begun.set()
        assert go_on.wait(30)

    def stop_in_a_later_rehearsal() -> None:
        with KernelsAhead() as ahead:
            with ahead.rehearsal():
                norm_both_ways()
            assert begun.wait(30)
            threading.Timer(0.2, go_on.set).start()
            with ahead.rehearsal():
                raise KeyboardInterrupt

    monkeypatch.setattr(KernelsAhead, "_load", load)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        stop_in_a_later_rehearsal()
    assert len(loaded) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sigma-kernels")]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are not masked on Windows")
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_to_all_processes_of_the_terminal_does_not_kill_an_assembler(gpu, ahead, monkeypatch, name):
    codes: list[int] = []

    def assemble(self, kernel, data):
        codes.append(subprocess.run(["sh", "-c", f"kill -{name} $$"], close_fds=False, check=False).returncode)

    monkeypatch.setattr(KernelsAhead, "_load", assemble)
    with ahead.rehearsal():
        norm_both_ways()
    ahead.wait()
    assert codes == [0, 0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), "the main thread hears them"


def test_the_first_error_is_raised(gpu, ahead, monkeypatch):
    def fail(*_):
        raise RuntimeError("ptxas: not a GPU")

    gpu.utils.load_binary = fail
    with ahead.rehearsal():
        norm_both_ways()
    with pytest.raises(RuntimeError, match="not a GPU"):
        ahead.wait()


def test_a_rehearsal_that_fails_compiles_nothing_and_launches_work_again(gpu, ahead):

    def rehearse() -> None:
        with ahead.rehearsal():
            norm_both_ways()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rehearse()
    assert ahead.wait() == 0
    norm_both_ways()
    assert len(gpu.launched) == 2


def test_loading_counts_nothing(gpu, ahead):
    with ahead.rehearsal():
        norm_both_ways()
    ahead.wait()
    assert counters.snapshot() == {}


def test_nothing_is_compiled_where_kernels_are_not_used():
    assert why_not_ahead(torch.device("cpu")) is not None
    dispatch.set_backend("reference")
    assert why_not_ahead(torch.device("cpu")) == "the reference was asked for"
