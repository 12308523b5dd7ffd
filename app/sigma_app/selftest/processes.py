"""Does the program start itself correctly: as an interpreter, as a worker, from anywhere, with nothing on PATH?"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from sigma_app.selftest.gate import Gate, NotHereError, child, expect, only_frozen, output_of

ISOLATION = "import sys, json; print(json.dumps([sys.flags.isolated, sys.path, 'torch' in sys.modules]))"


def code() -> str:
    """`-c CODE` runs, with its arguments and its exit code."""
    text = output_of(child(["-c", "import sys; print(__name__, sys.argv)", "a", "-b"]))
    expect(text == "__main__ ['-c', 'a', '-b']", f"it printed {text!r}")
    ended = child(["-c", "raise SystemExit(18)"]).returncode
    expect(ended == 18, f"exit code {ended} instead of 18")
    return "arguments and exit code"


def module() -> str:
    """`-m MODULE` runs a module of the standard library and one of ours."""
    text = output_of(child(["-m", "platform"]))
    expect(text, "it printed nothing")
    return text


def script() -> str:
    """`FILE.py` runs a script from outside the bundle that imports a library of the bundle."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text("import sys, safetensors; print('script', sys.argv[1:])", encoding="utf-8")
        text = output_of(child([str(path), "x"]))
    expect(text == "script ['x']", f"it printed {text!r}")
    return "with a library of the bundle"


def square(number: int) -> int:
    """What a spawned worker computes."""
    return number * number


def spawn() -> str:
    """multiprocessing with the start method of Windows, and a torch DataLoader with spawned workers."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        expect(pool.map(square, [3, 4]) == [9, 16], "a wrong result")
    loader = import_module("torch.utils.data").DataLoader(range(8), num_workers=1, multiprocessing_context="spawn")
    total = sum(int(batch) for batch in loader)
    expect(total == 28, f"the DataLoader gave {total} instead of 28")
    return "pool and DataLoader"


def compile_workers() -> str:
    """torch's compile workers are started as a script inside the bundle, and answer."""
    if sys.platform == "win32":
        raise NotHereError("torch compiles in one process on Windows")
    pool = import_module("torch._inductor.compile_worker.subproc_pool").SubprocPool(1)
    try:
        expect(pool.submit(square, 5).result(timeout=120) == 25, "a wrong result")
    finally:
        pool.shutdown()
    return "one job, right answer"


def worker_program() -> str:
    """The second executable runs a script in isolation and refuses to be the program."""
    only_frozen()
    program = str(Path(sys.executable).with_stem("sigma-worker"))
    text = output_of(child(["-c", ISOLATION], program=program, PYTHONPATH=tempfile.gettempdir()))
    isolated, found, heavy = import_module("json").loads(text)
    expect(isolated == 1 and not heavy, f"not isolated: {text}")
    expect(all(Path(one).is_relative_to(Path(sys.executable).parent) for one in found), f"sys.path has {found}")
    refused = child(["train"], program=program)
    expect(refused.returncode == 2, f"`train` ended with {refused.returncode} instead of 2")
    return "isolated, refuses other words"


def anywhere() -> str:
    """Through a link with a space and an accent in its name, from another folder, with an empty PATH."""
    only_frozen()
    code = "import os, numpy; print(numpy.arange(3).sum(), os.environ.get('PATH', ''))"
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "lié à sigma" / Path(sys.executable).name
        link.parent.mkdir()
        with suppress(OSError):  # a right of its own on Windows
            link.symlink_to(sys.executable)
        linked = link.is_file()
        text = output_of(child(["-c", code], program=str(link) if linked else sys.executable, PATH=""))
    expect(text == "3", f"it printed {text!r}")
    return f"{'link' if linked else 'no links here'}, other folder, empty PATH"


GATES = [
    Gate("-c CODE", code),
    Gate("-m MODULE", module),
    Gate("FILE.py", script),
    Gate("spawned workers", spawn),
    Gate("compile workers", compile_workers),
    Gate("sigma-worker", worker_program),
    Gate("started from anywhere", anywhere),
]
