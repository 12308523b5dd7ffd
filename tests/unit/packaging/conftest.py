"""The build's own modules, which lie outside the packages."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "packaging"))
