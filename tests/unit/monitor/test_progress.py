import sys

import pytest
import structlog
from structlog.testing import capture_logs

from hilander_dist.monitor import progress as progress_module
from hilander_dist.monitor.progress import LOG_EVERY_S, LOG_FROM_S, Progress


class Clock:
    """A time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_a_short_stage_is_silent(clock: Clock) -> None:
    with capture_logs() as lines, Progress().stage("search", 3) as advance:
        clock.now += LOG_FROM_S / 2
        advance(3)
    assert lines == []


def test_a_long_stage_logs_how_far_it_is_and_its_end(clock: Clock) -> None:
    with capture_logs() as lines, Progress().stage("search", 9) as advance:
        advance(2)
        clock.now += LOG_EVERY_S + 1
        advance(1)
        clock.now += LOG_EVERY_S / 2
        advance(2)
        clock.now += LOG_EVERY_S
        advance(4)
    assert [(line["event"], line.get("tasks_done")) for line in lines] == [
        ("stage running", 3),
        ("stage running", 9),
        ("stage done", None),
    ]
    assert all((line["stage"], line["tasks"]) == ("search", 9) for line in lines)
    assert lines[-1]["seconds"] == 2.5 * LOG_EVERY_S + 1


def test_a_stage_that_fails_does_not_log_that_it_is_done(clock: Clock) -> None:
    def fail() -> None:
        with Progress().stage("search", 9):
            clock.now += LOG_FROM_S * 2
            raise KeyError

    with capture_logs() as lines, pytest.raises(KeyError):
        fail()
    assert lines == []


def test_a_terminal_shows_bars_instead_of_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    structlog.reset_defaults()
    with capture_logs() as lines, Progress().stage("search", 4) as advance:
        clock.now += LOG_EVERY_S + 1
        advance(3)
        advance(1)
    assert lines == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "search" in captured.err
    assert "4/4" in captured.err
