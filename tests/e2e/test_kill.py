"""SIGKILL at any moment and started again, the run ends in the same bits as one that nobody touched.

Twelve kills, chained: at least six leave a half-written checkpoint behind, three come within a second of a resume, the
rest at random moments. What is compared: the last checkpoint's tensors and state, the records of every trained batch
(written down by a patch in the child), and the rows of metrics.jsonl.
"""

import json
import random
import signal
import time

import pytest

from sigma.core.files import sha256_file
from sigma.core.strict_json import load_file

STEPS, INTERVAL, KILLS, IN_SAVE, AFTER_RESUME = 120, 4, 12, 6, 3  # saves that outrun their kill need more steps
TRACE = """
import json, os, zlib, sigma.train.step as step
train = step.Stepper.train
def traced(self, s, scale):
    result = train(self, s, scale)
    ids = zlib.crc32(s.batch.input_ids_BT.numpy().tobytes())
    fd = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (json.dumps([s.step, ids, s.batch.records]) + "\\n").encode())
    os.close(fd)
    return result
step.Stepper.train = traced
"""
REPEATABLE = ("loss", "loss_ema", "lr", "tokens_seen_total", "micro_batch", "skipped_steps")


class Run:
    """A run folder and the starts in it."""

    def __init__(self, program, run_dir, optimizer, steps=STEPS):
        self.program, self.dir = program, run_dir
        self.flags = ("--optimizer", optimizer, "--steps", str(steps), "--save-interval", str(INTERVAL))
        self.last = run_dir / "checkpoints" / f"step-{steps:09d}"
        self.trace_path = run_dir.with_suffix(".trace")

    def start(self, real=False):
        if real:
            return self.program.train_real(self.dir, *self.flags)
        return self.program.train(self.dir, *self.flags, patch=TRACE.format(path=str(self.trace_path)))

    def finish(self, real=False):
        """Start once more and stop after the last checkpoint (the final validation is not of interest here)."""
        child = self.start(real)
        child.wait_for((self.last / "COMMIT").exists)
        if child.alive():
            child.send(signal.SIGTERM)
        assert child.wait() in (0, 143), child.output()[-3000:]

    def torn(self):
        return [path for path in self.folders() if not (path / "COMMIT").exists()]

    def folders(self):
        folder = self.dir / "checkpoints"
        return [path for path in folder.iterdir() if path.name.startswith("step-")] if folder.is_dir() else []

    def count(self, kind):
        """Rows of a kind in metrics.jsonl."""
        return sum(row["kind"] == kind for row in self.program.rows(self.dir))

    def trace(self):
        """Step -> what was trained in it; every attempt at a step must have trained the same."""
        seen = {}
        for line in self.trace_path.read_text().splitlines():
            step, ids, records = json.loads(line)
            assert seen.setdefault(step, (ids, records)) == (ids, records), f"step {step} was repeated with other data"
        return seen


def kill_in_save(run, child, chooser):
    """After a save that is let through or not, kill while a folder has no COMMIT; False when the save was quicker."""
    before = run.count("startup")
    child.wait_for(lambda: run.count("startup") > before)  # what the kill before left is cleaned up by now
    for _ in range(chooser.randrange(2)):
        child.wait_for(run.torn, pause_s=0)
        child.wait_for(lambda: not run.torn(), pause_s=0)
    child.wait_for(run.torn, pause_s=0)
    time.sleep(chooser.random() * 0.01)
    child.kill()
    return bool(run.torn())


def kill_after_resume(run, child, chooser):
    """Kill within a second of the resume."""
    before = run.count("startup")
    child.wait_for(lambda: run.count("startup") > before)
    time.sleep(chooser.random() * 0.9)
    child.kill()


def kill_anywhere(run, child, chooser):
    """Kill a few steps later, at a random moment of a step."""
    until = run.count("train") + chooser.randrange(1, 6)
    child.wait_for(lambda: run.count("train") >= until)
    time.sleep(chooser.random() * 0.05)
    child.kill()


