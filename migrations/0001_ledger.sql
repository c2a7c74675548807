-- The tables of one shard, in their own schema. Every statement names the schema, so that no search_path leads elsewhere.
-- Amounts are minor units in BIGINT. Times are microseconds since the epoch in BIGINT, because the lane assigns and compares them.
-- Text keys sort by byte, as the API's account order does.
--
-- The journal is the shard. Every other table of money (account, hold, saga, waypoint) is a projection of the journal and can be
-- rebuilt from it (docs/adr/0009).
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

-- One row. Every write transaction of the lane compares the three columns (check_fence). The comparison prevents writes to a slot
-- that the shard does not own, by a program of another schema version, and over a database that was accepted anew. The row changes
-- with a move of slots, a migration and an acceptance, and with nothing else.
CREATE TABLE shardledger.shard_state (
    only_row          BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT shard_state_one_row CHECK (only_row),
    ownership_version BIGINT NOT NULL,
    -- How often the database was accepted anew (`shard-node accept`), plus 1.
    incarnation       BIGINT NOT NULL CONSTRAINT shard_state_incarnation CHECK (incarnation > 0),
    -- The version of the newest applied migration.
    schema_version    INT    NOT NULL
);

-- Always empty. Every transaction that appends to the journal locks the table in SHARE ROW EXCLUSIVE mode until it ends, so that
-- writers of a shard exclude each other. A lock leaves no dead row behind, unlike the update of a row.
CREATE TABLE shardledger.lane_fence ();

-- How far the projections that the fold writes (account, saga, waypoint) reach. The tables saga and waypoint reach exactly this far;
-- rows of account may be ahead.
CREATE TABLE shardledger.fold_state (
    only_row        BOOLEAN PRIMARY KEY DEFAULT TRUE CONSTRAINT fold_state_one_row CHECK (only_row),
    folded_position BIGINT NOT NULL
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

-- A projection: the newest state of each account, written when the account is opened and by the fold. An account whose newest booking
-- is beyond folded_position may have a newer state in the journal.
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
    -- The position of the newest booking with a leg of this account.
    head          BIGINT   NOT NULL,
    -- The position of the booking that opened the account.
    opened        BIGINT   NOT NULL,
    metadata      TEXT     NOT NULL DEFAULT '',
    created_at_us BIGINT   NOT NULL,
    updated_at_us BIGINT   NOT NULL,
    CONSTRAINT account_available CHECK (overdraft IS NULL OR posted - held >= -overdraft)
) WITH (fillfactor = 70);

