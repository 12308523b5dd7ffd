"""The errors that a user can act on. Raised where the cause is known, printed in one place (`sigma_app.__main__`)."""

from __future__ import annotations


class SigmaError(Exception):
    """A failure whose message says what to do. `exit_code` is what the program ends with."""

    exit_code = 1


class ConfigError(SigmaError, ValueError):
    """A wrong flag, value or combination; the message starts with where it was written, if that is known."""

    exit_code = 2


class MissingRequirementError(SigmaError):
    """The machine lacks something that was asked for; the message says what and how to get it."""

    exit_code = 3
