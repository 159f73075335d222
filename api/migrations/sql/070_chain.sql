-- What was seen on chain, and how far we have looked. The watcher's alone.

-- One row a receipt: a chain transaction that raised one of our token accounts. It moves from
-- confirmed to finalized, and is booked on reaching finalized; or it vanishes and is dropped.
CREATE TABLE chain_transfers (
    chain         text NOT NULL CHECK (chain = 'solana'),
    signature     text NOT NULL,
    token_account text NOT NULL,
    payment_id    text REFERENCES payments,
    payer_address text,
    mint          text NOT NULL,
    amount_minor  bigint NOT NULL CHECK (amount_minor > 0),
    slot          bigint NOT NULL CHECK (slot >= 0),
    block_time    timestamptz,
    commitment    text NOT NULL CHECK (commitment IN ('confirmed', 'finalized', 'dropped')),
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain, signature, token_account)
);
CREATE INDEX chain_transfers_by_payment ON chain_transfers (payment_id);
CREATE INDEX chain_transfers_unsettled ON chain_transfers (slot) WHERE commitment = 'confirmed';
GRANT SELECT, INSERT ON chain_transfers TO giovang_watcher;
GRANT UPDATE (payment_id, slot, block_time, commitment) ON chain_transfers TO giovang_watcher;

CREATE FUNCTION keep_finalized() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF OLD.commitment = 'finalized' AND NEW.commitment <> 'finalized' THEN
        RAISE EXCEPTION 'transfer % is final', OLD.signature
            USING ERRCODE = 'check_violation', CONSTRAINT = 'chain_transfers_finalized_stays';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER chain_transfers_finalized_stays BEFORE UPDATE ON chain_transfers
    FOR EACH ROW EXECUTE FUNCTION keep_finalized();

-- Every finalized signature of the token account at or before this one has been dealt with.
CREATE TABLE chain_cursors (
    chain         text NOT NULL CHECK (chain = 'solana'),
    token_account text NOT NULL,
    signature     text NOT NULL,
    slot          bigint NOT NULL,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain, token_account)
) WITH (fillfactor = 50);
GRANT SELECT, INSERT ON chain_cursors TO giovang_watcher;
GRANT UPDATE (signature, slot, updated_at) ON chain_cursors TO giovang_watcher;
