-- The tables of one shard, in their own schema. Every statement names the schema, so that no search_path leads elsewhere.
-- Amounts are minor units in BIGINT. Times are microseconds since the epoch in BIGINT, because the lane assigns and compares them.
-- Text keys sort by byte, as the API's account order does.
--
-- The lane inserts the types named …_row. A column added to a table does not change them.
CREATE SCHEMA shardledger;

-- Which shard of which cluster this database is. `shard-node init` writes the row; every connection compares it.
CREATE TABLE shardledger.shard_identity (
    only_row          BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT shard_identity_one_row CHECK (only_row),
    cluster_id        UUID   NOT NULL,
    shard_id          TEXT   NOT NULL,
    shard_number      INT    NOT NULL CONSTRAINT shard_identity_number CHECK (shard_number BETWEEN 0 AND 4095),
    -- How an account id leads to a slot. A program that computes other slots must not serve this shard.
    slot_count        INT    NOT NULL,
    hash_seed         BIGINT NOT NULL,
    -- Fingerprint of the map that the shard was founded with, equal for shards founded together; NULL for a shard added later.
    founding_map      BIGINT,
    -- Whether every shard of that map was initialised. None of them takes writes before that, because `init` of the others must
    -- find a new cluster.
    complete          BOOLEAN NOT NULL,
    -- PostgreSQL's identity as last seen. A database restored into another PostgreSQL has another identifier; a promoted
    -- stand-by has a higher timeline.
    system_identifier BIGINT NOT NULL,
    -- A copy made with CREATE DATABASE ... TEMPLATE has another number in the same server.
    database_oid      BIGINT NOT NULL,
    timeline          BIGINT NOT NULL
);

-- One row: the fence. Every write transaction of the lane advances next_position with a compare-and-set on next_position and the
-- three columns below it. The comparison prevents writes to a slot that the shard does not own, by a program of another schema
-- version, and over a database that was accepted anew. It also detects a second writer, and lets the lane resolve a lost COMMIT
-- answer by running the batch again.
CREATE TABLE shardledger.shard_state (
    only_row          BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT shard_state_one_row CHECK (only_row),
    next_position     BIGINT NOT NULL,
    ownership_version BIGINT NOT NULL,
    -- How often the database was accepted anew (`shard-node accept`), plus 1.
    incarnation       BIGINT NOT NULL CONSTRAINT shard_state_incarnation CHECK (incarnation > 0),
    -- The version of the newest applied migration.
    schema_version    INT    NOT NULL
) WITH (fillfactor = 10);

-- Every incarnation except the first, and what was given up. Rows are never deleted.
CREATE TABLE shardledger.incarnation (
    incarnation   BIGINT PRIMARY KEY,
    -- Positions from here on were assigned by the previous incarnation and may be lost.
    lost_from     BIGINT NOT NULL,
    -- The first position of this incarnation.
    first         BIGINT NOT NULL,
    reason        TEXT   NOT NULL,
    began_at_us   BIGINT NOT NULL
);

-- The newest shard map that this shard was given, as TOML.
CREATE TABLE shardledger.known_map (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT known_map_one_row CHECK (only_row),
    version  BIGINT NOT NULL,
    text     TEXT   NOT NULL
);

-- Marks of other shards: evidence against a shard whose database went back in time. Rows are only inserted; outdated ones are
-- deleted from time to time.
CREATE TABLE shardledger.peer_mark (
    shard_number INT    NOT NULL,
    incarnation  BIGINT NOT NULL,
    timeline     BIGINT NOT NULL,
    position     BIGINT NOT NULL,
    PRIMARY KEY (shard_number, incarnation, timeline, position)
);

-- The scale of each asset that accounts of this shard use. Amounts in minor units have no meaning without the scale.
CREATE TABLE shardledger.asset_scale (
    asset TEXT COLLATE "C" PRIMARY KEY,
    scale SMALLINT NOT NULL CONSTRAINT asset_scale_scale CHECK (scale BETWEEN 0 AND 18)
);

-- state: 1 owned, 2 released (peer took it), 3 incoming (peer still owns it).
CREATE TABLE shardledger.slot_ownership (
    slot  INT      PRIMARY KEY CONSTRAINT slot_ownership_slot CHECK (slot BETWEEN 0 AND 16383),
    state SMALLINT NOT NULL CONSTRAINT slot_ownership_state CHECK (state BETWEEN 1 AND 3),
    epoch BIGINT   NOT NULL CONSTRAINT slot_ownership_epoch CHECK (epoch > 0),
    peer  TEXT     NOT NULL DEFAULT ''
);

CREATE TABLE shardledger.account (
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
CREATE TABLE shardledger.journal (
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
CREATE TABLE shardledger.waypoint (
    account       TEXT COLLATE "C" NOT NULL,
    version       BIGINT NOT NULL,
    position      BIGINT NOT NULL,
    created_at_us BIGINT NOT NULL,
    PRIMARY KEY (account, version)
);
CREATE INDEX waypoint_by_time ON shardledger.waypoint (account, created_at_us);

-- status: 1 pending, 2 posted, 3 rejected, 4 reversed. An id belongs to its debit account.
CREATE TABLE shardledger.transfer (
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
CREATE INDEX transfer_pending ON shardledger.transfer (next_attempt_us) WHERE status = 1;

-- The verdict of a saga, at its destination. Written once and never changed: the only decision there is.
CREATE TABLE shardledger.register (
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

CREATE TYPE shardledger.account_row AS (
    id TEXT, slot INT, asset TEXT, status SMALLINT, posted BIGINT, held BIGINT, overdraft BIGINT, max_balance BIGINT,
    version BIGINT, head BIGINT, metadata TEXT, created_at_us BIGINT, updated_at_us BIGINT
);
CREATE TYPE shardledger.journal_row AS (
    position BIGINT, previous BIGINT, account TEXT, slot INT, version BIGINT, kind SMALLINT, amount BIGINT,
    posted BIGINT, held BIGINT, overdraft BIGINT, transfer_id UUID, counterparty TEXT, detail TEXT,
    created_at_us BIGINT
);
CREATE TYPE shardledger.waypoint_row AS (
    account TEXT, version BIGINT, position BIGINT, created_at_us BIGINT
);
CREATE TYPE shardledger.transfer_row AS (
    id UUID, debit TEXT, slot INT, credit TEXT, asset TEXT, amount BIGINT, metadata TEXT, cross_shard BOOLEAN,
    status SMALLINT, refusal SMALLINT, side SMALLINT, debit_position BIGINT, created_at_us BIGINT,
    finished_at_us BIGINT, attempts INT, next_attempt_us BIGINT
);
CREATE TYPE shardledger.register_row AS (
    transfer_id UUID, debit TEXT, credit TEXT, slot INT, asset TEXT, amount BIGINT, credited BOOLEAN, refusal SMALLINT,
    side SMALLINT, decided_at_us BIGINT
);
