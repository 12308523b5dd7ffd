from pathlib import Path

import pytest

from sigma.core.redact import REDACTED, is_secret_name, redact, redact_argv, redact_text

SECRETS = {
    "hugging-face": "hf_AbCdEfGhIjKlMnOpQr",
    "openai": "sk-proj-abcdefghij0123456789",
    "github": "ghp_abcdefghijABCDEFGHIJ0123456789abcdef",
    "github-pat": "github_pat_11ABCDEFG0abcdefghijkl",
    "gitlab": "glpat-abcdefghij0123456789",
    "aws": "AKIAABCDEFGHIJKLMNOP",
    "slack": "xoxb-1234567890-abcdef",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "wandb": "0123456789abcdef0123456789abcdef01234567",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
@pytest.mark.parametrize("template", ["{}", "failed with {}.", "('{}',)", "{}\nnext", "x={}", "url?t={}&u=1"])
def test_a_value_that_looks_like_a_secret_goes_wherever_it_stands(secret, template):
    text = redact_text(template.format(secret))
    assert secret not in text
    assert REDACTED in text


@pytest.mark.parametrize(
    "text, secret",
    [
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("authorization: Basic dXNlcjpwdw==", "dXNlcjpwdw"),
        ("token=abc123 rest", "abc123"),
        ("HF_TOKEN=abc123", "abc123"),
        ('{"api_key": "two words"}', "two words"),
        ("{'client_secret': 'xyz'}", "xyz"),
        ("password: hunter2", "hunter2"),
        ("sigma train --hf-token abc123 --steps 5", "abc123"),
        ("https://user:pa55@host/x", "pa55"),
        ("https://abc123@host/x", "abc123"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc", "MIIabc"),
    ],
)
def test_a_value_beside_a_secret_name_goes_and_the_rest_stays(text, secret):
    hidden = redact_text(text)
    assert secret not in hidden
    assert REDACTED in hidden
    if "host" in text:
        assert hidden == f"https://{REDACTED}@host/x"
    if "--steps" in text:
        assert hidden.endswith("--steps 5")


@pytest.mark.parametrize(
    "text",
    [
        "core_tokens_per_s=1234 tokens: 5 tokenizer=bpe8k monkey=1",
        "KeyError: 'loss'",
        "rows = sorted(rows, key=lambda r: r.step)",
        "sha256 " + "0123456789abcdef" * 4,
        "https://host/path?x=1",
        "step 100 loss 2.5 --sample-tokens 64 --tokenizer bpe8k",
    ],
)
def test_ordinary_text_is_left_alone(text):
    assert redact_text(text) == text


def test_redaction_is_stable_when_applied_twice():
    text = " ".join(SECRETS.values()) + " token=abc https://u:p@h/ --api-key zzz Authorization: Bearer abcdefgh"
    assert redact_text(redact_text(text)) == redact_text(text)


def test_the_home_folder_becomes_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jeanne"))
    assert redact_text('File "/home/jeanne/run/a.py", /home/jeannette') == 'File "~/run/a.py", /home/jeannette'


@pytest.mark.parametrize(
    "name, secret",
    [
        ("hf_token", True),
        ("--hf-token", True),
        ("WANDB_API_KEY", True),
        ("apiKey", True),
        ("clientSecret", True),
        ("password", True),
        ("sample_tokens", False),
        ("tokenizer", False),
        ("tokens_seen", False),
        ("monkey", False),
        ("kv_latent_dim", False),
    ],
)
def test_a_name_is_secret_by_its_words(name, secret):
    assert is_secret_name(name) is secret


def test_mappings_hide_texts_under_secret_names_at_any_depth_and_keep_numbers():
    value = {"env": [{"HF_TOKEN": "abc", "n": 1}], "pad_token": 0, "key": None, "auth": {"user": "x"}, "loss": 2.5}
    assert redact(value) == {
        "env": [{"HF_TOKEN": REDACTED, "n": 1}],
        "pad_token": 0,
        "key": None,
        "auth": REDACTED,
        "loss": 2.5,
    }


def test_argv_hides_the_value_of_a_secret_flag_in_both_forms_only():
    argv = [
        "train",
        "--hf-token",
        "abc",
        "--api-key=xyz",
        "--steps",
        "5",
        "--tokenizer",
        "bpe8k",
        "--url",
        "https://u:p@h",
    ]
    assert redact_argv(argv) == [
        "train",
        "--hf-token",
        REDACTED,
        f"--api-key={REDACTED}",
        "--steps",
        "5",
        "--tokenizer",
        "bpe8k",
        "--url",
        f"https://{REDACTED}@h",
    ]


def test_argv_with_a_secret_flag_that_lacks_its_value_keeps_the_next_flag():
    assert redact_argv(["--hf-token", "--steps", "5"]) == ["--hf-token", "--steps", "5"]
