"""The rules as data: the shipped ones hold, every mistake is one sentence, versions tell."""

import re

import pytest

from streams.risk.rules import RulesError, explanation, load, parse
from tests.fixtures.risk import RULES, rules

ONE = RULES.split("[[rule]]")[1]


def changed(old: str, new: str) -> list[str]:
    """Return the mistakes of the first rule alone, with a piece of its text replaced."""
    assert old in ONE
    with pytest.raises(RulesError) as caught:
        parse("[[rule]]" + ONE.replace(old, new))
    return caught.value.mistakes


def test_the_shipped_rules_can_be_used() -> None:
    shipped = load()
    assert {rule.kind for rule in shipped.rule} == {
        "velocity",
        "outlier",
        "first_seen",
        "structuring",
    }
    assert {rule.by for rule in shipped.rule if rule.kind == "velocity"} == {
        "merchant",
        "wallet",
        "country",
    }
    assert re.fullmatch("[0-9a-f]{16}", shipped.version)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("limit = 3", "limit = 0", "rule 'wallet-velocity': limit: .* greater than or equal to 1"),
        ("limit = 3", "limit = 3.5", "rule 'wallet-velocity': limit: .* valid integer"),
        ("limit = 3\n", "", "rule 'wallet-velocity': limit: Field required"),
        ("limit = 3", "limit = 3\nlimits = 4", "rule 'wallet-velocity': limits: Extra inputs"),
        ('kind = "velocity"', 'kind = "speed"', "rule 'wallet-velocity': .*'speed'.*'velocity'"),
        ('by = "wallet"', 'by = "planet"', "rule 'wallet-velocity': by: .*'country'"),
        ("score = 50", "score = 101", "rule 'wallet-velocity': score: .* less than or equal"),
        ('"wallet-velocity"', '"Wallet Velocity"', "rule 'Wallet Velocity': id: .* pattern"),
        ("{count} payments", "{kount} payments", r"rule 'wallet-velocity': en uses \{kount\}"),
        ("{count} payments", "{count payments", "rule 'wallet-velocity': en cannot be filled in"),
        ("thanh toán {count}", "thanh toán {sum_vnd}", r"vi uses \{sum_vnd\}, which velocity"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_rule_and_field(old: str, new: str, told: str) -> None:
    (mistake,) = changed(old, new)
    assert re.search(told, mistake), mistake


def test_all_mistakes_are_told_at_once() -> None:
    assert len(changed('severity = "medium"\nscore = 50', 'severity = "so"\nscore = 0')) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "rule: Field required"),
        ("rule = []", "there must be 1 to 100 rules, not 0"),
        ("rule = [3]", "rule number 1: "),
        ("[[rule]\n", "the rules are not TOML"),
        ("[[rule]]" + ONE + "[[rule]]" + ONE, "more than one rule is named wallet-velocity"),
        (RULES.replace("minimum = 10", "minimum = 21"), "minimum is more than the history"),
    ],
)
def test_a_file_that_is_no_rule_set_is_refused(text: str, told: str) -> None:
    with pytest.raises(RulesError) as caught:
        parse(text)
    assert told in caught.value.mistakes[0]


def test_the_version_is_of_what_rules_say_and_not_of_how_they_are_written() -> None:
    assert parse("# a remark\n" + RULES.replace("1_000_000", "1000000")).version == rules().version
    assert parse(RULES.replace("limit = 3", "limit = 4")).version != rules().version
    assert parse(RULES.replace("by one wallet", "by a wallet")).version != rules().version


def test_explanations_have_the_figures_in_the_languages_own_way() -> None:
    velocity, _, unusual, *_ = rules().rule
    told = explanation(velocity, {"count": 7, "limit": 5, "window_minutes": 1440})
    assert told == {
        "en": "7 payments by one wallet in 24 hours; the limit is 5.",
        "vi": "Một ví thanh toán 7 lần trong 24 giờ; giới hạn là 5 lần.",
    }
    told = explanation(velocity, {"count": 1234, "limit": 5, "window_minutes": 1})
    assert told["en"].startswith("1,234 payments by one wallet in 1 minute;")
    assert told["vi"].startswith("Một ví thanh toán 1.234 lần trong 1 phút;")
    figures = {"amount_vnd": 9_800_000, "usual_vnd": 95_000, "times": 103, "payments": 20}
    told = explanation(unusual, figures)
    assert told["en"] == "₫\u00a09,800,000 is 103 times ₫\u00a095,000, the median of the last 20."
    assert told["vi"].startswith("₫\u00a09.800.000 gấp 103 lần ₫\u00a095.000")
