"""Entrypoint `python -m streams.risk`: payments that rules flag become alerts with reasons.

The rules are checked before anything else; mistakes end the process, one sentence each. What rules
remember is a Faust table, so it survives restarts; an alert is durable before the record that knows
of it. While the warehouse is away the stream waits.
"""

import sys
from functools import partial

from infra.telemetry import configure_logging
from streams.app import Reading, processor_worker, serve
from streams.contract import RISK_APP, RISK_DEADLETTER_SUBJECT
from streams.processor import Surroundings
from streams.risk.engine import Engine
from streams.risk.flagging import Flagging
from streams.risk.processor import RiskProcessor
from streams.risk.rules import RULES_FILE, RulesError, RuleSet, load
from streams.settings import RiskSettings

RECORDS = "risk-records"


def processor(settings: RiskSettings, rules: RuleSet, surroundings: Surroundings) -> RiskProcessor:
    """Return the processor on the services of the settings; it connects at its first batch."""
    outlet = Flagging(
        surroundings.connect(f"{RISK_APP} alerts"),
        settings.warehouse_url.get_secret_value(),
        settings.replicas,
    )
    return RiskProcessor(Engine(rules), surroundings.table(RECORDS), outlet, surroundings)


def main() -> int:
    """Run the risk worker until it is told to stop; 2 where the rules are wrong."""
    configure_logging("risk")
    settings = RiskSettings()
    try:
        rules = load(settings.rules_file or RULES_FILE)
    except RulesError as error:
        sys.stderr.writelines(f"giovang: {mistake}\n" for mistake in error.mistakes)
        return 2
    reading = Reading(
        RISK_APP,
        agent="risk",
        deadletter_subject=RISK_DEADLETTER_SUBJECT,
        window_s=settings.batch_window_ms / 1000,
    )
    serve(processor_worker(settings, reading, partial(processor, settings, rules)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
