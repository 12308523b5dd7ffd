import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sigma.core import files, strict_json
from sigma.train import crash, crash_facts
from sigma.train.ballast import DiskFullError
from sigma.train.crash import CrashContext, kind_of, last_metric_rows, write_crash_report
from sigma.train.crash_hooks import crash_hooks

PREDECESSOR_FIELDS = {
    "time",
    "step",
    "tokens_seen",
    "device",
    "exception_type",
    "exception",
    "traceback",
    "last_metrics",
    "feature_calls",
    "algorithmic_features",
    "optimizer",
}
NEW_FIELDS = {"kind", "config", "argv", "versions", "rng_digest", "last_batch_records", "memory", "disk", "last_rows"}


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def read(path):
    return strict_json.loads(path.read_bytes())


def full_context():
    return CrashContext(
        step=12,
        tokens_seen=3400,
        device="cpu",
        last_metrics={"loss": float("nan"), "weird": {1, 2}},
        feature_calls={"feature_instant_calls": 3},
        algorithmic_features={"instant": True},
        optimizer="muon",
        config={"run": {"seed": 1, "output_dir": Path("runs/x")}},
        argv=["train", "--hf-token", "abc123", "--steps", "5"],
        last_batch_records=[("corpus", "doc-1"), ("arithmetic", "7")],
    )


def test_a_report_holds_every_field_and_is_strict_json_whatever_the_values_are(tmp_path):
    path = write_crash_report(raised(RuntimeError("boom")), run_dir=tmp_path, kind="step", context=full_context())
    assert path.parent == tmp_path / "errors"
    assert path.name.startswith("crash_")
    report = read(path)
    assert report.keys() >= PREDECESSOR_FIELDS | NEW_FIELDS
    assert report["kind"] == "step"
    assert report["exception_type"] == "RuntimeError"
    assert report["exception"] == "boom"
    assert "test_crash.py" in report["traceback"]
    assert report["step"] == 12
    assert report["last_metrics"] == {"loss": None, "weird": "{1, 2}"}
    assert report["config"]["run"] == {"seed": 1, "output_dir": str(Path("runs/x"))}
    assert report["last_batch_records"] == [["corpus", "doc-1"], ["arithmetic", "7"]]
    assert report["versions"]["torch"] == torch.__version__
    assert report["memory"]["process_rss"] > 0
    assert report["disk"]["free"] > 0


def test_a_report_without_any_knowledge_has_the_same_fields(tmp_path):
    report = read(write_crash_report(None, run_dir=tmp_path, kind="signal", signal_name="SIGTERM"))
    assert report.keys() >= PREDECESSOR_FIELDS | NEW_FIELDS
    assert report["exception_type"] == "SIGTERM"
    assert report["traceback"] is None


def test_secrets_are_redacted_wherever_they_are(tmp_path, monkeypatch):
    secret = "hf_AbCdEfGhIjKlMnOpQr"
    monkeypatch.setenv("SIGMA_API_KEY", "visible-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-on-the-list")
    context = full_context()
    context.config = {"url": "https://user:pa55word@host/", "nested": [{"password": "pa55word"}]}
    context.last_metrics = {"note": secret}
    error = raised(RuntimeError(f"401 for token={secret} Authorization: Bearer abcdef0123"))
    text = write_crash_report(error, run_dir=tmp_path, kind="step", context=context).read_text()
    for hidden in (secret, "visible-secret", "not-on-the-list", "pa55word", "abc123", "abcdef0123"):
        assert hidden not in text
    assert "401 for token=[redacted]" in text


def test_causes_and_notes_of_the_exception_are_in_the_traceback(tmp_path):
    error = raised(RuntimeError("outer"))
    error.__cause__ = ValueError("inner")
    error.add_note("a note")
    report = read(write_crash_report(error, run_dir=tmp_path, kind="step"))
    assert "inner" in report["traceback"]
    assert "a note" in report["traceback"]


def test_two_reports_in_one_second_do_not_overwrite_each_other(tmp_path):
    paths = {write_crash_report(RuntimeError("x"), run_dir=tmp_path, kind="step") for _ in range(3)}
    assert len(paths) == 3
    assert sorted(p.name for p in (tmp_path / "errors").iterdir()) == sorted(p.name for p in paths)


