"""Every broken args file ends with exit code 2 and one line that names file, line and remedy; never a traceback."""

# ruff: noqa: E501, RUF001 - whole lines of messages, and the characters that the cases are about
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_app.__main__ import main

FILE = "args.txt"
# id: (content, what the line says after "sigma: ")
BROKEN: dict[str, tuple[bytes, str]] = {
    "misspelled-flag": (b"\n--learing-rate 3\n", "args.txt:2: --learing-rate: unknown flag; did you mean --lr?"),
    "underscores": (b"--d_model 8", "args.txt:1: --d_model: unknown flag; did you mean --d-model?"),
    "upper-case": (b"--D-MODEL 8", "args.txt:1: --D-MODEL: unknown flag; did you mean --d-model?"),
    "one-dash": (b"-steps 5", "args.txt:1: -steps: unknown flag; did you mean --steps?"),
    "far-from-any-flag": (b"--qqqqqq 1", "args.txt:1: --qqqqqq: unknown flag; see sigma --help"),
    "abbreviation": (b"--see 5", "args.txt:1: --see: unknown flag; did you mean --seed?"),
    "only-dashes": (b"--", "args.txt:1: --: unknown flag; see sigma --help"),
    "flag-without-dashes": (b"steps 5", "args.txt:1: 'steps 5': a value without a flag; did you mean --steps?"),
    "ini-style": (b"lr=0.1", "args.txt:1: 'lr=0.1': a value without a flag; did you mean --lr?"),
    "stray-value": (b"--steps 5\n\n7\n", "args.txt:3: '7': a value without a flag; write --flag value"),
    "value-of-a-switch": (b"--resume\ntrue", "args.txt:2: 'true': a value without a flag;"),
    "json": (b'{"steps": 5}', "args.txt:1: '{\"steps\": 5}': a value without a flag;"),
    "yaml": (b"steps: 5", "args.txt:1: 'steps: 5': a value without a flag; did you mean --steps?"),
    "section-header": (b"[train]", "args.txt:1: '[train]': a value without a flag;"),
    "en-dash": ("–steps 5".encode(), "args.txt:1: '–steps': typographic dash U+2013; write --steps"),
    "em-dash": ("—steps 5".encode(), "args.txt:1: '—steps': typographic dash U+2014; write --steps"),
    "dash-and-en-dash": ("-–steps 5".encode(), "args.txt:1: '-–steps': typographic dash U+2013; write --steps"),
    "inner-hyphen": ("--batch‐size 5".encode(), "args.txt:1: '--batch‐size': typographic dash U+2010; write --batch-size"),
    "minus-sign": ("--weight-decay −1".encode(), "args.txt:1: --weight-decay: '−1' is not a finite number"),
    "zero-width-space": ("--ste\u200bps 5".encode(), "args.txt:1: '--ste\\u200bps': unknown flag; did you mean --steps?"),
    "duplicate": (b"--steps 5\n# x\n--steps 6", "args.txt:3: --steps: already on line 1; remove one of the two lines"),
    "duplicate-switch": (b"--resume\n--no-resume", "args.txt:2: --no-resume: already on line 1; remove one"),
    "duplicate-alias": (b"--lr 1\n--learning-rate 1", "args.txt:2: --learning-rate: already on line 1; remove one"),
    "duplicate-retired": (b"--gn-eps 1\n--gn-eps 1", "args.txt:2: --gn-eps: already on line 1; remove one"),
    "missing-value-at-end": (b"--seed 1\n--steps\n", "args.txt:2: --steps: has no value; write --steps VALUE"),
    "missing-value-before-flag": (b"--steps\n--seed\n1", "args.txt:1: --steps: has no value; write --steps VALUE"),
    "missing-value-before-negation": (b"--steps\n--no-resume", "args.txt:1: --steps: has no value;"),
    "missing-value-before-retired": (b"--steps\n--gn-eps\n1", "args.txt:1: --steps: has no value;"),
    "missing-value-of-retired": (b"--gn-eps", "args.txt:1: --gn-eps: has no value; write --gn-eps VALUE"),
    "empty-value": (b"--steps=", "args.txt:1: --steps: the value is empty; give an integer / auto"),
    "quoted-empty-value": (b'--output-dir ""', "args.txt:1: --output-dir: the value is empty; give a path"),
    "switch-with-value": (b"--resume true", "args.txt:1: --resume: takes no value; write --resume or --no-resume alone"),
    "switch-equals": (b"--resume=1", "args.txt:1: --resume: takes no value; write --resume or --no-resume alone"),
    "negated-switch-with-value": (b"--no-resume 1", "args.txt:1: --no-resume: takes no value; write --resume or"),
    "negated-number": (b"--no-steps", "args.txt:1: --no-steps: --steps is not a switch; write --steps VALUE"),
    "negated-unknown": (b"--no-resme", "args.txt:1: --no-resme: unknown flag; did you mean --no-resume?"),
    "double-negation": (b"--no-no-resume", "args.txt:1: --no-no-resume: unknown flag; did you mean --no-resume?"),
    "nan": (b"--lr nan", "args.txt:1: --lr: 'nan' is not a finite number; write it like 0.5 or 3e-4"),
    "infinity": (b"--lr inf", "args.txt:1: --lr: 'inf' is not a finite number; write it like"),
    "overflow": (b"--lr 1e309", "args.txt:1: --lr: '1e309' is not a finite number; write it like"),
    "word-for-float": (b"--lr fast", "args.txt:1: --lr: 'fast' is not a finite number; write it like"),
    "decimal-comma": (b"--lr 0,003", "args.txt:1: --lr: '0,003' is not a finite number;"),
    "hexadecimal": (b"--lr 0x1p3", "args.txt:1: --lr: '0x1p3' is not a finite number;"),
    "percent": (b"--code-ratio 15%", "args.txt:1: --code-ratio: '15%' is not a finite number;"),
    "int-with-underscore": (b"--steps 1_000", "args.txt:1: --steps: '1_000' is not an integer; write digits only"),
    "int-with-point": (b"--steps 5.0", "args.txt:1: --steps: '5.0' is not an integer; write digits only"),
    "int-with-exponent": (b"--steps 1e3", "args.txt:1: --steps: '1e3' is not an integer; write digits only"),
    "int-with-comma": (b"--steps 1,000", "args.txt:1: --steps: '1,000' is not an integer; write digits only"),
    "arabic-digits": ("--steps ٥".encode(), "args.txt:1: --steps: '٥' is not an integer; write digits only"),
    "huge-int": (b"--seed 1" + b"0" * 5000, "args.txt:1: --seed: '10000"),
    "below-the-bound": (b"--steps 0", "args.txt:1: --steps: 0 is below the smallest value 1; raise it"),
    "above-the-bound": (b"--code-ratio 1.5", "args.txt:1: --code-ratio: 1.5 is above the largest value 1; lower it"),
    "negative": (b"--weight-decay\n-1.0", "args.txt:1: --weight-decay: -1.0 is below the smallest value 0; raise it"),
    "wrong-choice": (
        b"--optimizer adam",
        "args.txt:1: --optimizer: 'adam' is not one of adamw, muon, normuon, adamuon, soapmuon, c3o, gnprox; "
        "did you mean adamw?",
    ),
    "choice-in-capitals": (b"--device CUDA", "args.txt:1: --device: 'CUDA' is not one of auto, cuda, cpu; did you mean cuda?"),
    "comment-behind-value": (b"--steps 5 # five", "args.txt:1: --steps: put the comment on a line of its own"),
    "comment-behind-path": (b"--output-dir runs/x ; mine", "args.txt:1: --output-dir: put the comment on a line of its own"),
    "comment-behind-switch": (b"--resume # yes", "args.txt:1: --resume: put the comment on a line of its own"),
    "spaces-around-equals": (b"--lr = 0.1", "args.txt:1: --lr: spaces around '='; write --lr 0.1"),
    "two-flags-on-a-line": (b"--lr 0.1 --steps 5", "args.txt:1: --lr: '0.1 --steps 5' is not a finite number; write it like 0.5 or 3e-4 and put each flag on a line of its own"),
    "contradiction": (b"--code-ratio 0.9\n--synthetic-ratio 0.2", "args.txt:2 and args.txt:1: --synthetic-ratio 0.2 and --code-ratio 0.9 add up to more than 1"),
    "experts": (b"--n-routed-experts 2\n--moe-top-k 3", "args.txt:2 and args.txt:1: --moe-top-k 3 is more than --n-routed-experts 2; lower"),
    "micro-batch": (b"--batch-size 6\n--micro-batch-size 4", "args.txt:1 and args.txt:2: --batch-size 6 is not a multiple of"),
    "no-layers": (b"--mamba-ratio 0\n--attention-ratio 0", "args.txt:1 and args.txt:2: --mamba-ratio and --attention-ratio are both 0; give"),
    "device-against-require": (b"--require-cuda\n--device cpu", "args.txt:1 and args.txt:2: --require-cuda and --device cpu contradict each other; remove one"),
    "nul-byte": (b"--steps 5\n--seed \x001\n", "args.txt:2: binary content (a NUL byte); save the file as UTF-8 text"),
    "utf-16-without-mark": ("--steps 5".encode("utf-16-le"), "args.txt:1: binary content (a NUL byte); save the file as UTF-8"),
    "utf-32": ("--steps 5".encode("utf-32"), "args.txt:1: control character '\\x00'; save the file again as plain UTF-8 text"),
    "truncated-utf-16": ("--steps 5".encode("utf-16") + b"x", "args.txt: damaged UTF-16 text; save the file as UTF-8 text"),
    "png": (b"\x89PNG\r\n\x1a\n\x81", "args.txt:3: binary content; save the file as UTF-8 text"),
    "escape-sequence": (b"\x1b[31m--steps 5", "args.txt:1: control character '\\x1b'; save the file again"),
    "backspace": (b"--steps 5\x08", "args.txt:1: control character '\\x08'; save the file again as plain UTF-8 text"),
    "tab-in-path": (b"--output-dir a\tb", "args.txt:1: --output-dir: 'a\\tb' holds a control character; type the value again"),
    "too-large": (b"# x\n" * 300_000, "args.txt: larger than 1 MB, so not an args file; name another file"),
    "includes-itself": (b"--seed 1\n@args.txt", "args.txt:2: @args.txt includes itself; remove this line"),
    "includes-itself-by-another-name": (b"@../work/./args.txt", "args.txt:1: @../work/./args.txt includes itself; remove"),
    "include-missing": (b"\n@none.txt", "args.txt:2: @none.txt: none.txt: no such file"),
    "include-nothing": (b"@", "args.txt:1: '@' without a file name; write @FILE"),
    "include-a-folder": (b"@..", "args.txt:1: @..: "),
}  # fmt: skip


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("sigma: ")
    assert len(lines[0]) < 400
    return lines[0].removeprefix("sigma: ")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_exit_2_with_one_line(name: str, home: Path, capsys: pytest.CaptureFixture[str]):
    content, message = BROKEN[name]
    (home / FILE).write_bytes(content)
    assert main(["explain-config", "@args.txt"]) == 2
    assert one_line_error(capsys).startswith(message)


