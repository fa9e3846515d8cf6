"""Progress on a console without a terminal, and metrics on their way to the driver."""

import time

import pytest

from jobs.common import console, telemetry
from jobs.common.console import Console, Progress, format_progress
from jobs.common.mailbox import ProgressMessage
from jobs.common.telemetry import MetricBuffer


def test_progress_is_sent_seldom_and_at_the_end() -> None:
    sent: list[ProgressMessage] = []
    progress = Progress(sent.append, "packing", 1000, "pairs")
    for _ in range(1000):
        progress.update(1)
    assert [message.done for message in sent][-1] == 1000
    assert len(sent) <= 1 + time.monotonic() - progress._began
    assert "packing: 1000 of 1000 pairs" in format_progress(sent[-1])


def test_console_without_a_terminal_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Console() as quiet:
        quiet.progress("packing", 2, "pairs").update(2)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(console, "QUIET_SECONDS", -1)
        quiet.progress("packing", 2, "pairs").update(2)
        assert capsys.readouterr().out.startswith("packing: 2 of 2 pairs")


def test_buffer_sums_counters_and_replaces_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    published = []
    monkeypatch.setattr(telemetry, "add_to_counter", lambda _, value, **labels: published.append((value, labels)))
    monkeypatch.setattr(telemetry, "set_gauge", lambda _, value, **labels: published.append((value, labels)))
    buffer = MetricBuffer()
    for value in (1.0, 2.0):
        buffer.count(telemetry.SAMPLES, value, run="a")
        buffer.show(telemetry.LOSS, value, run="a")
    buffer.count(telemetry.SAMPLES, 4.0, run="b")
    buffer.publish()
    assert published == [(3.0, {"run": "a"}), (2.0, {"run": "a"}), (4.0, {"run": "b"})]
