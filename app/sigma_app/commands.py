"""The commands: each is a function of its arguments and the session, and returns an exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sigma.config.explain import explain, flags_help, options_help
from sigma.config.option import opt
from sigma.config.parse import parse_options, split_options
from sigma.config.resolved import RESOLVED_NAME
from sigma.config.table import nearest
from sigma.core.errors import ConfigError
from sigma.core.version import VERSION
from sigma_app.bootstrap import make_known_folders
from sigma_app.collector import no_collections
from sigma_app.early_stop import leave_on_signal
from sigma_app.first_lines import gpu_line, place_lines
from sigma_app.kernel_check import kernel_lines
from sigma_app.session import Session

Command = Callable[[Sequence[str], Session], int]

_USAGE = f"""SIGMA {VERSION}: trains a hybrid Mamba-3 / attention language model from nothing, on one workstation.

  sigma                                          train with train_sigma_args.txt; started again, it continues
  sigma train [@FILE] [--flag value ...]         train; the command line wins over the file
  sigma explain-config [@FILE] [--flag ...]      every value and where it comes from; trains nothing
  sigma doctor [@FILE] [--flag ...]              can this machine train? findings and remedies
  sigma generate --run DIR --prompt TEXT         complete a text
                                                 [--tokens N --temperature X --top-k N --seed N --device D]
  sigma report --run DIR                         write DIR/report.html again
  sigma data preview [@FILE] [--flag ...]        documents, drop reasons and speed of each source; trains nothing
                                                 [--documents N --seconds N]
  sigma data hashes --data-dir DIR --out FILE    hashes of held-out texts, for --contamination-file
  sigma tokenizer train [@FILE] [--flag ...]     a tokenizer.json of your own, for --tokenizer
                                                 [--vocab-size N --sample-mb N --out DIR]
  sigma tune [@FILE] [--flag ...]                times the kernels' launches for these sizes on this GPU, and keeps the
                                                 fastest for later starts [--minutes N]
  sigma --selftest                               is this copy complete and does it work? minutes, trains two steps
  sigma --help | --version

Exit codes: 0 done, 1 crashed (a report is written), 2 bad configuration, 3 the machine lacks something required,
130 / 143 interrupted / terminated (a checkpoint is written).
"""


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `sigma generate`."""

    run: Path = opt(Path("runs/sigma_main"), "Output folder of a run.")  # noqa: RUF009 - opt makes a field
    prompt: str = opt("", "Text to continue.")
    tokens: int = opt(128, "Tokens to write at most.", low=1, high=100_000)
    temperature: float = opt(0.8, "Randomness; 0 always takes the likeliest token.", low=0, high=10)
    top_k: int = opt(50, "Choose among this many likeliest tokens; 0 among all.", low=0)
    seed: int = opt(0, "Seed of the choice.", low=0, high=2**63 - 1)
    device: Literal["auto", "cuda", "cpu"] = opt("auto", "Where to compute; auto takes the GPU when there is one.")


@dataclass(frozen=True)
class PreviewOptions:
    """Options of `sigma data preview`, beside the flags of a training."""

    documents: int = opt(3, "Documents to show of each source.", low=0, high=100)
    seconds: float = opt(20.0, "Longest time to wait for a source.", low=0.1, high=3600)


@dataclass(frozen=True)
class HashesOptions:
    """Options of `sigma data hashes`."""

    data_dir: Path = opt(Path("data"), "Folder of held-out texts: txt, md, jsonl and parquet files.")  # noqa: RUF009
    out: Path = opt(Path("held_out.hashes"), "File to write; give it to --contamination-file.")  # noqa: RUF009


@dataclass(frozen=True)
class TokenizerOptions:
    """Options of `sigma tokenizer train`, beside the flags of a training."""

    vocab_size: int = opt(16384, "Ids of the tokenizer, with 3 special ones and 256 bytes.", low=260, high=65536)
    sample_mb: float = opt(64.0, "Text to train it from, in MB.", low=0.01, high=2048)
    out: Path = opt(Path("tokenizer"), "Folder for tokenizer.json and its manifest.")  # noqa: RUF009 - opt makes a field


