"""The flag table as text: for people (help, explain-config) and as files (documents, the args file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sigma.config.parse import DEFAULT, Parsed
from sigma.config.table import Flag, get_value, run_flags, section_flags, sections

ARGS_FILE_NAME = "train_sigma_args.txt"
PROFILE: dict[str, Any] = {
    "device": None,
    "optimizer": "c3o",
    "c3o_credit_enabled": True,
    "data_backend": "hybrid",
}
"""What the shipped args file sets: field -> value, None for the default."""

_ARGS_HEAD = """\
# Arguments of SIGMA. Start the program (or `sigma train`) and it reads this file.
#
# One flag, or one flag and its value, on a line. A line that begins with # is a comment: remove the # to use it.
# A switch is written --x or --no-x. Relative paths start at the folder of this file.
# The command line wins over this file, this file over the preset. `sigma explain-config` shows what comes out.
"""


def explain(parsed: Parsed) -> str:
    """Every value and where it came from, as aligned columns."""
    rows = [("flag", "value", "from")]
    for flag in run_flags().values():
        value = get_value(parsed.config, flag)
        text = ("on" if value else "off") if flag.is_switch else flag.render(value)
        rows.append((flag.name, text, parsed.origins.get(flag.field, DEFAULT)))
    name_width, value_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{name:<{name_width}}  {value:<{value_width}}  {origin}" for name, value, origin in rows)


def flags_help() -> str:
    """All flags, one section after another, for `sigma --help`."""
    lines: list[str] = []
    for section, section_type in sections().items():
        lines += ["", _summary(section_type), *(_help_line(flag) for flag in _of_section(section))]
    return "\n".join(lines)


def options_help(options: type) -> str:
    """The options of a small command, for its `--help`."""
    return "\n".join(_help_line(flag) for flag in section_flags("", options).values())


def _help_line(flag: Flag) -> str:
    left = f"  --[no-]{flag.name[2:]}" if flag.is_switch else f"  {flag.name} {_metavar(flag)}"
    return f"{left:<47} {flag.help} [{_default(flag)}]"


def flags_markdown() -> str:
    """The document `docs/flags.md`."""
    parts = [
        "# Flags\n\nGenerated from `sigma/config/`; `sigma explain-config` shows the values of a run. "
        "`auto` takes the preset's value.\n"
    ]
    for section, section_type in sections().items():
        parts.append(f"\n## {section}\n{section_type.__doc__}\n")
        parts.append("| flag | value | default | bounds | meaning |\n| --- | --- | --- | --- | --- |")
        for flag in _of_section(section):
            cells = (f"`{flag.name}`", flag.kind_words, f"`{_default(flag)}`", _bounds(flag), flag.help)
            parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def args_template() -> str:
    """The text of a fresh `train_sigma_args.txt`: every flag as a comment, except those of the profile."""
    lines = [_ARGS_HEAD]
    for section, section_type in sections().items():
        lines.append(f"# ===== {section}: {_summary(section_type)}")
        for flag in _of_section(section):
            lines += ["", f"# {flag.help} {_note(flag)}", _line(flag)]
        lines.append("")
    return "\n".join(lines)


def _of_section(section: str) -> list[Flag]:
    return [flag for flag in run_flags().values() if flag.section == section]


def _summary(section_type: type) -> str:
    return (section_type.__doc__ or "").splitlines()[0]


def _metavar(flag: Flag) -> str:
    if flag.choices:
        return "|".join((*flag.choices, *(["PATH"] if flag.may_be_path else [])))
    return flag.kind_words.split()[0].upper()


def _default(flag: Flag) -> str:
    return ("on" if flag.default else "off") if flag.is_switch else flag.render(flag.default)


def _bounds(flag: Flag) -> str:
    low = "" if flag.low is None else f">= {flag.low}"
    high = "" if flag.high is None else f"<= {flag.high}"
    return ", ".join(filter(None, (low, high)))


def _note(flag: Flag) -> str:
    parts = [f"Default {_default(flag)}"]
    if flag.choices:
        parts.append(f"one of {', '.join(flag.choices)}" + (", or a path" if flag.may_be_path else ""))
    if bounds := _bounds(flag):
        parts.append(bounds)
    return f"({'; '.join(parts)})"


def _line(flag: Flag) -> str:
    if flag.field in PROFILE:
        value = PROFILE[flag.field]
        return flag.line(flag.default if value is None else value)
    return "# " + _example(flag)


def _example(flag: Flag) -> str:
    """The line that changes a switch, or that repeats the default of anything else."""
    return flag.line(not flag.default) if flag.is_switch else flag.line(flag.default)


def write_generated(root: Path) -> None:
    """Write `docs/flags.md` and the args file again."""
    (root / "docs" / "flags.md").write_text(flags_markdown(), encoding="utf-8", newline="\n")
    (root / ARGS_FILE_NAME).write_text(args_template(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_generated(Path(__file__).parents[2])
