"""When a leader counts as silent, by the clock of who watches."""

from datetime import UTC, datetime, timedelta

from ingest.standby import Leader, Silence, release

MOMENT = datetime(2026, 11, 23, tzinfo=UTC)


def leader(beat: int, backend: int = 7) -> Leader:
    return Leader(backend, "there", 1, MOMENT + timedelta(seconds=beat))


def test_silence_grows_until_a_beat_comes() -> None:
    silence = Silence()
    seen = [
        (silence.of(leader(beat), looked_s), silence.beaten)
        for beat, looked_s in ((0, 100.0), (0, 104.0), (1, 105.0), (1, 116.0))
    ]
    # One look shows no life; a beat that moved does.
    assert seen == [(0, False), (4, False), (0, True), (11, True)]


def test_another_leader_is_judged_anew() -> None:
    silence = Silence()
    silence.of(leader(0), 0.0)
    silence.of(leader(1), 1.0)
    assert silence.of(leader(0, backend=8), 30.0) == 0
    assert not silence.beaten, "that it follows one that lived says nothing of this one"


def test_a_watcher_that_was_frozen_accuses_nobody() -> None:
    silence = Silence()
    silence.of(leader(0), 0.0)
    assert silence.of(leader(60), 60.0) == 0


def test_a_leader_without_a_row_is_silent_too() -> None:
    silence = Silence()
    nameless = Leader(7, None, None, None)
    silence.of(nameless, 0.0)
    assert silence.of(nameless, 12.0) == 12
    assert str(nameless) == "PostgreSQL process 7"
    assert str(leader(0)) == "there, process 1"


def test_the_release_is_that_of_the_project_file() -> None:
    assert release().count(".") == 2
