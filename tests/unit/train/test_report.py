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


def test_the_report_is_written_beside_the_metrics(run_dir):
    assert write_report(run_dir).read_text(encoding="utf-8").startswith("<!doctype html>")
