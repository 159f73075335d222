"""Live customers as the seed decides them."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.demo.settings import DemoError
from infra.demo.traffic import VisitNumbers
from infra.demo.visits import Conduct, pause_s, visit

EVENING = datetime(2026, 5, 5, 13, tzinfo=UTC)  # 20:00 in Vietnam
NIGHT = datetime(2026, 5, 5, 20, tzinfo=UTC)  # 03:00


def test_the_same_seed_brings_the_same_customers() -> None:
    assert [visit(1, n, EVENING) for n in range(50)] == [visit(1, n, EVENING) for n in range(50)]
    assert [visit(1, n, EVENING) for n in range(50)] != [visit(2, n, EVENING) for n in range(50)]


def test_a_thousand_visits_show_every_conduct_shop_and_a_fitting_amount() -> None:
    visits = [visit(5, number, EVENING) for number in range(1000)]
    conducts = Counter(who.conduct for who in visits)
    assert set(conducts) == set(Conduct)
    assert conducts[Conduct.PAY] > 750
    assert len({who.profile.slug for who in visits}) == 6
    for who in visits:
        low, high = who.profile.ticket_limits_vnd
        assert low <= who.amount_vnd <= high
        if who.conduct is Conduct.UNDERPAY:
            assert who.sent_permille < 1000
        elif who.conduct is Conduct.OVERPAY:
            assert who.sent_permille > 1000
        else:
            assert who.sent_permille == 1000


def test_pauses_follow_the_rate_and_lightly_the_hour() -> None:
    def mean_s(at: datetime, rate: float) -> float:
        return sum(pause_s(3, n, at, rate) for n in range(2000)) / 2000

    assert mean_s(EVENING, 12) == pytest.approx(mean_s(EVENING, 6) / 2)
    assert mean_s(EVENING, 6) < mean_s(NIGHT, 6) < 10 / 0.55


def test_visit_numbers_survive_a_restart_and_are_given_once(tmp_path: Path) -> None:
    first = VisitNumbers(tmp_path / "next", 7)
    taken = [first.take() for _ in range(3)]
    second = VisitNumbers(tmp_path / "next", 7)
    assert [*taken, second.take()] == [0, 1, 2, 3]
    assert VisitNumbers(tmp_path / "next", 8).take() == 0


def test_a_damaged_number_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "next-7").write_text("many")
    with pytest.raises(DemoError, match="damaged"):
        VisitNumbers(tmp_path / "next", 7)


def test_two_processes_share_the_numbers_of_a_folder(tmp_path: Path) -> None:
    one, two = VisitNumbers(tmp_path / "next", 7), VisitNumbers(tmp_path / "next", 7)
    assert [one.take(), two.take(), two.take(), one.take()] == [0, 1, 2, 3]
