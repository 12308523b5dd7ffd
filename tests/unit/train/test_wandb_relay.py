import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from sigma.train.wandb_relay import new_rows, numbers

ROOT = Path(__file__).resolve().parents[3]

RECORDING_WANDB = """
import json, pathlib
class Run:
    def __init__(self, folder): self.out = pathlib.Path(folder) / "logged.jsonl"
    def log(self, values): self.out.open("a").write(json.dumps(values) + "\\n")
    def finish(self): self.log({"finished": True})
def init(*, dir, mode, **kw):
    assert mode == "offline"
    return Run(dir)
"""


def relay(run_dir: Path, wandb_source: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the relay for a parent that has already ended, against a wandb module with the given source."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(textwrap.dedent(wandb_source))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "lib"), str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", "sigma.train.wandb_relay", str(run_dir), "offline", str(ended.pid)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_every_complete_row_arrives_once(tmp_path):
    rows = [{"kind": "train", "step": s, "loss": 5.0 - s} for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert relay(tmp_path, RECORDING_WANDB, tmp_path).returncode == 0
    logged = [json.loads(line) for line in (tmp_path / "logged.jsonl").read_text().splitlines()]
    assert [r["train/loss"] for r in logged[:-1]] == [5.0, 4.0, 3.0]
    assert logged[-1] == {"finished": True}


def test_a_wandb_that_fails_ends_only_the_relay(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    result = relay(tmp_path, "def init(**kw): raise RuntimeError('no network')", tmp_path)
    assert result.returncode == 1
    assert "no network" in result.stderr


def test_a_line_being_written_waits_for_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    rows, offset = new_rows(path, 0)
    assert rows == [{"step": 1}]
    with path.open("a") as file:
        file.write('p": 2}\n')
    assert new_rows(path, offset)[0] == [{"step": 2}]


def test_only_numbers_are_plotted():
    assert numbers({"kind": "eval", "step": 3, "val_bpb": 2.5, "note": "x", "flag": True}) == {"eval/val_bpb": 2.5}
