-- Holds and reversals (docs/adr/0006).

-- How much of a transfer is reversed is the sum over its reversals.
CREATE INDEX journal_reversal ON shardledger.journal (reverses, payee) WHERE reverses IS NOT NULL;

-- A projection: open holds, written in the commit that changes them. A hold that has ended has its row in the journal.
CREATE TABLE shardledger.hold (
    id             UUID     NOT NULL,
    payer          TEXT COLLATE "C" NOT NULL,
    payer_slot     INT      NOT NULL,
    -- Of the booking that placed the hold.
    position       BIGINT   NOT NULL,
    amount         BIGINT   NOT NULL CONSTRAINT hold_amount CHECK (amount > 0),
    captured       BIGINT   NOT NULL, -- posted by captures
    -- A capture to another shard whose verdict is not known yet: at most one, and no expiry meanwhile.
    capture_id     UUID,
    capture_amount BIGINT   NOT NULL,
    expires_at_us  BIGINT, -- NULL: never
    PRIMARY KEY (id, payer),
    CONSTRAINT hold_captured CHECK (captured >= 0 AND capture_amount >= 0 AND captured + capture_amount <= amount),
    CONSTRAINT hold_in_flight CHECK ((capture_id IS NULL) = (capture_amount = 0))
);
CREATE INDEX hold_expiry ON shardledger.hold (expires_at_us) WHERE capture_id IS NULL;

-- Changes a row of an open hold. A row that is missing means that the batch was decided on a state that is not the shard's.
CREATE FUNCTION shardledger.change_hold(p_id UUID, p_payer TEXT, p_captured BIGINT, p_capture_id UUID, p_capture_amount BIGINT)
RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    UPDATE shardledger.hold SET captured = p_captured, capture_id = p_capture_id, capture_amount = p_capture_amount
    WHERE id = p_id AND payer = p_payer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'hold % of % is not open', p_id, p_payer USING ERRCODE = 'SL002';
    END IF;
END
$$;

-- Deletes the row of a hold that has ended. What became of the hold is in the journal.
CREATE FUNCTION shardledger.end_hold(p_id UUID, p_payer TEXT)
RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM shardledger.hold WHERE id = p_id AND payer = p_payer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'hold % of % is not open', p_id, p_payer USING ERRCODE = 'SL002';
    END IF;
END
$$;