def test_corpus_is_large_enough():
    assert len(BROKEN) >= 60


@pytest.mark.parametrize(
    "argument, message",
    [
        ("@none.txt", "none.txt: no such file ("),
        ("@", "command line: '@' without a file name; write @FILE"),
        ("@folder", "folder: this is a folder ("),
        ("@/dev/null", "null: not a regular file ("),
        ("@a\0b", "command line: 'a\\x00b' is not a file name; write @FILE"),
        ("@" + "x" * 5000, "'xxx"),
        ("--lr=nan", "command line: --lr: 'nan' is not a finite number"),
        ("--steps", "command line: --steps: has no value; write --steps VALUE"),
        ("--stepz=1", "command line: --stepz: unknown flag; did you mean --steps?"),
        ("--a\nb", "command line: '--a\\nb': unknown flag"),
        ("--output-dir=a\nb", "command line: --output-dir: 'a\\nb' holds a control character"),
        ("word", "command line: 'word': a value without a flag"),
        ("--output-dir=\udcff", "command line: --output-dir: "),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_broken_command_line_is_exit_2_with_one_line(argument, message, home, capsys):
    (home / "folder").mkdir()
    assert main(["explain-config", argument]) == 2
    assert one_line_error(capsys).startswith(message)


def test_value_is_not_taken_from_another_source(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / FILE).write_text("--steps\n")
    assert main(["explain-config", "@args.txt", "5"]) == 2
    assert one_line_error(capsys) == "args.txt:1: --steps: has no value; write --steps VALUE"


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes in the file system are POSIX")
def test_named_pipe_is_refused_without_waiting(home: Path, capsys: pytest.CaptureFixture[str]):
    os.mkfifo(home / FILE)
    assert main(["explain-config", "@args.txt"]) == 2
    assert "not a regular file" in one_line_error(capsys)


def test_cycle_over_two_files(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / FILE).write_text("@b.txt")
    (home / "b.txt").write_text("\n@args.txt")
    assert main(["explain-config", "@args.txt"]) == 2
    assert one_line_error(capsys) == "b.txt:2: @args.txt includes itself; remove this line"


def test_includes_deeper_than_four(home: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(1, 6):
        (home / f"{number}.txt").write_text(f"@{number + 1}.txt" if number < 5 else "--seed 5")
    assert main(["explain-config", "@2.txt", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["explain-config", "@1.txt"]) == 2
    assert one_line_error(capsys) == "4.txt:1: @5.txt is included 5 deep; at most 4, merge the files"


def test_many_includes_end(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / FILE).write_text("@b.txt\n" * 100)
    (home / "b.txt").write_text("@c.txt\n" * 100)
    (home / "c.txt").write_text("")
    assert main(["explain-config", "@args.txt"]) == 2
    assert "more than 64 files are included; merge them" in one_line_error(capsys)


@pytest.mark.parametrize("name", ["misspelled-flag", "nan", "nul-byte", "includes-itself", "en-dash"])
def test_the_same_in_a_process_of_its_own(name: str, home: Path):
    content, message = BROKEN[name]
    (home / FILE).write_bytes(content)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sigma_app", "train", "@args.txt"],
        env=env,
        capture_output=True,
        encoding="utf-8",
        cwd=home,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"sigma: {message}")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (home / "errors").exists(), "a wrong file is not a crash"
