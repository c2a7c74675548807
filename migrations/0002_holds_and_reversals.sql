-- Holds, captures and reversals (docs/adr/0006).

-- One row a hold, at its debit account's shard. Holds and transfers are counted apart: one of each may have the same key.
-- status: 1 held, 2 captured, 3 released, 4 expired, 5 rejected.
CREATE TABLE shardledger.hold (
    id               UUID     NOT NULL,
    debit            TEXT COLLATE "C" NOT NULL,
    slot             INT      NOT NULL, -- of the debit account
    credit           TEXT COLLATE "C" NOT NULL,
    asset            TEXT COLLATE "C" NOT NULL,
    amount           BIGINT   NOT NULL CONSTRAINT hold_amount CHECK (amount > 0),
    metadata         TEXT     NOT NULL DEFAULT '',
    status           SMALLINT NOT NULL CONSTRAINT hold_status CHECK (status BETWEEN 1 AND 5),
    refusal          SMALLINT,
    side             SMALLINT,
    captured         BIGINT   NOT NULL DEFAULT 0, -- posted by captures
    -- A capture to another shard whose verdict is not known yet: at most one, and no expiry meanwhile.
    capture_id       UUID,
    capture_amount   BIGINT   NOT NULL DEFAULT 0,
    expires_at_us    BIGINT, -- NULL: never
    debit_position   BIGINT, -- the debit account's entry: its balances are the answer's; NULL when refused
    created_at_us    BIGINT   NOT NULL,
    ended_at_us      BIGINT,
    PRIMARY KEY (id, debit),
    CONSTRAINT hold_captured CHECK (captured >= 0 AND capture_amount >= 0 AND captured + capture_amount <= amount),
    CONSTRAINT hold_in_flight CHECK ((capture_id IS NULL) = (capture_amount = 0) AND (capture_id IS NULL OR status = 1)),
    CONSTRAINT hold_ended CHECK ((status = 1) = (ended_at_us IS NULL)),
    CONSTRAINT hold_refusal CHECK ((status = 5) = (refusal IS NOT NULL))
);
CREATE INDEX hold_expiry ON shardledger.hold (expires_at_us) WHERE status = 1 AND capture_id IS NULL;

-- What a transfer does besides moving money, how much of it is reversed, and a refusal presumed before the verdict.
ALTER TABLE shardledger.transfer
    ADD COLUMN hold     UUID,    -- a capture of this hold of the debit account
    ADD COLUMN final    BOOLEAN, -- capture: the rest of the hold is released
    ADD COLUMN reverses UUID,    -- a reversal of this transfer, whose debit account is the credit account here
    ADD COLUMN whole    BOOLEAN, -- capture or reversal: the client gave no amount
    ADD COLUMN reversed BIGINT NOT NULL DEFAULT 0,
    DROP CONSTRAINT transfer_amount,
    DROP CONSTRAINT transfer_status,
    DROP CONSTRAINT transfer_refusal,
    -- 0: all of what turned out to be nothing was asked for.
    ADD CONSTRAINT transfer_amount CHECK (amount > 0 OR (amount = 0 AND whole AND status <> 2)),
    ADD CONSTRAINT transfer_status CHECK (status BETWEEN 1 AND 3),
    -- A pending transfer with a refusal has reserved nothing: it waits for the register to agree.
    ADD CONSTRAINT transfer_refusal CHECK (status = 1 OR (status = 3) = (refusal IS NOT NULL)),
    ADD CONSTRAINT transfer_purpose CHECK (hold IS NULL OR reverses IS NULL),
    ADD CONSTRAINT transfer_reversed CHECK (reversed BETWEEN 0 AND amount AND (reversed = 0 OR status = 2));

-- From an original to its reversals, at the original's shard.
CREATE TABLE shardledger.reversal (
    original      UUID   NOT NULL,
    debit         TEXT COLLATE "C" NOT NULL, -- the original's
    reversal      UUID   NOT NULL,           -- its debit account is the original's credit account
    slot          INT    NOT NULL,           -- of the original's debit account
    amount        BIGINT NOT NULL CONSTRAINT reversal_amount CHECK (amount > 0),
    created_at_us BIGINT NOT NULL,
    PRIMARY KEY (original, debit, reversal)
);

ALTER TYPE shardledger.transfer_row
    ADD ATTRIBUTE hold UUID,
    ADD ATTRIBUTE final BOOLEAN,
    ADD ATTRIBUTE reverses UUID,
    ADD ATTRIBUTE whole BOOLEAN,
    ADD ATTRIBUTE reversed BIGINT;
CREATE TYPE shardledger.hold_row AS (
    id UUID, debit TEXT, slot INT, credit TEXT, asset TEXT, amount BIGINT, metadata TEXT, status SMALLINT,
    refusal SMALLINT, side SMALLINT, captured BIGINT, capture_id UUID, capture_amount BIGINT, expires_at_us BIGINT,
    debit_position BIGINT, created_at_us BIGINT, ended_at_us BIGINT
);
