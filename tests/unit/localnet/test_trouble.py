"""The simulator's forks and faults: drawn from a seed, and never against what is final."""

from collections import Counter
from itertools import pairwise

import pytest

from infra.localnet.trouble import main
from infra.localnet.trouble_faults import SPELL_SLOTS, Fault, Faults, Kind
from infra.localnet.trouble_forks import Forks


def live(seed: int, chance: float = 0.3, slots: int = 300) -> tuple[Forks, list[set[str]]]:
    """Live some slots, one chain transaction landing in each; return the truth after every one."""
    forks = Forks(seed, 1_000)
    truths = []
    for number in range(slots):
        forks.register(f"transfer {number}")
        forks.advance(chance=chance)
        truths.append(forks.truth())
    return forks, truths


@pytest.mark.parametrize("seed", range(20))
def test_what_is_final_stays(seed: int) -> None:
    forks, truths = live(seed)
    for before, after in pairwise(truths):
        assert before <= after
    assert forks.rolled_back > 0


def test_of_what_forks_remove_some_lands_again_and_some_never() -> None:
    forks, truths = live(7)
    for _ in range(20):
        forks.advance(chance=0)
    assert forks.is_decided()
    landings = [forks.landing(f"transfer {number}") for number in range(300)]
    again = [one for one in landings if one and one.slot and one.slot > one.first_slot]
    gone = [one for one in landings if one and one.slot is None]
    assert len(again) > 10
    assert len(gone) > 10
    assert len(forks.truth()) == 300 - len(gone) > len(truths[-1])


def test_a_seed_brings_the_same_forks_and_another_brings_others() -> None:
    assert live(3)[1] == live(3)[1] != live(4)[1]


def test_without_forks_everything_is_final_in_its_turn() -> None:
    forks, truths = live(1, chance=0, slots=20)
    assert forks.rolled_back == 0
    assert truths[-1] == {f"transfer {number}" for number in range(13)}


def test_what_was_there_before_is_final() -> None:
    forks = Forks(1, 1_000)
    forks.register("old", is_old=True)
    assert forks.truth() == {"old"}
    assert forks.register("old").ordinal == 0


def calls(seed: int, **how: int) -> list[tuple[Fault, int]]:
    faults = Faults(seed, **how)  # type: ignore[arg-type]
    answers = []
    for slot in range(300):
        faults.enter(slot)
        answers += [faults.of_call("getSlot"), faults.of_call("getTransaction")]
    return answers


def test_faults_replay_from_their_seed_and_all_kinds_come() -> None:
    assert calls(5) == calls(5) != calls(6)
    assert set(Counter(fault for fault, _ in calls(5))) == set(Fault)


def test_what_else_is_asked_in_a_slot_changes_no_answer() -> None:
    one, other = Faults(5), Faults(5)
    for slot in range(100):
        one.enter(slot)
        other.enter(slot)
        other.of_call("getSlot")
        assert one.of_call("getTransaction") == other.of_call("getTransaction")
        assert one.hides(3) == other.hides(3)


def test_trouble_ends_when_it_is_told_to() -> None:
    assert all(fault is Fault.NONE for fault, _ in calls(5, calm_after=100)[200:])
    faults = Faults(5)
    spells = set()
    for spell in range(50):
        faults.enter(spell * SPELL_SLOTS)
        spells.add(faults.kinds())
    assert frozenset() in spells
    assert frozenset().union(*spells) == set(Kind)
    faults.is_calm = True
    assert (faults.kinds(), faults.fork_chance(), faults.lag_slots()) == (frozenset(), 0.0, 0)


def test_the_command_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(kind.value in said for kind in Kind)
    with pytest.raises(SystemExit):
        main(["--seed", "1", "--kinds", "rain"])
