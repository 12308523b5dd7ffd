"""Every way to start the program that docs/start-situations.md lists does what the table says."""

import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sigma.core.lock import LOCK_NAME
from tests.e2e.conftest import ROOT, TINY
from tests.e2e.frozen_program import FOREVER, Frozen, mounted, reach_first_step, tiny_flags

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, mounts, links")

NO_GPU = """
import torch, sigma_app.nvidia as nvidia
torch.cuda.is_available = lambda: False
nvidia._LIBRARY = {library!r}
torch.version.cuda = {cuda!r}
"""
NO_NETWORK = """
import ctypes, socket
ctypes.CDLL(None).unshare(0x40000000)  # no interfaces from here on, where the machine lets us
def refuse(*_, **__):
    open({calls!r}, "a").write("x")
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
"""
OLD_DRIVER = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "535.161.08", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { return 0; }
int nvmlDeviceGetName(void *d, char *text, unsigned size) { strncpy(text, "NVIDIA L4", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 24ull << 30; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
"""

CLOSED = """
import os, sys
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None  # as the interpreter does at its start
"""
STDOUT_FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
PIPE_GONE = "import os; ends = os.pipe(); os.close(ends[0]); os.dup2(ends[1], 1)"


@pytest.mark.parametrize(
    "name", ["sigma", "SIGMA é à ü 模型", "x" * 200], ids=["plain", "spaces-and-accents", "200-characters"]
)
def test_any_folder_and_any_working_directory(program, tmp_path, name):
    frozen = Frozen(program, tmp_path / name, TINY + "--steps 77\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train_sigma_args.txt").write_text("--not-this-one")
    output = reach_first_step(frozen.start(cwd=elsewhere))
    assert f"args file   {frozen.args_file}\n" in output
    assert f"run folder  {frozen.folder / 'runs' / 'sigma_main'}\n" in output
    assert "starts at step 1 of 77" in output
    assert {path.name for path in frozen.folder.iterdir()} == {
        "sigma",
        "train_sigma_args.txt",
        "data",
        "errors",
        "runs",
    }
    assert [path.name for path in elsewhere.iterdir()] == ["train_sigma_args.txt"]


def test_through_a_symlink_the_file_beside_the_link_wins_and_the_run_stays_with_the_program(program, tmp_path):
    frozen = Frozen(program, tmp_path / "sigma", TINY + "--steps 77\n")
    links = tmp_path / "links"
    links.mkdir()
    (links / "sigma").symlink_to(frozen.executable)
    assert "starts at step 1 of 77" in reach_first_step(frozen.start(started_as=links / "sigma"))
    assert [path.name for path in links.iterdir()] == ["sigma"]
    (links / "train_sigma_args.txt").write_text(TINY + "--steps 88\n")
    output = reach_first_step(frozen.start("--no-resume", started_as=links / "sigma"))
    assert f"args file   {links / 'train_sigma_args.txt'}\n" in output
    assert f"run folder  {frozen.folder / 'runs' / 'sigma_main'}\n" in output


def test_as_an_appimage_everything_is_beside_the_image(program, tmp_path):
    frozen = Frozen(program, tmp_path / ".mount_sigma", None)
    image = tmp_path / "apps" / "Sigma.AppImage"
    image.parent.mkdir()
    (image.parent / "train_sigma_args.txt").write_text(TINY + "--steps 77\n")
    output = reach_first_step(frozen.start(APPIMAGE=str(image), APPDIR=str(frozen.folder)))
    assert f"run folder  {image.parent / 'runs' / 'sigma_main'}\n" in output
    assert "of 77" in output
    assert [path.name for path in frozen.folder.iterdir()] == ["sigma"]


def test_on_a_read_only_disk_the_template_is_shown_and_the_run_is_in_the_users_folder(program, tmp_path):
    with mounted(tmp_path / "disk") as make_read_only:
        frozen = Frozen(program, tmp_path / "disk" / "sigma", None)
        make_read_only()
        output = reach_first_step(frozen.start(*tiny_flags(), XDG_DATA_HOME=str(tmp_path / "data")))
    assert (
        f"{frozen.folder} cannot be written to (Read-only file system); it would hold:\n# Arguments of SIGMA" in output
    )
    assert "\n# --seed 1337\n" in output
    users = tmp_path / "data" / "sigma"
    assert f"{frozen.folder} is not for writing: data, errors and runs are in {users}" in output
    assert (users / "runs" / "sigma_main" / "metrics.jsonl").exists()
    assert "args file   none" in output


def test_a_read_only_home_costs_the_caches_only(program, tmp_path):
    frozen = Frozen(program, tmp_path / "sigma", TINY + "--steps 77\n")
    no_xdg = "for name in [n for n in os.environ if n.startswith('XDG_')]: del os.environ[name]\n"
    with mounted(tmp_path / "home") as make_read_only:
        make_read_only()
        output = reach_first_step(frozen.start(patch=no_xdg, HOME=str(tmp_path / "home")))
    caches = frozen.folder / "cache"
    assert re.search(rf"warning: caches cannot be kept in .* \(Read-only file system\); they are in {caches}", output)
    assert re.search(r"warning: no log file in .* \(Read-only file system\)", output)
    assert f"log         {frozen.folder / 'logs'}" in output


def test_nothing_but_the_output_folder_needs_to_be_writable(program, tmp_path):
    no_xdg = "for name in [n for n in os.environ if n.startswith('XDG_')]: del os.environ[name]\n"
    with mounted(tmp_path / "disk") as make_read_only:
        frozen = Frozen(program, tmp_path / "disk" / "sigma", TINY + "--steps 77\n")
        make_read_only()
        child = frozen.start(patch=no_xdg, HOME=str(tmp_path / "disk"))
        assert child.wait() == 2
        assert child.last_line().endswith("Read-only file system; give another folder")
        run = ("--output-dir", str(tmp_path / "run"))
        output = reach_first_step(frozen.start(*run, patch=no_xdg, HOME=str(tmp_path / "disk")))
    assert "every start compiles again" in output
    assert "warning: messages are on the screen only" in output


def test_a_missing_args_file_is_written_commented_and_the_defaults_run(program, tmp_path):
    frozen = Frozen(program, tmp_path / "sigma", None)
    output = reach_first_step(frozen.start(*tiny_flags()))
    assert f"wrote a commented one to {frozen.args_file}; using the defaults" in output
    active = [line for line in frozen.args_file.read_text().splitlines() if line and not line.startswith("#")]
    profile = ["--optimizer c3o", "--c3o-credit-enabled", "--data-backend hybrid"]
    assert sorted(active) == sorted(["--device auto", *profile])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_args_file_saved_by_another_editor_is_read(program, tmp_path, encoding):
    frozen = Frozen(program, tmp_path / "sigma", None)
    frozen.args_file.write_text("--seed 7\r\n--output-dir été\r\n", encoding=encoding)
    child = frozen.start("explain-config", "--device", "cpu")
    assert child.wait() == 0
    assert "train_sigma_args.txt:2" in child.output()
    assert str(frozen.folder / "été") in child.output()


def run_on_a_terminal(command, answer, until, environment):
    """Start `command` on a terminal, type `answer` when `until` is shown; what it printed, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd="/", env=environment)
    os.close(theirs)
    text = b""
    while until not in text:
        text += os.read(ours, 4096)
    time.sleep(0.2)
    assert process.poll() is None, "it waits"
    os.write(ours, answer)
    code = process.wait(60)
    os.close(ours)
    return text.decode(), code


def exec_of(desktop_file: Path, text: str) -> list[str]:
    """The command of a desktop entry as the specification unpacks it: string escapes, then quoting, then %k."""
    line = next(line for line in text.splitlines() if line.startswith("Exec="))
    unescaped = line.removeprefix("Exec=").replace("\\\\", "\\")
    words = shlex.split(unescaped.replace("\\$", "\0"))
    return [str(desktop_file) if word == "%k" else word.replace("\0", "$") for word in words]


def test_a_wrong_line_is_shown_and_the_window_of_the_desktop_file_waits_for_enter(program, tmp_path):
    frozen = Frozen(program, tmp_path / "a folder é", "--seed 7\n--stepz 5\n")
    desktop = frozen.folder / "sigma.desktop"
    command = exec_of(desktop, (ROOT / "packaging" / "sigma.desktop").read_text())
    text, code = run_on_a_terminal(command, b"\n", b"Press Enter", program.environment)
    assert code == 2
    assert "sigma: train_sigma_args.txt:2: --stepz: unknown flag; did you mean --steps?" in text


def test_a_second_start_is_refused_at_once_and_told_who_is_first(program, tmp_path):
    first = program.train(tmp_path / "run", *FOREVER)
    first.wait_for(lambda: "step 1/" in first.output())
    command = [sys.executable, "-m", "sigma_app", *TINY.split(), "--output-dir", str(tmp_path / "run")]
    second = program.run_real(command)
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1] == (
        f"sigma: {tmp_path / 'run'} is in use by process {first.pid} on {socket.gethostname()};"
        " stop that one first, or give another --output-dir"
    )
    assert first.alive()
    first.kill()


