"""Shared by all tests: scratch folders, victims, a ckpt of the test's own. No test touches a process that it did not start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import bpf
from tests.harness import SOAK, Ckpt, Skipped, Victim, progress, soak, time_is_up

Ckpt.forks = True

TOLD_LINES, TOLD_COLUMNS = 40, 240  #: of what failed, at once; the rest stands at the end


@pytest.fixture
def ckpt(tmp_path: Path) -> Ckpt:
    """The command with a store and a run-time folder in the test's scratch folder."""
    return Ckpt(tmp_path)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """victim("churn") -> a workload that is READY; ended after the test."""
    with ExitStack() as stack:

        def start(name: str, **options: object) -> Victim:
            try:
                return stack.enter_context(Victim.start(name, tmp_path / f"victim-{name}-{os.urandom(3).hex()}", **options))
            except Skipped as reason:
                pytest.skip(f"{name}: {reason}")

        yield start


@pytest.fixture(scope="session", autouse=True)
def bpf_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """BPF programs are compiled once for all tests, into a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKPT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def usable(bpf_cache: None) -> None:
    """For tests that need BPF; where it cannot be used the reason is told."""
    if (error := bpf.missing()) is not None:
        pytest.skip(f"BPF cannot be used: {error}")


def pytest_report_header() -> list[str]:
    if not SOAK:
        return []
    return [f"soak: at most {soak.MINUTES:g} minutes (CKPT_SOAK_MINUTES); CKPT_SOAK_SEED={soak.SEED} takes the same choices again"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time_is_up():
        pytest.skip(f"time is up: not begun within {soak.MINUTES:g} minutes")


class Told:
    """What fails is told when it fails: the run goes on for long, and may be cut."""

    def __init__(self, config: pytest.Config) -> None:
        self.plugins = config.pluginmanager

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not soak.HELPS and (report.when == "call" or report.outcome != "passed"):
            progress(f"{report.outcome} {report.nodeid} ({report.duration:.1f} s)")
        reporter = self.plugins.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(f"failed {report.nodeid} ({report.when}, {report.duration:.1f} s)")
            for line in report.longreprtext.splitlines()[-TOLD_LINES:]:
                reporter.write_line(line[:TOLD_COLUMNS])


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Told(config), "told")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A soak test runs in `make soak` alone. One that takes the fixture `victim` needs the right to ptrace and, for injection, root."""
    if not SOAK:
        long = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if os.geteuid() == 0:
        return
    for item in items:
        if "victim" in getattr(item, "fixturenames", ()) or "memops" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="needs root: acts on other processes"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip always says why; CKPT_NO_SKIP=1 turns any into a failure of the run (for CI)."""
    skipped = terminalreporter.stats.get("skipped", [])
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        terminalreporter.write_line(f"skipped {report.nodeid}: {reason}")
    if SOAK:
        terminalreporter.write_line(f"soak: {soak.seconds() / 60:.1f} minutes, CKPT_SOAK_SEED={soak.SEED}; done:")
        for what, number in sorted(soak.done.items()):
            terminalreporter.write_line(f"{number:8,}  {what}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of several that work side by side has come to its end: what it did is told with the rest."""
    soak.done.update(getattr(node, "workeroutput", {}).get("done", {}))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if soak.HELPS:
        session.config.workeroutput["done"] = dict(soak.done)  # type: ignore[attr-defined]
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CKPT_NO_SKIP") and reporter is not None and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
