"""The rules as data: what is looked for, how heavy it weighs, and how it is explained.

Read from TOML and checked whole: RulesError says every mistake in one sentence each. A rule set has
a version, the digest of what its rules say, whatever their layout and comments.
"""

import hashlib
import string
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streams.risk import signals
from streams.risk.payments import Payment
from streams.risk.signals import Figures, Memory, Weighed

RULES_FILE: Final = Path(__file__).parent / "rules.toml"
DIGEST_LETTERS: Final = 16
MOST_RULES: Final = 100

By = Literal["merchant", "wallet", "country"]
Severity = Literal["low", "medium", "high"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Dong = Annotated[int, Field(ge=1, le=10**15)]
Minutes = Annotated[int, Field(ge=1, le=43_200)]
Percent = Annotated[int, Field(ge=1, le=100)]
Words = Annotated[str, Field(min_length=1, max_length=300)]


class RulesError(Exception):
    """The rules cannot be used; one sentence for each mistake."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(mistakes))


class Rule(BaseModel):
    """What all rules have; `by` is whose payments are looked at together."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    figures: ClassVar[frozenset[str]]
    """The names that an explanation may use in braces."""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    version: Count
    kind: str
    by: By
    severity: Severity
    score: Annotated[int, Field(ge=1, le=100)]
    en: Words
    vi: Words

    @model_validator(mode="after")
    def _explains_with_its_figures(self) -> Self:
        for language in ("en", "vi"):
            try:
                used = {name for _, name, _, _ in string.Formatter().parse(self.words(language))}
            except ValueError as error:
                raise ValueError(f"{language} cannot be filled in: {error}") from error
            if unknown := used - self.figures - {None}:
                names = ", ".join(sorted(f"{{{name}}}" for name in unknown))
                raise ValueError(f"{language} uses {names}, which {self.kind} has not")
        return self

    def words(self, language: str) -> str:
        """Return the explanation in a language, not filled in."""
        return self.vi if language == "vi" else self.en

    def weigh(self, memory: Memory, payment: Payment) -> Weighed:
        """Return what is remembered after a payment, and the figures of a finding."""
        raise NotImplementedError


class Velocity(Rule):
    """More than `limit` payments in a window."""

    figures = frozenset({"count", "limit", "window"})
    kind: Literal["velocity"]
    window_minutes: Minutes
    limit: Count

    def weigh(self, memory: Memory, payment: Payment) -> Weighed:
        """See `signals.velocity`."""
        return signals.velocity(
            memory, payment.at_us, window_minutes=self.window_minutes, limit=self.limit
        )


class Outlier(Rule):
    """An amount far above what is usual for the merchant."""

    figures = frozenset({"amount_vnd", "usual_vnd", "times", "payments"})
    kind: Literal["outlier"]
    by: Literal["merchant"] = "merchant"
    history: Annotated[int, Field(ge=10, le=1000)]
    minimum: Annotated[int, Field(ge=10, le=1000)]
    deviations: Count
    least_spread_percent: Percent
    at_least_vnd: Dong

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.minimum > self.history:
            raise ValueError("minimum is more than the history that is kept")
        return self

    def weigh(self, memory: Memory, payment: Payment) -> Weighed:
        """See `signals.outlier`."""
        return signals.outlier(
            memory,
            payment.amount_vnd,
            history=self.history,
            minimum=self.minimum,
            deviations=self.deviations,
            least_spread_percent=self.least_spread_percent,
            at_least=self.at_least_vnd,
        )


class FirstSeen(Rule):
    """A large payment by a wallet that never paid the merchant before."""

    figures = frozenset({"amount_vnd", "limit_vnd"})
    kind: Literal["first_seen"]
    by: Literal["wallet"] = "wallet"
    at_least_vnd: Dong

    def weigh(self, memory: Memory, payment: Payment) -> Weighed:
        """See `signals.first_seen`."""
        return signals.first_seen(memory, payment.amount_vnd, at_least=self.at_least_vnd)


class Structuring(Rule):
    """Payments just below a threshold that together reach it."""

    figures = frozenset({"count", "sum_vnd", "threshold_vnd", "window"})
    kind: Literal["structuring"]
    window_minutes: Minutes
    threshold_vnd: Dong
    near_percent: Percent
    minimum: Annotated[int, Field(ge=2, le=1000)]

    def weigh(self, memory: Memory, payment: Payment) -> Weighed:
        """See `signals.structuring`."""
        return signals.structuring(
            memory,
            payment.at_us,
            payment.amount_vnd,
            window_minutes=self.window_minutes,
            threshold=self.threshold_vnd,
            near_percent=self.near_percent,
            minimum=self.minimum,
        )


AnyRule = Annotated[Velocity | Outlier | FirstSeen | Structuring, Field(discriminator="kind")]


class RuleSet(BaseModel):
    """All rules, in the order of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: tuple[AnyRule, ...]

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        if not 1 <= len(self.rule) <= MOST_RULES:
            raise ValueError(f"there must be 1 to {MOST_RULES} rules, not {len(self.rule)}")
        ids = [one.id for one in self.rule]
        if twice := sorted({one for one in ids if ids.count(one) > 1}):
            raise ValueError(f"more than one rule is named {', '.join(twice)}")
        return self

    @property
    def version(self) -> str:
        """The digest of what the rules say."""
        said = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(said).hexdigest()[:DIGEST_LETTERS]


def load(path: Path = RULES_FILE) -> RuleSet:
    """Read and check a file of rules; raises RulesError."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError([f"{path.name} cannot be read: {error}"]) from error


def parse(text: str) -> RuleSet:
    """Check the text of a file of rules; raises RulesError."""
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError([f"the rules are not TOML: {error}"]) from error
    try:
        return RuleSet.model_validate(told)
    except ValidationError as error:
        raise RulesError([_sentence(one, told) for one in error.errors()]) from error


def _sentence(mistake: Any, told: dict[str, Any]) -> str:  # noqa: ANN401 - pydantic's own record
    """Say a mistake with the rule and the field at fault."""
    place, said = list(mistake["loc"]), mistake["msg"].removeprefix("Value error, ")
    if len(place) < 2 or place[0] != "rule" or not isinstance(place[1], int):
        return ": ".join([*(str(one) for one in place), said])
    rule = told["rule"][place[1]]
    name = rule.get("id") if isinstance(rule, dict) else None
    where = f"rule {name!r}" if isinstance(name, str) else f"rule number {place[1] + 1}"
    field = str(place[-1]) if len(place) > 3 else ""
    return ": ".join(one for one in (where, field, said) if one)


def explanation(rule: Rule, figures: Figures) -> dict[str, str]:
    """Return the rule's explanation in each language, with the figures filled in."""
    return {
        language: rule.words(language).format(
            **{
                name.removesuffix("_minutes"): _told(name, value, language)
                for name, value in figures.items()
            }
        )
        for language in ("en", "vi")
    }


def _told(name: str, value: int, language: str) -> str:
    if name.endswith("_minutes"):
        return _duration(value, language)
    number = f"{value:,}" if language == "en" else f"{value:,}".replace(",", ".")
    return f"₫\u00a0{number}" if name.endswith("_vnd") else number


def _duration(minutes: int, language: str) -> str:
    hours, rest = divmod(minutes, 60)
    if rest or not hours:
        number, unit = minutes, "phút" if language == "vi" else "minute"
    else:
        number, unit = hours, "giờ" if language == "vi" else "hour"
    plural = "s" if language == "en" and number != 1 else ""
    return f"{number} {unit}{plural}"