def test_after_a_kill_the_lock_is_free_and_the_next_start_says_what_happened_and_goes_on(program, tmp_path):
    run_dir = tmp_path / "run"
    first = program.train(run_dir, *FOREVER, "--save-interval", "2")
    first.wait_for(lambda: (run_dir / "checkpoints" / "step-000000002" / "COMMIT").exists())
    first.kill()
    assert (run_dir / LOCK_NAME).read_text(), "a dead process leaves its name, not its lock"
    output = reach_after_resume(program.train(run_dir, *FOREVER))
    assert re.search(rf"did not end cleanly: process {first.pid} stopped after step \d+; it was killed", output)
    assert re.search(rf"crash report: {run_dir}/errors/crash_.*\.json", output)
    assert re.search(r"continues after step \d+ of 100000", output)


def reach_after_resume(child):
    child.wait_for(lambda: "continues after" in child.output())
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    return child.output()


def test_a_disk_that_is_full_at_the_start_is_named(program, tmp_path):
    with mounted(tmp_path / "disk", "1m"):
        with open(tmp_path / "disk" / "other", "wb", buffering=0) as other:
            while other.write(bytes(4096)) == 4096:
                if os.statvfs(other.fileno()).f_bavail == 0:
                    break
        child = program.train(tmp_path / "disk" / "run", "--steps", "9")
        assert child.wait() == 1
        assert "No space left on device" in child.output()
        report = Path(child.last_line().removeprefix("crash report: "))
        assert report.exists()
        assert '"disk_full"' in report.read_text()