-- One row for each booking, in commit order, never changed. A booking has at most two legs: one of the payer and one of the payee.
-- The leg of a shard's in-transit account follows from the kind. The row of a transfer's or hold's first answer is also its
-- idempotency record, and the row of a saga's verdict is the register. The lane assigns positions in commit order, so the primary
-- key grows at its right edge only.
--
-- The order of columns keeps the row small: 8-byte columns first, then 2-byte columns, then the others. Columns after asset are
-- NULL in most rows.
CREATE TABLE shardledger.journal (
    position         BIGINT   NOT NULL CONSTRAINT journal_pkey PRIMARY KEY,
    amount           BIGINT   NOT NULL CONSTRAINT journal_amount CHECK (amount >= 0), -- minor units
    at_us            BIGINT   NOT NULL,
    -- The legs: the account's version, the position of its previous leg (0: none), and its balances after the booking. The version is
    -- NULL where the booking has no such leg.
    payer_version    BIGINT,
    payer_previous   BIGINT,
    payer_posted     BIGINT,
    payer_held       BIGINT   CONSTRAINT journal_payer_held CHECK (payer_held >= 0),
    payer_overdraft  BIGINT, -- in force; NULL: unlimited
    payee_version    BIGINT,
    payee_previous   BIGINT,
    payee_posted     BIGINT,
    payee_held       BIGINT   CONSTRAINT journal_payee_held CHECK (payee_held >= 0),
    payee_overdraft  BIGINT,
    payer_slot       SMALLINT NOT NULL,
    payee_slot       SMALLINT NOT NULL,
    -- 1 opened, 2 updated, 3 marker; a transfer's first answer: 11 posted, 12 rejected, 13 reserved, 14 presumed to be refused; its
    -- settlement: 21 posted, 22 compensated, 23 refused; a register: 31 credited, 32 refused; a hold's first answer: 41 held,
    -- 42 rejected; its end: 51 captured, 52 released, 53 expired.
    kind             SMALLINT NOT NULL,
    -- What the row answers: 0 nothing, 1 a transfer, 2 its settlement, 3 its register, 4 a hold, 5 the hold's end.
    role             SMALLINT NOT NULL,
    -- Of the transfer or hold; NULL where role is 0. An id belongs to its payer.
    id               UUID,
    payer            TEXT COLLATE "C" NOT NULL, -- the account, where role is 0
    payee            TEXT COLLATE "C" NOT NULL, -- empty, where role is 0
    asset            TEXT COLLATE "C" NOT NULL,
    metadata         TEXT,
    refusal          SMALLINT,
    side             SMALLINT,
    hold             UUID,     -- a capture of this hold of the payer
    reverses         UUID,     -- a reversal of this transfer, whose payer is the payee here
    whole            BOOLEAN,  -- capture or reversal: the client gave no amount
    final            BOOLEAN,  -- capture: the rest of the hold is released
    cross_shard      BOOLEAN,  -- of a rejected transfer whose payee lives on another shard
    -- The booking whose payer leg is the answer, where that is not this booking.
    answer_position  BIGINT,
    first_attempt_us BIGINT,   -- kinds 13 and 14: when recovery may run the saga for the first time
    expires_at_us    BIGINT,   -- of a hold; NULL: never
    captured         BIGINT,   -- kinds 51 to 53: posted by captures of the hold, in total
    status           SMALLINT, -- kinds 1 and 2, with max_balance and metadata
    max_balance      BIGINT,
    CONSTRAINT journal_role CHECK (role = kind / 10),
    -- Without an overdraft limit, posted - held can be below what a BIGINT holds, and is not computed.
    CONSTRAINT journal_payer_available CHECK (payer_overdraft IS NULL OR payer_posted - payer_held >= -payer_overdraft),
    CONSTRAINT journal_payee_available CHECK (payee_overdraft IS NULL OR payee_posted - payee_held >= -payee_overdraft)
);
-- The guard of idempotency. It compares what a row answers and not its kind: a rejected transfer that is sent again and decided as
-- posted must collide.
CREATE UNIQUE INDEX journal_answer ON shardledger.journal (id, payer, role) WHERE id IS NOT NULL;
-- Compares what a writer believes with what the shard is, after the writer has locked lane_fence. p_highest is the highest position
-- that the writer knows in the shard's own range, or the position before the first.
CREATE FUNCTION shardledger.check_fence(p_highest BIGINT, p_ownership_version BIGINT, p_incarnation BIGINT, p_schema_version INT)
RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    v_state   shardledger.shard_state;
    v_highest BIGINT;
BEGIN
    SELECT * INTO STRICT v_state FROM shardledger.shard_state;
    -- A position begins with 12 bits of shard number, then 51 bits of sequence.
    SELECT position INTO v_highest FROM shardledger.journal
    WHERE position > ((p_highest >> 51) << 51) AND position <= ((p_highest >> 51) << 51) + 2251799813685247
    ORDER BY position DESC LIMIT 1;
    IF coalesce(v_highest, (p_highest >> 51) << 51) <> p_highest
        OR v_state.ownership_version <> p_ownership_version
        OR v_state.incarnation <> p_incarnation
        OR v_state.schema_version <> p_schema_version
    THEN
        RAISE EXCEPTION 'the shard is at position %, ownership version %, incarnation %, schema version %',
            v_highest, v_state.ownership_version, v_state.incarnation, v_state.schema_version
            USING ERRCODE = 'SL001';
    END IF;
END
$$;

-- A projection: every 64th version of an account, so that a page or a balance at any time is one look-up and at most 64 steps away.
CREATE TABLE shardledger.waypoint (
    account  TEXT COLLATE "C" NOT NULL,
    version  BIGINT NOT NULL,
    position BIGINT NOT NULL,
    at_us    BIGINT NOT NULL,
    PRIMARY KEY (account, version)
);
CREATE INDEX waypoint_by_time ON shardledger.waypoint (account, at_us);

-- A projection: the sagas that are under way as of folded_position, by the position of their first booking. A saga that ends
-- before the next fold never has a row.
CREATE TABLE shardledger.saga (
    position BIGINT PRIMARY KEY
);
