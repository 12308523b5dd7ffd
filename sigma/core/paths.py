"""Folders of the program on this machine: portable first, then the platform's own places."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from sigma.core.version import VERSION

BUILD_FACTS = "build.json"
"""In the inner folder of the executable: what was built of what."""
_PROTECTED = ("program files", "program files (x86)", "windows", "onedrive", "dropbox", "google drive")


def is_frozen() -> bool:
    """Whether this is the executable, not Python from source."""
    return bool(getattr(sys, "frozen", False))


def appimage_dir() -> Path | None:
    """Folder of the AppImage file that this process runs from; None outside one.

    The variables are also inherited from an AppImage terminal, so they count only when our executable is inside.
    """
    mounted, image = os.environ.get("APPDIR"), os.environ.get("APPIMAGE")
    if not (is_frozen() and mounted and image) or not Path(sys.executable).is_relative_to(mounted):
        return None
    return Path(os.path.abspath(image)).parent


def program_dir() -> Path | None:
    """Folder of the executable (of the AppImage file, if it is one); None when the program runs from source."""
    if not is_frozen():
        return None
    return appimage_dir() or Path(os.path.abspath(sys.executable)).parent


def is_writable(folder: Path) -> bool:
    """Whether a file can really be created in `folder` (permission bits lie on network shares and for root)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def is_portable(folder: Path) -> bool:
    """Whether the program may keep its data in `folder`: writable, not a system folder, not synced to a cloud."""
    names = (part.lower() for part in folder.parts)
    return not any(name.startswith(_PROTECTED) for name in names) and is_writable(folder)


def data_dir() -> Path:
    """Folder that a relative default (`runs/sigma_main`) starts from.

    From source the working directory; frozen the folder of the executable, or the user's data folder when that one
    must not be written to.
    """
    folder = program_dir()
    if folder is None:
        return Path.cwd()
    return folder if is_portable(folder) else _platform_dir("user_data_dir")


def state_dir() -> Path:
    """Folder of log files and of crash reports that have no better place. It need not exist yet."""
    return _platform_dir("user_state_dir")


def cache_dir() -> Path:
    """Folder of everything that can be deleted at any time, one per build of the program."""
    return _platform_dir("user_cache_dir") / build_id()


def build_id() -> str:
    """The version; of the executable with 12 digits of a hash over the facts of its build, the sources among them.

    Two builds of one version may hold another torch or Triton: what one compiled is not the other's.
    """
    try:
        facts = (Path(getattr(sys, "_MEIPASS", os.devnull)) / BUILD_FACTS).read_bytes() if is_frozen() else b""
    except OSError:  # a folder that no build finished
        facts = b""
    return f"{VERSION}-{hashlib.sha256(facts).hexdigest()[:12]}" if facts else VERSION


def _platform_dir(kind: str) -> Path:
    import platformdirs  # here, because `sigma --help` does not need it

    name = "Sigma" if sys.platform in ("win32", "darwin") else "sigma"
    return Path(getattr(platformdirs, kind)(name, appauthor=False))
