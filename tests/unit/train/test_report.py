import json

import pytest

from sigma.train.report import ReportError, render, write_report


@pytest.fixture
def run_dir(tmp_path):
    rows = [
        {
            "kind": "train",
            "step": s,
            "seg": 0,
            "loss": 5 - s / 10,
            "train_bpb": 3 - s / 20,
            "phase_data_s": 1.0,
            "phase_forward_s": 3.0,
        }
        for s in range(1, 11)
    ]
    rows.append({"kind": "event", "step": 4, "seg": 0, "event": "micro_batch_halved", "rows": 4})
    rows.append({"kind": "sample", "step": 10, "seg": 0, "file": "samples/step-000000010.txt"})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000000010.txt").write_text("Once <b>upon</b> a time")
    return tmp_path


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"metrics\.jsonl"):
        write_report(tmp_path)


def test_the_page_loads_nothing_from_outside(run_dir):
    page = render(run_dir)
    assert "http" not in page
    assert "src=" not in page
    assert "<script" not in page


def test_samples_are_escaped(run_dir):
    assert "Once &lt;b&gt;upon&lt;/b&gt; a time" in render(run_dir)


def test_events_and_phase_shares_are_shown(run_dir):
    page = render(run_dir)
    assert "micro_batch_halved" in page
    assert "25.0 %" in page


def test_the_verdict_follows_the_numbers(run_dir):
    final = {
        "val_bpb": 2.0,
        "val_bytes": 1000,
        "gzip_bpb": 2.5,
        "xz_bpb": 1.9,
        "bpb_first_16": 2.6,
        "bpb_from_128": 1.8,
    }
    (run_dir / "final.json").write_text(json.dumps(final))
    page = render(run_dir)
    assert page.count("class=yes") == 2  # gzip, context
    assert page.count("class=no>") == 1  # xz
    assert "context helps by 0.800, and 0.1 or more is expected" in page
    (run_dir / "final.json").write_text(json.dumps(final | {"bpb_first_16": 1.89}))
    page = render(run_dir)
    assert page.count("class=no>") == 2, "what the context gives is too little"


def test_the_report_is_written_beside_the_metrics(run_dir):
    assert write_report(run_dir).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_sample_of_an_earlier_run_in_the_folder_is_left_out(run_dir):
    (run_dir / "samples" / "step-000000999.txt").write_text("from before")
    assert "from before" not in render(run_dir)


def test_a_final_validation_from_before_the_run_was_continued_is_not_shown(run_dir):
    (run_dir / "final.json").write_text(json.dumps({"step": 10, "val_bpb": 2.0, "gzip_bpb": 2.5, "val_s": 60.0}))
    status = {"state": "running", "step": 10, "steps": 20, "updated": 0}
    for step, shown in ((10, True), (11, False)):
        (run_dir / "status.json").write_text(json.dumps(status | {"step": step}))
        page = render(run_dir)
        assert ("2.0000" in page) is shown
        assert ("The final validation has not run yet" in page) is not shown
        assert f"State at 1970-01-01 00:00:00 UTC: running, step {step} of 20." in page


def test_the_final_validation_is_part_of_the_time(run_dir):
    (run_dir / "final.json").write_text(json.dumps({"val_bpb": 2.0, "val_s": 60.0}))
    assert "final validation<td class=n>60.0 s<td class=n>60.0 %" in render(run_dir)


@pytest.mark.parametrize("name", ["final.json", "status.json"])
def test_a_damaged_file_does_not_stop_the_report(run_dir, name):
    (run_dir / name).write_text("{")
    assert "Curves" in render(run_dir)


def test_retention_is_no_event_of_the_report(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "event", "step": 5, "event": "checkpoint_deleted", "detail": ""}) + "\n")
    assert "checkpoint_deleted" not in render(run_dir)
