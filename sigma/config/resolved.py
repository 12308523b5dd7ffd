"""`resolved_args.txt`: every value of a run and where it came from, as an args file that parses back to that run."""

from __future__ import annotations

from pathlib import Path

from sigma.config.parse import DEFAULT, Parsed, build_located, parse
from sigma.config.presets import PRESETS
from sigma.config.root import RunConfig
from sigma.config.table import get_value, run_flags
from sigma.core.errors import ConfigError
from sigma.core.files import sha256_file, write_atomic
from sigma.core.version import VERSION

RESOLVED_NAME = "resolved_args.txt"

_HEAD = f"""# Every value of this run and where it came from, written by SIGMA {VERSION}.
# A run that is started again in this folder uses these values; a flag given then wins.
"""


def resolved_text(parsed: Parsed, base: Path) -> str:
    """The content of `resolved_args.txt` in the folder `base`; the output folder itself is written as `.`."""
    parts = [_HEAD]
    section = ""
    for flag in run_flags().values():
        if flag.section != section:
            section = flag.section
            parts.append(f"\n# --- {section} ---\n")
        origin = parsed.origins.get(flag.field, DEFAULT)
        line = flag.line(get_value(parsed.config, flag), base)
        parts.append(f"# from: {_one_line(origin)}\n{line}\n")
    return "".join(parts)


def write_resolved(parsed: Parsed) -> str:
    """Write `resolved_args.txt` into the output folder (which must exist) and return its SHA-256 (hex).

    A file that already holds exactly this configuration stays as it is, with the origins of the first start.
    """
    folder = parsed.config.run.output_dir
    path = folder / RESOLVED_NAME
    if path.is_file() and _holds(path, parsed.config):
        return sha256_file(path)
    return write_atomic(path, resolved_text(parsed, folder).encode())


def load_resolved(path: Path) -> RunConfig:
    """The configuration in `resolved_args.txt` (or in any args file). Raises ConfigError naming file and line."""
    return parse(args_file=path).config


def continue_run(parsed: Parsed) -> Parsed:
    """`parsed` over the values that its output folder was started with, if `--resume` is on and there are any.

    What a file or the command line says now wins, except `auto`, which was already decided and is never decided twice.
    Raises ConfigError when the folder or the old file cannot be read.
    """
    path = parsed.config.run.output_dir / RESOLVED_NAME
    try:
        if not parsed.config.run.resume or not path.is_file():
            return parsed
    except OSError as error:  # not permitted, or a name that is too long
        raise ConfigError(f"--output-dir: {path}: {error.strerror}; give another folder") from None
    old = parse(args_file=path)
    now = {name: value for name, value in parsed.given.items() if value is not None and value != "auto"}
    origins = {name: parsed.origins[name] if name in now else where for name, where in old.origins.items()}
    values = old.given | now | {"output_dir": parsed.config.run.output_dir}
    preset = str(now.get("preset", old.config.run.preset))
    if preset != old.config.run.preset:  # another preset was asked for: its sizes, not the old ones
        values |= {name: None for name in PRESETS[preset] if name not in now}
    config = build_located(values, origins)
    notes = [f"this run continues with {line}" for line in changes(old.config, config)]
    return Parsed(config, values, origins, (*parsed.warnings, *notes))


def changes(old: RunConfig, new: RunConfig) -> list[str]:
    """One line for each flag whose value differs: `--lr: 0.004 -> 0.003`."""
    found: list[str] = []
    for flag in run_flags().values():
        before, after = get_value(old, flag), get_value(new, flag)
        if before != after:
            found.append(f"{flag.name}: {flag.render(before)} -> {flag.render(after)}")
    return found


def _holds(path: Path, config: RunConfig) -> bool:
    try:
        return load_resolved(path) == config
    except ConfigError:  # edited by hand, and this run does not continue it
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())
