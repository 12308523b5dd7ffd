"""The verdict over credit: rank correlations and when they allow it to act."""

import pytest
import torch

from sigma.optim.c3o_audit import LEAST, WINDOW, AuditLog, spearman

UP, DOWN = ([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]), ([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])


def test_rank_correlation_is_the_correlation_of_the_ranks() -> None:
    x, y = [0.3, -2.0, 5.0, 1.0, 0.9], [1.0, 7.0, -3.0, 0.2, 0.1]
    ranks = torch.tensor([[1.0, 0.0, 4.0, 3.0, 2.0], [3.0, 4.0, 0.0, 2.0, 1.0]])
    assert spearman(x, y) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))


def test_one_pair_has_no_rank_correlation() -> None:
    with pytest.raises(ValueError, match="above 1"):
        spearman([1.0], [1.0])


def test_there_is_no_verdict_before_the_least_number_of_audits() -> None:
    log = AuditLog()
    for _ in range(LEAST - 1):
        log.add(*UP)
    assert log.verdict == "undecided"
    log.add(*UP)
    assert log.verdict == "active"


def test_credit_that_does_not_predict_is_switched_off_and_may_come_back() -> None:
    log = AuditLog()
    for pair, verdict in ((UP, "active"), (DOWN, "inactive"), (UP, "active")):
        for _ in range(WINDOW):
            log.add(*pair)
        assert log.verdict == verdict
    assert len(log.correlations) == WINDOW
    assert log.total == 3 * WINDOW
