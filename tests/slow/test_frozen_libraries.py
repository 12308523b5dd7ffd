"""Libraries whose files or modules PyInstaller does not find by itself work in a frozen program, with our hooks.

Each is frozen only where it is installed; the program needs no other.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPTS = {
    "fastwarc": """
import io
from fastwarc.warc import ArchiveIterator
lines = "WARC/1.0", "WARC-Type: response", "WARC-Record-ID: <urn:uuid:1>", "Content-Length: 5", "", "hello", "", ""
record = "\\r\\n".join(lines).encode()
print([one.reader.read() for one in ArchiveIterator(io.BytesIO(record))])
""",
    "py3langid": """
import py3langid
print(py3langid.classify("Ceci est bien un texte en langue française.")[0])
""",
    "pyarrow": """
import io
import pyarrow as pa, pyarrow.compute, pyarrow.dataset, pyarrow.parquet as pq
file = io.BytesIO()
pq.write_table(pa.table({"a": [1, 2]}), file, compression="zstd")
print(pq.read_table(file).to_pydict())
""",
    "warcio": """
import io
from warcio.archiveiterator import ArchiveIterator
lines = "WARC/1.0", "WARC-Type: metadata", "WARC-Record-ID: <urn:uuid:1>", "Content-Length: 5", "", "hello", "", ""
record = "\\r\\n".join(lines).encode()
print([one.rec_type for one in ArchiveIterator(io.BytesIO(record))])
""",
    "zstandard": """
import zstandard
print(zstandard.decompress(zstandard.compress(b"abc" * 9)))
""",
}
EXPECTED = {
    "fastwarc": "[b'hello']",
    "py3langid": "fr",
    "pyarrow": "{'a': [1, 2]}",
    "warcio": "['metadata']",
    "zstandard": "b'" + "abc" * 9 + "'",
}
SPEC = """
import sys
sys.path.insert(0, {packaging!r})
from bundle import plan
excludes = ["tkinter", "torch", "scipy", "pandas", "transformers", "matplotlib"]
a = Analysis([{script!r}], hiddenimports=[{library!r}], hookspath=[{hooks!r}], excludes=excludes)
kept = lambda entries: [entry for entry in entries if not plan.is_unused_file(entry[0])]
COLLECT(EXE(PYZ(a.pure), a.scripts, exclude_binaries=True, name="app"), kept(a.binaries), kept(a.datas), name="app")
"""


@pytest.mark.parametrize("library", SCRIPTS)
def test_the_library_works_frozen(library: str, tmp_path: Path):
    pytest.importorskip("PyInstaller")  # the extra `build`, which `make test-slow` does not install
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")  # an optional one, or not made for this system
    script, packaging = tmp_path / "app.py", ROOT / "packaging"
    script.write_text(SCRIPTS[library], encoding="utf-8")
    spec = SPEC.format(packaging=str(packaging), script=str(script), hooks=str(packaging / "hooks"), library=library)
    (tmp_path / "app.spec").write_text(spec, encoding="utf-8")
    own = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(tmp_path / "config")}
    command = [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", "app.spec"]
    made = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    done = subprocess.run([tmp_path / "dist" / "app" / "app"], env={"PATH": ""}, capture_output=True, text=True)
    assert done.stdout.strip() == EXPECTED[library], done.stderr[-2000:]
