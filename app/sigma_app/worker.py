"""`sigma-worker`: the bundle's Python for one script, in a process that knows nothing of the program around it.

Runs `-c CODE`, `-m MODULE` or `FILE.py` like `python -I` and refuses everything else: it reads no args file, writes
no log and can start no training. Its archive is the standard library; it starts in a few hundredths of a second.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import NoReturn

from sigma_app.interpreter import LaunchDepthError, count_launch, emulate_python

USAGE = "usage: sigma-worker (-c CODE | -m MODULE | FILE.py) [arguments]"


def start() -> NoReturn:
    """The whole process: run the script, exit with its code; 1 when it is nested too deep, 2 without a script."""
    from sigma_app.frozen import prepare

    prepare()
    multiprocessing.freeze_support()
    try:
        count_launch()
    except LaunchDepthError as error:
        sys.exit(f"sigma-worker: {error}")
    if not emulate_python():
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