@dataclass(frozen=True)
class TuneOptions:
    """Options of `sigma tune`, beside the flags of a training."""

    minutes: float = opt(15.0, "Longest time to search.", low=0.1, high=600)


@dataclass(frozen=True)
class ReportOptions:
    """Options of `sigma report`."""

    run: Path = opt(Path("runs/sigma_main"), "Output folder of a run.")  # noqa: RUF009 - opt makes a field


def train(argv: Sequence[str], session: Session) -> int:
    """Train, or say that the run is finished."""
    with leave_on_signal(session.stop):
        with suppress(OSError):  # a closed pipe or a full disk behind stdout; from the next line on the log sees to it
            session.say(f"SIGMA {VERSION}")
        session.start_log()
        session.prepare()
        parsed = session.read_configuration(argv, create_args_file=True)
        session.warn(*make_known_folders())
        places = list(place_lines(parsed.config, session.args_file, session.log.path if session.log else None))
        gpu = None if parsed.config.run.device == "cpu" else session.find_gpu()
        session.say(gpu_line(gpu))
        kernel_first = gpu is not None and bool(gpu.gpus)  # nothing more is promised before a real kernel has run
        session.say(*([] if kernel_first else places), "loading torch")
        with no_collections():
            resolved = session.resolve(parsed)
        run = resolved.config.run
        if run.device == "cuda":
            for line in kernel_lines(resolved.config.model):
                session.say(line)
        session.say(*(places if kernel_first else []))
        if run.preset == "demo" and run.device == "cpu":
            steps = resolved.config.train.steps
            session.say(f"no GPU in use: this trains a small demonstration on the CPU ({steps} steps)")
        from sigma_app.training import run_training

        return run_training(resolved, session)


def explain_config(argv: Sequence[str], session: Session) -> int:
    """Print every value and its origin."""
    parsed = session.read_configuration(argv, create_args_file=False)
    session.say(explain(session.resolve(parsed)))
    return 0


def doctor(argv: Sequence[str], session: Session) -> int:
    """Print findings about this machine; 0 when training can start."""
    from sigma_app.doctor import examine, format_findings

    session.prepare()
    parsed = session.read_configuration(argv, create_args_file=False)
    findings = examine(parsed.config)
    session.say(*format_findings(findings))
    return 3 if any(finding.status == "FAIL" for finding in findings) else 0


def generate(argv: Sequence[str], session: Session) -> int:
    """Complete a prompt with the newest valid checkpoint of a run."""
    options = parse_options(GenerateOptions, argv)
    if not (options.run / RESOLVED_NAME).is_file():
        raise ConfigError(f"--run {options.run}: no {RESOLVED_NAME} there; give the output folder of a run")
    session.prepare()
    from sigma_app.console import visible
    from sigma_app.generate import complete
    from sigma_kernels.triton_cache import apply_cache_folder

    apply_cache_folder(os.environ)

    values = asdict(options)
    session.say(visible(complete(values.pop("run"), values.pop("prompt"), **values), keep="\n\t"))
    return 0


def report(argv: Sequence[str], session: Session) -> int:
    """Write the report of a run."""
    options = parse_options(ReportOptions, argv)
    from sigma.train.report import write_report

    session.say(str(write_report(options.run)))
    return 0


def data(argv: Sequence[str], session: Session) -> int:
    """Look at the texts of a backend (preview), or write the hashes of held-out texts (hashes)."""
    action, rest = _action("data", argv, ("preview", "hashes"))
    if action == "hashes":
        hashes = parse_options(HashesOptions, rest)
        from sigma_app.data_command import hash_folder

        session.say(f"{hash_folder(hashes.data_dir, hashes.out)} hashes in {hashes.out}")
        return 0
    options, rest = split_options(PreviewOptions, rest)
    session.prepare()
    config = session.read_configuration(rest, create_args_file=False).config
    from sigma_app.data_command import preview_lines

    for line in preview_lines(config.data, config.run.seed, options.documents, options.seconds):
        session.say(line)
    return 0


