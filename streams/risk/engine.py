"""Judges payments by the rules. Pure: the same payments in the same order give the same alerts.

Each rule remembers for itself, under a key of its own, so what one makes of a payment depends on
one record. A record notes the last payment it knows; one that it knows already is not judged again.
So a reader that keeps an alert before the record that knows of it may die between the two, or
between two records, and go on from any earlier place: it finds what it would have found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ingest.contract import timestamp_text
from streams.risk.payments import Payment
from streams.risk.rules import Rule, RuleSet, explanation
from streams.risk.signals import Figures

ALERT_SCHEMA: Final = 1

Recall = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Alert:
    """One payment that one rule found; the id is the same whenever it is found again."""

    merchant_id: str
    payment_id: str
    event_id: str
    rule_id: str
    rule_version: int
    rule_set: str
    severity: str
    score: int
    reasons: dict[str, Any]
    occurred_at: str

    @property
    def id(self) -> str:
        """The triggering event, the rule and the version of all rules."""
        return f"{self.event_id}:{self.rule_id}:{self.rule_set}"

    def to_bytes(self) -> bytes:
        """Return the alert's event: UTF-8 JSON."""
        return orjson.dumps(
            {
                "schema": ALERT_SCHEMA,
                "id": self.id,
                "merchant_id": self.merchant_id,
                "payment_id": self.payment_id,
                "event_id": self.event_id,
                "rule_id": self.rule_id,
                "rule_version": self.rule_version,
                "rule_set": self.rule_set,
                "severity": self.severity,
                "score": self.score,
                "reasons": self.reasons,
                "occurred_at": self.occurred_at,
            }
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a payment led to: alerts, and the records that know of it."""

    alerts: tuple[Alert, ...]
    records: dict[bytes, bytes]


class Engine:
    """A rule set, ready to judge."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules.rule
        self._version = rules.version

    def judge(self, payment: Payment, recall: Recall) -> Verdict:
        """Judge a payment by what `recall` remembers under a key."""
        alerts: list[Alert] = []
        records: dict[bytes, bytes] = {}
        for rule, key in self._concerned(payment):
            record = recall(key)
            known, memory = (0, None) if record is None else orjson.loads(record)
            if known >= payment.sequence:
                continue
            after, figures = rule.weigh(memory, payment)
            if figures is not None:
                alerts.append(self._alert(rule, payment, figures))
            if after is not memory:
                # Copied, because what orjson returns holds on to the kilobytes it was written in.
                records[key] = bytes(memoryview(orjson.dumps([payment.sequence, after])))
        return Verdict(tuple(alerts), records)

    def _concerned(self, payment: Payment) -> Iterator[tuple[Rule, bytes]]:
        """Give the rules that can judge a payment, each with the key of its record."""
        whose = {"merchant": "", "wallet": payment.wallet, "country": payment.country}
        for rule in self._rules:
            group = whose[rule.by]
            if group is not None:
                key = f"{rule.id}/{rule.version}/{payment.merchant_id}/{group}"
                yield rule, key.encode()

    def _alert(self, rule: Rule, payment: Payment, figures: Figures) -> Alert:
        return Alert(
            merchant_id=payment.merchant_id,
            payment_id=payment.payment_id,
            event_id=payment.event_id,
            rule_id=rule.id,
            rule_version=rule.version,
            rule_set=self._version,
            severity=rule.severity,
            score=rule.score,
            reasons={**explanation(rule, figures), "figures": figures},
            occurred_at=timestamp_text(payment.at),
        )