def test_without_a_gpu_it_says_so_and_trains_the_demonstration(program, tmp_path):
    flags = [flag for flag in tiny_flags("--output-dir", str(tmp_path / "run")) if flag not in ("--device", "cpu")]
    child = program.start(*flags, patch=NO_GPU.format(library="libnone.so", cuda="13.0"))
    output = reach_first_step(child)
    assert "GPU         none found: no NVIDIA driver is installed" in output
    assert "no GPU in use: this trains a small demonstration on the CPU" in output
    assert "warning: the GPU" not in output


def test_a_demanded_gpu_that_is_missing_is_exit_3_with_the_reason(program, tmp_path):
    argv = ("--require-cuda", "--output-dir", str(tmp_path / "run"))
    child = program.start(*argv, patch=NO_GPU.format(library="libnone.so", cuda="13.0"))
    assert child.wait() == 3
    assert child.last_line().startswith("sigma: --require-cuda: no usable NVIDIA GPU")
    assert child.last_line().endswith("(no NVIDIA driver is installed)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("demanded, code", [(True, 3), (False, 130)], ids=["required", "auto"])
def test_an_old_driver_is_named_with_the_version_that_is_needed(program, tmp_path, demanded, code):
    (tmp_path / "nvml.c").write_text(OLD_DRIVER)
    build = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "nvml.so"), str(tmp_path / "nvml.c")]
    if subprocess.run(["sh", "-c", shlex.join(build)], capture_output=True).returncode:
        pytest.skip("needs a C compiler")
    flags = [flag for flag in tiny_flags("--output-dir", str(tmp_path / "run")) if flag not in ("--device", "cpu")]
    patch = NO_GPU.format(library=str(tmp_path / "nvml.so"), cuda="13.0")
    child = program.start(*flags, *(["--require-cuda"] if demanded else []), patch=patch)
    output = (child.wait(), child.output())[1] if demanded else reach_first_step(child)
    assert child.code == code
    assert "GPU         NVIDIA L4, 24 GB, driver 535.161.08 (CUDA 13 needs driver 580 or newer)" in output
    assert "the driver is 535.161.08, and CUDA 13.0 needs 580 or newer: update the driver" in output


def test_a_cache_folder_with_accents_is_used(program, tmp_path):
    frozen = Frozen(program, tmp_path / "sigma")
    cache = tmp_path / "Zoé Müller" / "cache"
    output = reach_first_step(frozen.start(*FOREVER, XDG_CACHE_HOME=str(cache)))
    assert "warning: caches" not in output
    assert [path.name for path in cache.glob("sigma/*/triton")] == ["triton"]


def test_without_a_network_it_trains_and_does_not_ask_for_one(program, tmp_path):
    calls = tmp_path / "calls"
    child = program.train(tmp_path / "run", *FOREVER, patch=NO_NETWORK.format(calls=str(calls)))
    reach_first_step(child)
    assert not calls.exists()


@pytest.mark.parametrize("streams", [CLOSED, STDOUT_FULL, PIPE_GONE], ids=["closed", "full-disk", "pipe-gone"])
def test_a_run_that_can_print_nothing_trains_and_keeps_its_words_in_the_log(program, tmp_path, streams):
    child = program.train(tmp_path / "run", "--steps", "400", patch=streams)
    child.wait_for(lambda: any("loss" in row for row in program.rows(tmp_path / "run")))
    assert all(Path(f"/proc/{child.pid}/fd/{number}").exists() for number in (0, 1, 2))
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/COMMIT"))
    log = max((program.folder / "state").rglob("*.log"), key=lambda path: path.stat().st_mtime)
    assert "report of the stop: " in log.read_text()


def test_a_mistake_is_exit_2_where_stderr_is_closed(program):
    assert program.start("--stepz", "1", patch=CLOSED).wait() == 2