def tokenizer(argv: Sequence[str], session: Session) -> int:
    """Train a tokenizer from the texts of a backend (train); takes the flags of a training too."""
    _, rest = _action("tokenizer", argv, ("train",))
    options, rest = split_options(TokenizerOptions, rest)
    session.prepare()
    config = session.read_configuration(rest, create_args_file=False).config
    from sigma_app.tokenizer_command import train_and_tell

    for line in train_and_tell(config.data, config.run.seed, options.vocab_size, options.sample_mb, options.out):
        session.say(line)
    return 0


def tune(argv: Sequence[str], session: Session) -> int:
    """Find the fastest launches of the kernels on this GPU; takes the flags of a training too."""
    options, rest = split_options(TuneOptions, argv)
    session.prepare()
    config = session.resolve(session.read_configuration([*rest, "--require-cuda"], create_args_file=False)).config
    for line in kernel_lines(config.model):
        session.say(line)
    import torch

    from sigma_app.tune_command import tunables_of
    from sigma_app.tune_command import tune as search
    from sigma_kernels.tuned import VARIABLE

    search(tunables_of(config, torch.device("cuda")), Path(os.environ[VARIABLE]), options.minutes, session.say)
    return 0


def _action(command: str, argv: Sequence[str], actions: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The word behind a command, and what stands behind it. Raises ConfigError without a known one."""
    if argv and argv[0] in actions:
        return argv[0], argv[1:]
    given = f"{argv[0]!r} is not known" if argv else "say what to do"
    raise ConfigError(f"command line: sigma {command}: {given}; write sigma {command} {' or '.join(actions)}")


def selftest(argv: Sequence[str], session: Session) -> int:
    """Run the gates that every copy of the program must pass."""
    if argv:
        raise ConfigError(f"command line: --selftest takes no arguments, got {argv[0]!r}")
    session.prepare()
    from sigma_app.selftest.runner import run_gates

    return run_gates(session)


def show_help(argv: Sequence[str], session: Session) -> int:
    """Print the commands and every flag of a training; for a command with options of its own, those."""
    name = argv[0] if argv else ""
    if name in OPTIONS:
        session.say(f"sigma {name}: {COMMANDS[name].__doc__}")
        session.say(*(f"\n{kind.__doc__}\n{options_help(kind)}" for kind in OPTIONS[name]))
    else:
        session.say(_USAGE + flags_help())
    return 0


def show_version(argv: Sequence[str], session: Session) -> int:
    """Print the version."""
    session.say(f"sigma {VERSION}")
    return 0


OPTIONS: dict[str, tuple[type, ...]] = {
    "generate": (GenerateOptions,),
    "report": (ReportOptions,),
    "data": (PreviewOptions, HashesOptions),
    "tokenizer": (TokenizerOptions,),
    "tune": (TuneOptions,),
}
"""The commands with options of their own."""

COMMANDS: dict[str, Command] = {
    "train": train,
    "explain-config": explain_config,
    "doctor": doctor,
    "generate": generate,
    "report": report,
    "data": data,
    "tokenizer": tokenizer,
    "tune": tune,
    "help": show_help,
    "version": show_version,
}


def choose(argv: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The command of a command line and its own arguments; without a command word it is `train`.

    Raises ConfigError for an unknown word.
    """
    if any(word in ("--help", "-h") for word in argv):
        return show_help, argv[:1]
    if argv and argv[0] in ("--version", "-V"):
        return show_version, ()
    if argv and argv[0] == "--selftest":
        return selftest, argv[1:]
    if not argv or argv[0].startswith(("-", "@")):
        return train, argv
    if argv[0] in COMMANDS:
        return COMMANDS[argv[0]], argv[1:]
    close = nearest(argv[0], COMMANDS)
    hint = f"did you mean {close}?" if close else "see sigma --help"
    raise ConfigError(f"command line: {argv[0]!r}: unknown command; {hint}")
