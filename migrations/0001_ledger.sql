-- The tables of one shard. Amounts are minor units in BIGINT; times are microseconds since the epoch in BIGINT, because
-- the lane hands them out itself and compares them. Text keys sort by byte, as the API's account order does.

-- One row. Every write transaction of the lane advances next_position with a compare-and-set on it and on
-- ownership_version: this is the fence (no write to a slot the shard does not own), the guard against a second writer,
-- and what makes a lost commit answer resolvable by running the batch again.
CREATE TABLE shard_state (
    only_row          BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT shard_state_one_row CHECK (only_row),
    shard_id          TEXT   NOT NULL,
    shard_number      INT    NOT NULL CONSTRAINT shard_state_number CHECK (shard_number BETWEEN 0 AND 4095),
    next_position     BIGINT NOT NULL,
    ownership_version BIGINT NOT NULL,
    -- The newest full shard map this shard was given, as TOML.
    shard_map         TEXT   NOT NULL DEFAULT '',
    shard_map_version BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

-- state: 1 owned, 2 released (peer took it), 3 incoming (peer still owns it).
CREATE TABLE slot_ownership (
    slot  INT      PRIMARY KEY CONSTRAINT slot_ownership_slot CHECK (slot BETWEEN 0 AND 16383),
    state SMALLINT NOT NULL CONSTRAINT slot_ownership_state CHECK (state BETWEEN 1 AND 3),
    epoch BIGINT   NOT NULL CONSTRAINT slot_ownership_epoch CHECK (epoch > 0),
    peer  TEXT     NOT NULL DEFAULT ''
);

CREATE TABLE account (
    id            TEXT COLLATE "C" PRIMARY KEY,
    -- -1 for the shard's own in-transit accounts, which belong to no slot and never move.
    slot          INT      NOT NULL,
    asset         TEXT COLLATE "C" NOT NULL,
    status        SMALLINT NOT NULL CONSTRAINT account_status CHECK (status BETWEEN 1 AND 3),
    posted        BIGINT   NOT NULL,
    held          BIGINT   NOT NULL CONSTRAINT account_held CHECK (held >= 0),
    overdraft     BIGINT   CONSTRAINT account_overdraft CHECK (overdraft >= 0), -- NULL: unlimited
    max_balance   BIGINT   CONSTRAINT account_max_balance CHECK (max_balance >= 0), -- NULL: none
    version       BIGINT   NOT NULL CONSTRAINT account_version CHECK (version > 0),
    head          BIGINT   NOT NULL,
    metadata      TEXT     NOT NULL DEFAULT '',
    created_at_us BIGINT   NOT NULL,
    updated_at_us BIGINT   NOT NULL,
    CONSTRAINT account_available CHECK (overdraft IS NULL OR posted - held >= -overdraft)
) WITH (fillfactor = 70);

-- The lane hands positions out in commit order, so the primary key only ever grows at its right edge. An account's
-- entries are a chain backwards from account.head; no index over accounts is kept on the hot path.
CREATE TABLE journal (
    position      BIGINT   PRIMARY KEY,
    previous      BIGINT   NOT NULL, -- 0: first entry of the account
    account       TEXT COLLATE "C" NOT NULL,
    slot          INT      NOT NULL,
    version       BIGINT   NOT NULL,
    kind          SMALLINT NOT NULL,
    amount        BIGINT   NOT NULL, -- signed change of posted
    posted        BIGINT   NOT NULL, -- after
    held          BIGINT   NOT NULL, -- after
    overdraft     BIGINT,            -- at this version; NULL: unlimited
    transfer_id   UUID,
    counterparty  TEXT COLLATE "C",
    detail        TEXT,
    created_at_us BIGINT   NOT NULL
);

-- Every 64th version of an account, so that a page or a balance at any time is one look-up and at most 64 steps away.
CREATE TABLE waypoint (
    account       TEXT COLLATE "C" NOT NULL,
    version       BIGINT NOT NULL,
    position      BIGINT NOT NULL,
    created_at_us BIGINT NOT NULL,
    PRIMARY KEY (account, version)
);
CREATE INDEX waypoint_by_time ON waypoint (account, created_at_us);

-- status: 1 pending, 2 posted, 3 rejected, 4 reversed. An id belongs to its debit account.
CREATE TABLE transfer (
    id              UUID     NOT NULL,
    debit           TEXT COLLATE "C" NOT NULL,
    slot            INT      NOT NULL, -- of the debit account
    credit          TEXT COLLATE "C" NOT NULL,
    asset           TEXT COLLATE "C" NOT NULL,
    amount          BIGINT   NOT NULL CONSTRAINT transfer_amount CHECK (amount > 0),
    metadata        TEXT     NOT NULL DEFAULT '',
    cross_shard     BOOLEAN  NOT NULL,
    status          SMALLINT NOT NULL CONSTRAINT transfer_status CHECK (status BETWEEN 1 AND 4),
    refusal         SMALLINT,
    side            SMALLINT,
    debit_position  BIGINT, -- the debit account's entry: its balances are the answer's; NULL when refused outright
    created_at_us   BIGINT   NOT NULL,
    finished_at_us  BIGINT,
    -- Sagas only.
    attempts        INT      NOT NULL DEFAULT 0,
    next_attempt_us BIGINT,
    PRIMARY KEY (id, debit),
    CONSTRAINT transfer_finished CHECK ((status = 1) = (finished_at_us IS NULL)),
    CONSTRAINT transfer_refusal CHECK ((status = 3) = (refusal IS NOT NULL))
);
CREATE INDEX transfer_pending ON transfer (next_attempt_us) WHERE status = 1;

-- The verdict of a saga, at its destination. Written once and never changed: the only decision there is.
CREATE TABLE register (
    transfer_id   UUID     NOT NULL,
    debit         TEXT COLLATE "C" NOT NULL,
    credit        TEXT COLLATE "C" NOT NULL,
    slot          INT      NOT NULL, -- of the credit account
    asset         TEXT COLLATE "C" NOT NULL,
    amount        BIGINT   NOT NULL,
    credited      BOOLEAN  NOT NULL,
    refusal       SMALLINT,
    side          SMALLINT,
    decided_at_us BIGINT   NOT NULL,
    PRIMARY KEY (transfer_id, debit),
    CONSTRAINT register_verdict CHECK (credited = (refusal IS NULL))
);
