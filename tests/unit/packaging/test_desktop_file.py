"""The desktop file starts the program beside it, wherever the folder lies."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(os.name == "nt", reason="Linux desktops")
def test_the_desktop_file_starts_the_program_in_its_own_folder(tmp_path):
    """Unquoted as the Desktop Entry Specification says: the escapes of a string, then those of a quoted argument."""
    text = (ROOT / "packaging" / "sigma.desktop").read_text()
    line = re.search(r"^Exec=(.*)$", text, re.MULTILINE)
    assert line is not None
    folder = tmp_path / "a folder with é"
    folder.mkdir()
    (folder / "sigma").write_text('#!/bin/sh\necho "$0 $SIGMA_HOLD_WINDOW"\n')
    (folder / "sigma").chmod(0o755)
    words = [word.replace(r"\$", "$") for word in shlex.split(line[1].replace(r"\\", "\\"))]
    command = [str(folder / "sigma.desktop") if word == "%k" else word for word in words]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == f"{folder / 'sigma'} 1", done.stderr
