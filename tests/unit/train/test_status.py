"""status.json is whole at every moment and says where the run stands."""

import os
from pathlib import Path

from sigma.core.strict_json import load_file
from sigma.train.status import write_status


def test_status_is_replaced_whole(tmp_path: Path) -> None:
    for step in (10, 20):
        write_status(tmp_path, "running", step, 30, {"loss_ema": 1.5, "val_bpb": None})
    status = load_file(tmp_path / "status.json")
    assert status.pop("updated") > 1e9
    assert status == {"state": "running", "step": 20, "steps": 30, "pid": os.getpid(), "loss_ema": 1.5, "val_bpb": None}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
