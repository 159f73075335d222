-- What the watcher knows about the chain beside its receipts.

-- Lines of an account's history that could not be dealt with in their turn: the cursor went on, and
-- these are read again until they can be. A line is settled (its receipt is booked), brought nothing,
-- or stays, with the reason that was last in the way, for a person to see.
CREATE TABLE chain_set_aside (
    chain         text NOT NULL CHECK (chain = 'solana'),
    signature     text NOT NULL CHECK (length(signature) BETWEEN 1 AND 200),
    token_account text NOT NULL,
    slot          bigint NOT NULL CHECK (slot >= 0),
    reason        text NOT NULL CHECK (length(reason) BETWEEN 1 AND 300),
    attempts      integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_at       timestamptz NOT NULL DEFAULT now(),
    outcome       text CHECK (outcome IN ('settled', 'nothing')),
    found_at      timestamptz NOT NULL DEFAULT now(),
    resolved_at   timestamptz,
    PRIMARY KEY (chain, signature, token_account),
    CONSTRAINT chain_set_aside_resolved_whole CHECK (num_nonnulls(outcome, resolved_at) IN (0, 2))
);
CREATE INDEX chain_set_aside_waiting ON chain_set_aside (next_at) WHERE outcome IS NULL;
GRANT SELECT, INSERT ON chain_set_aside TO giovang_watcher;
GRANT UPDATE (reason, attempts, next_at, outcome, resolved_at) ON chain_set_aside
    TO giovang_watcher;
GRANT SELECT ON chain_set_aside TO giovang_operator;

-- Chain transactions that carry a payment's reference and brought us nothing we take: another mint,
-- another recipient, nothing at all. Only finalized ones. They are shown, and never booked.
CREATE TABLE chain_strays (
    chain        text NOT NULL CHECK (chain = 'solana'),
    signature    text NOT NULL CHECK (length(signature) BETWEEN 1 AND 200),
    payment_id   text NOT NULL REFERENCES payments,
    merchant_id  text NOT NULL REFERENCES merchants,
    kind         text NOT NULL CHECK (kind IN (
        'wrong_token', 'wrong_recipient', 'nothing', 'failed', 'unreadable')),
    mint         text CHECK (length(mint) <= 200),
    recipient    text CHECK (length(recipient) <= 200),
    amount_minor numeric(20) CHECK (amount_minor > 0),
    slot         bigint NOT NULL CHECK (slot >= 0),
    block_time   timestamptz,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (payment_id, chain, signature),
    CONSTRAINT chain_strays_whole CHECK (
        num_nonnulls(mint, recipient, amount_minor)
        = CASE WHEN kind IN ('wrong_token', 'wrong_recipient') THEN 3 ELSE 0 END)
);
CREATE INDEX chain_strays_by_merchant ON chain_strays (merchant_id, recorded_at);
CALL close_tenant_table('chain_strays');
GRANT SELECT ON chain_strays TO giovang_api, giovang_operator, giovang_watcher;
GRANT INSERT ON chain_strays TO giovang_watcher;
CREATE TRIGGER chain_strays_are_history BEFORE UPDATE OR DELETE ON chain_strays
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER chain_strays_stay BEFORE TRUNCATE ON chain_strays
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- How each configured provider does, written by the watcher every few seconds. `name` is the place
-- in the settings and the host: an address may hold a key.
CREATE TABLE chain_providers (
    chain           text NOT NULL CHECK (chain = 'solana'),
    number          integer NOT NULL CHECK (number >= 1),
    name            text NOT NULL,
    state           text NOT NULL CHECK (state IN ('well', 'lagging', 'disagreeing', 'failing')),
    finalized_slot  bigint NOT NULL,
    lag_slots       bigint NOT NULL,
    calls           bigint NOT NULL,
    failures        bigint NOT NULL,
    last_error      text,
    answered_at     timestamptz,
    disagreements   bigint NOT NULL,
    disagreed_at    timestamptz,
    disagreed_about text,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain, number)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT, DELETE ON chain_providers TO giovang_watcher;
GRANT UPDATE (name, state, finalized_slot, lag_slots, calls, failures, last_error, answered_at,
              disagreements, disagreed_at, disagreed_about, updated_at)
    ON chain_providers TO giovang_watcher;
GRANT SELECT ON chain_providers, chain_cursors TO giovang_operator;

-- Open payments in the order in which their references are looked at: round and round by id, and
-- first those that their payer opened, or that ended, just now.
CREATE INDEX payments_open ON payments (id) WHERE status IN ('created', 'pending', 'confirming');
CREATE INDEX payments_opened ON payments (status_at)
    WHERE status IN ('pending', 'confirming', 'expired');
