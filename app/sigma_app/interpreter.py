"""The executable as a Python interpreter: libraries start `sys.executable -c CODE`, `-m MODULE` or `FILE.py`.

In a frozen program `sys.executable` is the program. Without this, torch's compile workers, wandb or a
multiprocessing helper would start a second training.
"""

from __future__ import annotations

import os
import runpy
import sys

from sigma.core.errors import SigmaError

DEPTH_VARIABLE = "SIGMA_LAUNCH_DEPTH"
MAX_DEPTH = 4
_PLAIN_SWITCHES = {"-u", "-B", "-I", "-S", "-s", "-E", "-O", "-OO", "-q"}


class LaunchDepthError(SigmaError):
    """The program keeps starting itself; each of them would start the next."""


def count_launch() -> None:
    """Count this process in the environment that its children inherit. Raises LaunchDepthError beyond MAX_DEPTH."""
    text = os.environ.get(DEPTH_VARIABLE, "0")
    depth = (int(text) if text.isdecimal() else 0) + 1
    if depth > MAX_DEPTH:
        raise LaunchDepthError(f"the program started itself {depth} times inside itself; stopped ({sys.argv[1:4]})")
    os.environ[DEPTH_VARIABLE] = str(depth)


def emulate_python() -> bool:
    """Do what Python would do for `sys.argv`, if it is an interpreter's command line; False when it is ours.

    Raises whatever the code raises, SystemExit included.
    """
    words = sys.argv[1:]
    while words and (words[0] in _PLAIN_SWITCHES or (len(words[0]) > 2 and words[0][:2] in ("-X", "-W"))):
        words.pop(0)
    if not words:
        return False
    if words[0] == "--multiprocessing-fork":
        _run_spawned_child()
    if words[0] == "-c" and len(words) > 1:
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif words[0].startswith("-m") and not words[0].startswith("--") and len("".join(words[:2])) > 2:
        module = words[0][2:] or words.pop(1)
        sys.argv = [module, *words[1:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif words[0].endswith(".py"):
        sys.argv = words
        _run_file(words[0])
    else:
        return False
    return True


def _run_spawned_child() -> None:
    from multiprocessing import spawn

    sys.argv = [sys.argv[0], *sys.argv[sys.argv.index("--multiprocessing-fork") :]]
    spawn.freeze_support()  # serves as a child and exits
    raise LaunchDepthError("a multiprocessing child was started without its arguments")


def _run_file(path: str) -> None:
    """Run a script; one inside the bundle lies in the archive, so it is run as the module it is."""
    bundle = os.path.normpath(getattr(sys, "_MEIPASS", os.devnull)) + os.sep
    inside = os.path.normpath(path)
    if not inside.startswith(bundle):
        runpy.run_path(path, run_name="__main__")
        return
    module = inside[len(bundle) : -len(".py")].replace(os.sep, ".").removesuffix(".__main__")
    runpy.run_module(module, run_name="__main__", alter_sys=False)
