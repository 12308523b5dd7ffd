"""Run the GPU tests in this interpreter and append the outcome to gpu_tests.jsonl: `make test-gpu`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from record import require_cuda, stamp

LOG = Path(__file__).with_name("gpu_tests.jsonl")


class Outcomes:
    """A pytest plugin that counts how the tests ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(passed=0, failed=0, skipped=0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test counts once: by its call, or by the set-up or tear-down that kept it from passing."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1


def main(arguments: list[str]) -> int:
    """Returns pytest's exit code."""
    require_cuda()
    outcomes, started = Outcomes(), time.monotonic()
    code = pytest.main(["-m", "gpu", *(arguments or ["tests"])], plugins=[outcomes])
    row = {**stamp(), **outcomes.counts, "seconds": round(time.monotonic() - started, 1), "exit": int(code)}
    with LOG.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
