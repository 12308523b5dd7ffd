"""Training on remote sources: dead ones, ones that are not asked, an interrupted run."""

import socket

import pytest

from sigma.core.stop import StopRequest
from sigma.core.strict_json import load_file
from tests.e2e.tiny_trainer import Make, digest, rows
from tests.unit.data.loopback import loopback_hub

DEAD = {"data_backend": "hybrid", "bootstrap_seed_batches": 0, "source_read_timeout_sec": 0.5}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every remote source refuses the connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
        monkeypatch.setenv(name, url)


def test_with_all_sources_dead_hybrid_trains_the_bits_of_bundled_and_says_so_once(make: Make, no_network: None) -> None:
    bundled, hybrid = make("bundled"), make("hybrid", **DEAD)
    bundled.run(), hybrid.run()
    assert digest(bundled, 6) == digest(hybrid, 6)
    told = [(row["event"], row["source"]) for row in rows(hybrid, "event")]
    assert sorted(told) == [("source_absent", name) for name in ("commoncrawl", "cosmopedia", "fineweb")]
    assert all(row["reason"] for row in rows(hybrid, "event"))
    last = rows(hybrid)[-1]
    assert last["data_outages"] == 3
    assert last["data_substitutions"] > 0
    assert last["data_tokens_natural"] == rows(bundled)[-1]["data_tokens_natural"]
    assert not (bundled.run_dir / "data_journal.jsonl").exists()


def test_bootstrap_batches_ask_no_network(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        hybrid = make("hybrid", **DEAD | {"bootstrap_seed_batches": 99})
        hybrid.run()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert rows(hybrid, "event") == []
    bundled = make("bundled")
    bundled.run()
    assert digest(bundled, 6) == digest(hybrid, 6)


def test_an_interrupted_hybrid_run_ends_with_the_same_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"data_backend": "hybrid", "bootstrap_seed_batches": 0, "source_read_timeout_sec": 60.0, "batch_size": 16}
    with loopback_hub(documents=45) as hub:
        for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
            monkeypatch.setenv(name, hub.url)
        whole = make("whole", **flags)
        whole.run()
        for _ in range(2):
            stop = StopRequest()
            part = make("part", stop=stop, **flags)
            step = part._step
            part._step = lambda step=step, stop=stop: (step(), stop.request())  # type: ignore[method-assign]
            part.run()
        last = make("part", **flags)
        last.run()
    assert digest(whole, 6) == digest(last, 6)
    held = [trainer.run_dir / "checkpoints" / "step-000000006" for trainer in (whole, last)]
    assert len({(folder / "stream.safetensors").read_bytes() for folder in held}) == 1
    states = [load_file(folder / "state.json")["data"] for folder in held]
    assert [name for name in states[0] if states[0][name] != states[1][name]] == ["journal"], "which notes each start"
    tokens = {name: value for name, value in rows(last)[-1].items() if name.startswith("data_tokens")}
    assert tokens == {name: value for name, value in rows(whole)[-1].items() if name.startswith("data_tokens")}
    assert {"data_tokens_fineweb", "data_tokens_commoncrawl"} & tokens.keys()
