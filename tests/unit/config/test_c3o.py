"""Rules between the flags of c3o and gnprox."""

import pytest

from sigma.config.parse import parse
from sigma.core.errors import ConfigError


@pytest.mark.parametrize("optimizer", ["muon", "normuon", "adamw"])
def test_credit_with_another_optimizer_is_an_error_that_names_both(optimizer: str) -> None:
    with pytest.raises(ConfigError, match=f"--c3o-credit-enabled needs --optimizer c3o, and it is {optimizer}"):
        parse(["--optimizer", optimizer, "--c3o-credit-enabled"])


def test_an_audit_between_probes_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--c3o-audit-interval 60 is not a multiple of --c3o-probe-interval 16"):
        parse(["--optimizer", "c3o", "--c3o-audit-interval", "60"])


def test_damping_outside_its_bounds_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"--gn-damping .* is outside"):
        parse(["--gn-damping", "20"])
