"""A folder of its own for every test: working directory, log files, caches, environment."""

import contextlib
import os
import sys
import types
from pathlib import Path

import pytest

from sigma.config.root import RunConfig
from sigma.train.crash import CrashContext
from sigma.train.progress import Outcome


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; nothing that a test does reaches the user's own folders or the next test."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, folder in (("XDG_STATE_HOME", "state"), ("XDG_CACHE_HOME", "cache"), ("XDG_DATA_HOME", "data")):
        os.environ[name] = str(tmp_path / folder)
    for name in ("APPIMAGE", "APPDIR", "SIGMA_LAUNCH_DEPTH"):
        os.environ.pop(name, None)
    return work


class StandIn:
    """In the place of `sigma.build`: remembers what it was given and ends as it is told."""

    def __init__(self) -> None:
        self.config: RunConfig | None = None
        self.origins: dict[str, str] = {}
        self.fail_build: BaseException | None = None
        self.fail_run: BaseException | None = None
        self.end = ("finished", 0, None)

    def build_trainer(self, config, origins, *, listeners, stop, lock):
        assert lock.path.parent == config.run.output_dir.resolve(), "taken before anything heavy is loaded"
        self.config, self.origins = config, dict(origins)
        if self.fail_build:
            raise self.fail_build
        return self

    def run(self) -> Outcome:
        assert self.config is not None
        if self.fail_run:
            raise self.fail_run
        state, code, name = self.end
        return Outcome(state, 7, self.config.run.output_dir, code, name)

    def crash_context(self) -> CrashContext:
        return CrashContext(step=7)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    module = types.ModuleType("sigma.build")
    module.build_trainer = stand_in.build_trainer
    monkeypatch.setitem(sys.modules, "sigma.build", module)
    monkeypatch.setattr("sigma_app.training.keep_awake", lambda say: contextlib.nullcontext())
    return stand_in
