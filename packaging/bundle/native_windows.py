"""The same as `native` for Windows, where triton-windows brings TinyCC along, with the exports it needs.

The compiler itself is collected with triton (packaging/hooks/hook-triton.py).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from bundle import native
from bundle.errors import MissingError

STUB_NAME = "nvcuda.dll"


def carry(folder: Path) -> None:
    """Fill `folder` with the ready-made `cuda_utils`, the stub for the selftest, and Python's headers.

    Raises:
        MissingError: no triton-windows, or a Python without headers (the embeddable one has none).
        BuildError: TinyCC does not take the file.
    """
    headers, triton = native.python_headers(), native.triton_folder()
    tcc = triton / "runtime" / "tcc" / "tcc.exe"
    if not tcc.is_file():
        raise MissingError("this triton has no TinyCC; on Windows install triton-windows in its place")
    selftest = folder / "native" / "selftest"
    selftest.mkdir(parents=True)
    driver = triton / "backends" / "nvidia" / "driver.c"
    build_stub(str(tcc), driver.read_text(encoding="utf-8"), selftest / STUB_NAME)
    extension = folder / "native" / f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
    libraries = ["-lcuda", f"-lpython{sys.version_info.major}{sys.version_info.minor}"]
    flags = ["-O3", "-shared", "-D_Py_USE_GCC_BUILTIN_ATOMICS", "-o", str(extension)]
    includes = native.included([triton / "backends" / "nvidia" / "include", headers])
    native.run([str(tcc), str(driver), *flags, *libraries, *includes])
    native.write_manifest(folder / "native" / "manifest.json", driver, extension)
    shutil.copytree(headers, folder / os.path.relpath(headers, sys.base_prefix))


def build_stub(tcc: str, driver_source: str, stub: Path) -> None:
    """An nvcuda.dll with every function that `driver.c` names, each of which fails."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", driver_source)))
    source = stub.with_suffix(".c")
    source.write_text("".join(f"__declspec(dllexport) int {n}(void) {{ return 999; }}\n" for n in names), "utf-8")
    native.run([tcc, str(source), "-shared", "-o", str(stub)])
    source.unlink()
    stub.with_suffix(".def").unlink(missing_ok=True)  # TinyCC writes one beside each library
