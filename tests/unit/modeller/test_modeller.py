"""The modeller builds what is due, survives what fails, and says it is alive only when it is."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra import modeller
from infra.modeller import (
    DbtProject,
    Modeller,
    ModellerSettings,
    ModellingError,
    Outcome,
    Schedule,
    Sight,
    Work,
    backoff_s,
    failures_of,
)

T1 = datetime(2026, 2, 1, 12, 0, tzinfo=UTC)
T2 = datetime(2026, 2, 1, 12, 5, tzinfo=UTC)
QUIET, PENDING = Sight(is_pending=False, committed_through=T1), Sight(True, T1)


def built_schedule() -> Schedule:
    schedule = Schedule(interval_s=15, test_interval_s=600)
    schedule.done(Work.PROJECT, QUIET, "files", began_s=100, slot=7)
    return schedule


def test_the_first_build_and_changed_files_take_the_whole_project() -> None:
    schedule = Schedule(interval_s=15, test_interval_s=600)
    assert schedule.due(None, "files", 0, 7) is Work.PROJECT
    assert built_schedule().due(QUIET, "other files", 101, 7) is Work.PROJECT


def test_nothing_is_done_while_nothing_moves() -> None:
    assert built_schedule().due(QUIET, "files", 100_000, 7) is None


def test_arrivals_are_built_once_an_interval() -> None:
    schedule = built_schedule()
    assert schedule.due(PENDING, "files", 114.9, 7) is None
    assert schedule.due(PENDING, "files", 115, 7) is Work.MARTS


def test_a_new_day_may_begin_at_any_quarter_of_an_hour() -> None:
    assert built_schedule().due(QUIET, "files", 115, 8) is Work.MARTS


def test_heartbeats_move_the_freshness_only() -> None:
    schedule = built_schedule()
    moved = Sight(is_pending=False, committed_through=T2)
    assert schedule.due(moved, "files", 110, 7) is None
    assert schedule.due(moved, "files", 115, 7) is Work.FRESHNESS
    schedule.done(Work.FRESHNESS, moved, "files", began_s=115, slot=7)
    assert schedule.due(moved, "files", 200, 7) is None
    # A build of the marts does not wait for an interval that only the freshness has used up.
    assert schedule.due(Sight(True, T2), "files", 116, 7) is Work.MARTS


def test_tests_are_due_once_an_interval() -> None:
    schedule = Schedule(interval_s=15, test_interval_s=600)
    assert [schedule.tests_due(s) for s in (0, 599, 600, 601, 1200)] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_back_off_doubles_and_is_bounded() -> None:
    for failures in range(1, 40):
        rest = backoff_s(15, failures)
        assert 0 < rest <= modeller.BACKOFF_LIMIT_S
        assert rest >= 0.5 * min(15 * 2 ** (failures - 1), modeller.BACKOFF_LIMIT_S)


def result(name: str, status: str, message: str) -> SimpleNamespace:
    return SimpleNamespace(node=SimpleNamespace(name=name), status=status, message=message)


def test_failures_are_named_without_row_data() -> None:
    message = (
        "Database Error in model hourly_volume (models/marts/hourly_volume.sql)\n"
        '  duplicate key value violates unique constraint "x"\n'
        "  DETAIL:  Key (hour, merchant_id)=(2026-01-31 17:00:00+00, mer_secret) already exists."
    )
    answer = SimpleNamespace(
        exception=None,
        success=False,
        result=SimpleNamespace(
            results=[
                result("stg_merchants", "success", "CREATE VIEW"),
                result("hourly_volume", "error", message),
                result("peak_hours", "skipped", ""),
                result("unique_x", "fail", "Got 3 results"),
            ]
        ),
    )
    assert failures_of(answer) == {
        "hourly_volume": (
            "Database Error in model hourly_volume (models/marts/hourly_volume.sql): "
            'duplicate key value violates unique constraint "x"'
        ),
        "unique_x": "Got 3 results",
    }


def test_an_exception_and_an_unexplained_end_are_failures_too() -> None:
    broken = SimpleNamespace(exception=ValueError("no profile\nmore"), success=False, result=None)
    assert failures_of(broken) == {"dbt": "no profile"}
    silent = SimpleNamespace(exception=None, success=False, result=None)
    assert "without success" in failures_of(silent)["dbt"]


def test_an_interrupt_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        failures_of(SimpleNamespace(exception=KeyboardInterrupt(), success=False, result=None))


@dataclass
class ScriptedProject:
    """A project whose builds end as the script says; the last ending repeats."""

    endings: list[Outcome]
    on_build: Callable[[int], None] = lambda _: None
    built: list[Work] = field(default_factory=list)
    tested: int = 0

    def fingerprint(self) -> str:
        return "files"

    def build(self, work: Work) -> Outcome:
        self.built.append(work)
        self.on_build(len(self.built))
        return self.endings[min(len(self.built), len(self.endings)) - 1]

    def test(self) -> Outcome:
        self.tested += 1
        return Outcome({"unique_x": "Got 1 result"}, 0.1)


@dataclass
class ScriptedWarehouse:
    """A warehouse that always has something new, or is away."""

    is_away: bool = False

    def look(self) -> Sight:
        if self.is_away:
            message = "warehouse: connection refused"
            raise ModellingError(message)
        return PENDING


GOOD, BAD = Outcome({}, 0.1), Outcome({"peak_hours": "division by zero"}, 0.1)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    words: dict[str, list[str]] = {"ready": [], "alive": []}
    monkeypatch.setattr(modeller, "notify_ready", words["ready"].append)
    monkeypatch.setattr(modeller, "notify_alive", words["alive"].append)
    monkeypatch.setattr(modeller, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(modeller, "BACKOFF_LIMIT_S", 0.001)
    return words


def made(project: ScriptedProject, warehouse: ScriptedWarehouse | None = None) -> Modeller:
    settings = ModellerSettings.model_validate(
        {
            "password": "x",
            "interval_s": 0.001,
            "test_interval_s": 0.001,
            "failure_limit": 3,
            "DBT_TARGET_PATH": "unused",
            "DBT_LOG_PATH": "unused",
        }
    )
    return Modeller(settings, project, warehouse or ScriptedWarehouse())


def test_it_is_ready_after_the_first_good_build_and_not_before(
    told: dict[str, list[str]],
) -> None:
    ready_at_build: list[int] = []

    def on_build(count: int) -> None:
        ready_at_build.append(len(told["ready"]))
        if count == 4:
            loop.stopping.set()

    project = ScriptedProject([BAD, GOOD], on_build)
    loop = made(project)
    assert loop.run() == 0
    assert ready_at_build == [0, 0, 1, 1]
    assert project.built == [Work.PROJECT, Work.PROJECT, Work.MARTS, Work.MARTS]
    assert project.tested > 0
    assert told["alive"]


def test_it_gives_up_after_too_many_failures_in_a_row(told: dict[str, list[str]]) -> None:
    project = ScriptedProject([GOOD, BAD])
    assert made(project).run() == 1
    # After a failure the whole project is built, so that a view that is gone comes back.
    assert project.built == [Work.PROJECT, Work.MARTS, Work.PROJECT, Work.PROJECT]
    assert len(told["ready"]) == 1


def test_one_success_forgives_the_failures_before_it(told: dict[str, list[str]]) -> None:
    assert not told["ready"]

    def on_build(count: int) -> None:
        if count == 7:
            loop.stopping.set()

    project = ScriptedProject([BAD, BAD, GOOD, BAD, BAD, GOOD, GOOD], on_build)
    loop = made(project)
    assert loop.run() == 0


def test_a_warehouse_that_is_away_counts_as_a_failure(told: dict[str, list[str]]) -> None:
    assert made(ScriptedProject([GOOD]), ScriptedWarehouse(is_away=True)).run() == 1
    assert not told["ready"]


def test_it_says_that_it_is_alive_while_a_long_build_works(
    told: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeller, "NOTIFY_EVERY_S", 0.001)
    enough = threading.Event()

    def alive(status: str) -> None:
        told["alive"].append(status)
        if told["alive"].count("building: whole project") >= 3:
            enough.set()

    monkeypatch.setattr(modeller, "notify_alive", alive)

    def on_build(_: int) -> None:
        assert enough.wait(10)
        loop.stopping.set()

    loop = made(ScriptedProject([GOOD], on_build))
    assert loop.run() == 0


def test_a_build_beyond_its_deadline_ends_the_process(
    told: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not told["ready"]
    ended: list[int] = []
    gone = threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        gone.set()

    monkeypatch.setattr("infra.modeller.os._exit", end)
    monkeypatch.setattr(modeller, "NOTIFY_EVERY_S", 0.001)

    def on_build(_: int) -> None:
        assert gone.wait(10)
        loop.stopping.set()

    loop = made(ScriptedProject([GOOD], on_build))
    loop.settings = loop.settings.model_copy(update={"build_deadline_s": 0.01})
    assert loop.run() == 0
    assert ended == [modeller.OVERDUE_STATUS]


def test_sigterm_interrupts_a_build_and_ends_well(told: dict[str, list[str]]) -> None:
    def on_build(_: int) -> None:
        loop.stop(signal.SIGTERM)

    loop = made(ScriptedProject([GOOD], on_build))
    assert loop.run() == 0
    assert not told["ready"]


def test_the_fingerprint_follows_the_projects_files(tmp_path: Path) -> None:
    model = tmp_path / "models" / "a.sql"
    model.parent.mkdir()
    model.write_text("SELECT 1")
    settings = ModellerSettings.model_validate(
        {
            "password": "x",
            "DBT_PROJECT_DIR": tmp_path,
            "DBT_TARGET_PATH": tmp_path / "target",
            "DBT_LOG_PATH": tmp_path / "logs",
        }
    )
    project = DbtProject(settings)
    before = project.fingerprint()
    assert project.fingerprint() == before
    model.write_text("SELECT 1, 2")
    assert project.fingerprint() != before