def chain_of_kills(run, seed):
    """Kill and start again until the plan is fulfilled; returns how many kills of each kind there were."""
    chooser = random.Random(seed)
    counts = {"in_save": 0, "after_resume": 0, "anywhere": 0}
    plan = ["after_resume"] * AFTER_RESUME + ["anywhere"] * (KILLS - IN_SAVE - AFTER_RESUME) + ["in_save"] * IN_SAVE
    chooser.shuffle(plan)
    while plan:
        kind = plan.pop(0)
        child = run.start()
        if kind == "in_save":
            hit = kill_in_save(run, child, chooser)
            counts["in_save" if hit else "anywhere"] += 1
            if not hit:  # the save was quicker than the kill: another kill has to hit
                plan.append("in_save")
                assert sum(counts.values()) < 5 * KILLS
        else:
            (kill_after_resume if kind == "after_resume" else kill_anywhere)(run, child, chooser)
            counts[kind] += 1
        assert child.code == -signal.SIGKILL
        assert not (run.last / "COMMIT").exists(), "the run was over before the plan"
    return counts


def comparable_rows(run):
    """Step -> the train row of the highest segment, without what a clock or a machine decides."""
    newest = {}
    for row in run.program.rows(run.dir):
        if row["kind"] == "train" and row["seg"] >= newest.get(row["step"], row)["seg"]:
            newest[row["step"]] = row
    return {step: {name: row[name] for name in REPEATABLE} for step, row in newest.items()}


def assert_same_end(killed, untouched):
    for name in ("model.safetensors", "optim.safetensors"):
        assert sha256_file(killed.last / name) == sha256_file(untouched.last / name), name
    state_a, state_b = load_file(killed.last / "state.json"), load_file(untouched.last / "state.json")
    assert state_a.keys() == state_b.keys()
    assert [name for name in state_a if state_a[name] != state_b[name]] == []
    assert comparable_rows(killed) == comparable_rows(untouched)
    assert sorted(comparable_rows(killed)) == list(range(1, STEPS + 1))


def assert_records_once(killed, untouched):
    trained, expected = killed.trace(), untouched.trace()
    assert sorted(trained) == list(range(1, STEPS + 1))
    assert trained == expected
    records = [tuple(record) for step in sorted(trained) for record in trained[step][1]]
    assert len(records) >= 10
    assert len(set(records)) == len(records)


@pytest.mark.parametrize("optimizer, seed", [("adamw", 1), ("muon", 2)])
def test_twelve_kills_change_no_bit_and_lose_no_record(program, tmp_path, optimizer, seed):
    untouched = Run(program, tmp_path / "untouched", optimizer)
    untouched.finish()
    killed = Run(program, tmp_path / "killed", optimizer)
    counts = chain_of_kills(killed, seed)
    killed.finish()
    assert counts["in_save"] >= IN_SAVE
    assert counts["after_resume"] == AFTER_RESUME
    assert sum(counts.values()) >= KILLS
    assert_same_end(killed, untouched)
    assert_records_once(killed, untouched)
    assert not (killed.dir / "quarantine").exists(), "a kill is no damage"


def test_a_fresh_interpreter_killed_in_a_save_ends_in_the_bits_of_a_forked_untouched_run(program, tmp_path):
    untouched = Run(program, tmp_path / "untouched", "muon", steps=3 * INTERVAL)
    untouched.finish()
    killed = Run(program, tmp_path / "killed", "muon", steps=3 * INTERVAL)
    child = killed.start(real=True)
    child.wait_for(lambda: (killed.dir / "checkpoints" / f"step-{2 * INTERVAL:09d}").exists(), pause_s=0)
    assert child.kill() == -signal.SIGKILL
    killed.finish(real=True)
    for name in ("model.safetensors", "optim.safetensors", "state.json"):
        assert sha256_file(killed.last / name) == sha256_file(untouched.last / name), name
