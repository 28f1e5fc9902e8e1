"""What a log says of a labelling run while its actors come."""

import pytest

from jobs import terminal
from jobs.label.work import PoolState


def look(progress: terminal.LabelProgress, running: int) -> None:
    state = PoolState(wanted=4, running=running, pending=4 - running, nodes=2, forwarded_tokens=100)
    progress.look(state.running, state.wanted, state.forwarded_tokens, state.sentence())


def test_a_log_says_at_once_what_is_waited_for_and_goes_on_to_say_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.errors, "width", 200)
    with terminal.LabelProgress(10, 0) as progress:
        look(progress, 0)
        look(progress, 0)  # not again
        waits = capsys.readouterr().err
        assert waits == "label: 0 of 10 rows, 4 actors wanted, 0 running, 4 waiting for a node or loading, 2 nodes\n"
        monkeypatch.setattr(terminal, "LOG_EVERY_S", 0)
        look(progress, 3)
        progress.advance(5, 50, 100)
        few = capsys.readouterr().err.splitlines()
        assert len(few) == 2 and all("4 actors wanted, 3 running" in line for line in few)
        look(progress, 4)
        look(progress, 3)
        progress.advance(5, 50, 100)
        all_there, again, done = capsys.readouterr().err.splitlines()
        assert "actors" not in all_there and "4 actors wanted, 3 running" in again
        assert done.startswith("label: 10 of 10 rows") and "actors" not in done


def test_rows_that_are_not_planned_yet_are_not_promised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.errors, "width", 200)
    monkeypatch.setattr(terminal, "LOG_EVERY_S", 0)
    with terminal.LabelProgress(10, 0) as progress:
        progress.plan(10, False)
        progress.advance(10, 50, 100)
        progress.plan(30, True)
        progress.advance(5, 50, 100)
    some, of_all = capsys.readouterr().err.splitlines()
    assert some.startswith("label: 10 of at least 10 rows") and some.endswith("time left unknown")
    assert of_all.startswith("label: 15 of 30 rows") and "s left" in of_all
