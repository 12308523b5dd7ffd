"""How a build fails. Whatever it is, nothing of the previous build has been touched."""


class BuildError(Exception):
    """The build cannot go on; the message says what is wrong and what to do."""

    exit_code = 1


class MissingError(BuildError):
    """This machine lacks something that a build needs; the message says how to get it."""

    exit_code = 3