def test_a_folder_that_cannot_be_written_hands_over_to_the_next(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    second = tmp_path / "second"
    path = write_crash_report(RuntimeError("x"), run_dir=blocked, kind="step", other_dirs=[blocked / "a", second])
    assert path.parent == second


def test_the_last_resort_is_the_temporary_folder_and_its_failure_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path))
    assert write_crash_report(RuntimeError("x"), run_dir=None, kind="startup").parent == tmp_path / "sigma-errors"

    def refuse(*_):
        raise PermissionError("read only")

    monkeypatch.setattr(files.os, "open", refuse)
    with pytest.raises(PermissionError):
        write_crash_report(RuntimeError("x"), run_dir=None, kind="startup")


def test_a_section_that_fails_says_so_and_the_rest_is_written(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(crash, "memory", broken)
    report = read(write_crash_report(RuntimeError("x"), run_dir=tmp_path, kind="step"))
    assert "illegal memory access" in report["memory"]["not_available"]
    assert report["disk"]["free"] > 0


@pytest.mark.parametrize(
    "error, kind",
    [
        pytest.param(MemoryError(), "out_of_memory", id="python"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", id="cuda"),
        pytest.param(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out_of_memory", id="cpu"),
        pytest.param(OSError(28, "No space left on device"), "disk_full", id="enospc"),
        pytest.param(DiskFullError("no room"), "disk_full", id="preflight"),
        pytest.param(OSError(5, "I/O error"), "step", id="other-os-error"),
        pytest.param(RuntimeError("shape mismatch"), "step", id="other"),
    ],
)
def test_the_kind_is_what_the_exception_tells_also_through_a_cause(error, kind):
    assert kind_of(error, "step") == kind
    wrapped = RuntimeError("the data thread failed")
    wrapped.__cause__ = error
    assert kind_of(wrapped, "step") == kind


def test_the_last_fifty_rows_are_read_from_the_metrics_file_and_torn_lines_left_out(tmp_path):
    lines = [json.dumps({"step": i}) for i in range(70)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:-1], "{torn", lines[-1]]) + "\n")
    rows = last_metric_rows(tmp_path / "metrics.jsonl")
    assert rows == [{"step": i} for i in (*range(21, 69), 69)]
    report = read(write_crash_report(RuntimeError("x"), run_dir=tmp_path, kind="step"))
    assert report["last_rows"] == rows
    assert last_metric_rows(tmp_path / "none.jsonl") == []


def test_the_digest_of_the_generators_follows_their_state():
    before = crash_facts.rng_digest()
    assert crash_facts.rng_digest() == before
    state = random.getstate()
    random.random()
    torch_state = torch.get_rng_state()
    torch.rand(1)
    after = crash_facts.rng_digest()
    random.setstate(state)
    torch.set_rng_state(torch_state)
    assert {name for name in before if before[name] != after[name]} == {"python", "torch"}
    assert crash_facts.rng_digest() == before


def test_a_report_needs_no_torch_and_does_not_load_it(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from sigma.train.crash import write_crash_report\nimport sigma.train.crash_hooks\n"
        "path = write_crash_report(RuntimeError('x'), run_dir=Path(sys.argv[1]), kind='startup')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\nprint(path)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read(Path(done.stdout.strip()))["versions"]["torch"] == torch.__version__


def test_an_exception_in_a_thread_is_reported_and_the_earlier_hook_still_runs(monkeypatch):
    seen, earlier = [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: earlier.append(args.exc_type))

    def work():
        raise ValueError("lost")

    with crash_hooks(lambda error, kind, thread: seen.append((str(error), kind, thread))):
        thread = threading.Thread(target=work, name="reader")
        thread.start()
        thread.join()
    assert seen == [("lost", "data_thread", "reader")]
    assert earlier == [ValueError]


def test_an_exception_that_leaves_the_program_is_reported_ctrl_c_is_not_and_hooks_are_restored(monkeypatch):
    seen, earlier = [], []
    monkeypatch.setattr(sys, "excepthook", lambda *args: earlier.append(args[0]))
    mine = sys.excepthook
    with crash_hooks(lambda error, kind, thread: seen.append((str(error), kind, thread))):
        for error in (RuntimeError("late"), KeyboardInterrupt()):
            sys.excepthook(type(error), error, None)
    assert seen == [("late", "startup", None)]
    assert earlier == [RuntimeError, KeyboardInterrupt]
    assert sys.excepthook is mine


def test_a_kill_while_the_report_is_written_leaves_no_half_report(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_crash_report(RuntimeError("x"), run_dir=tmp_path, kind="step")
    assert os.listdir(tmp_path / "errors") == []
