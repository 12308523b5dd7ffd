import json

from sigma.train.history import read_history


def write(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


def test_the_newest_segment_of_a_step_wins(tmp_path):
    rows = [
        {"kind": "train", "step": 1, "seg": 0, "loss": 5.0},
        {"kind": "train", "step": 2, "seg": 0, "loss": 4.0},
        {"kind": "train", "step": 2, "seg": 1, "loss": 3.5},
    ]
    assert read_history(write(tmp_path / "m.jsonl", rows)).series("train", "loss") == [(1.0, 5.0), (2.0, 3.5)]


def test_a_torn_last_line_is_counted_and_nothing_else_is_lost(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"kind": "train", "step": 1, "loss": 5.0}], tail='{"kind": "tra')
    history = read_history(path)
    assert history.torn == 1
    assert len(history.rows) == 1


def test_events_of_every_segment_are_kept(tmp_path):
    rows = [{"kind": "event", "step": 2, "seg": seg, "event": "resumed"} for seg in (1, 2)]
    assert len(read_history(write(tmp_path / "m.jsonl", rows)).of_kind("event")) == 2


def test_a_missing_value_is_left_out_of_a_series(tmp_path):
    rows = [{"kind": "train", "step": 1, "loss": None}, {"kind": "train", "step": 2, "loss": 1.5}]
    assert read_history(write(tmp_path / "m.jsonl", rows)).series("train", "loss") == [(2.0, 1.5)]


def test_no_file_is_an_empty_history(tmp_path):
    assert read_history(tmp_path / "none.jsonl").rows == []


def test_a_start_supersedes_what_came_after_the_step_it_continues_from(tmp_path):
    def train(step, seg):
        return {"kind": "train", "step": step, "seg": seg, "loss": float(seg)}

    rows = [{"kind": "startup", "step": 0, "seg": 0}, *(train(step, 0) for step in (1, 2, 3))]
    rows += [{"kind": "event", "step": 3, "seg": 0, "event": "x"}]
    resumed = [*rows, {"kind": "startup", "step": 2, "seg": 1, "checkpoint_resume_step": 2}]
    assert read_history(write(tmp_path / "a.jsonl", resumed)).series("train", "loss") == [(1.0, 0.0), (2.0, 0.0)]
    anew = [*rows, {"kind": "startup", "step": 0, "seg": 1, "checkpoint_resume_step": None}, train(1, 1)]
    history = read_history(write(tmp_path / "b.jsonl", anew))
    assert history.series("train", "loss") == [(1.0, 1.0)]
    assert len(history.of_kind("event")) == 1
