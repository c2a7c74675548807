-- What `shardctl bench prototype` compares with ceiling.sql, one table or row for each choice.

-- The journal without its CHECKs.
CREATE TABLE ceiling.journal_unchecked (LIKE ceiling.journal);
ALTER TABLE ceiling.journal_unchecked ADD PRIMARY KEY (position);
CREATE UNIQUE INDEX journal_unchecked_id ON ceiling.journal_unchecked (id, payer, role) WHERE id IS NOT NULL;

-- A transfer and its two entries as rows of their own, with CHECKs and without.
CREATE TABLE ceiling.transfer (
    id              UUID     NOT NULL,
    debit           TEXT COLLATE "C" NOT NULL,
    credit          TEXT COLLATE "C" NOT NULL,
    asset           TEXT COLLATE "C" NOT NULL,
    amount          BIGINT   NOT NULL CONSTRAINT transfer_amount CHECK (amount > 0),
    slot            SMALLINT NOT NULL,
    status          SMALLINT NOT NULL CONSTRAINT transfer_status CHECK (status BETWEEN 1 AND 4),
    debit_position  BIGINT,
    created_at_us   BIGINT   NOT NULL,
    PRIMARY KEY (id, debit)
);
CREATE TABLE ceiling.entry (
    position        BIGINT   PRIMARY KEY,
    previous        BIGINT   NOT NULL,
    account         TEXT COLLATE "C" NOT NULL,
    slot            SMALLINT NOT NULL,
    version         BIGINT   NOT NULL,
    kind            SMALLINT NOT NULL,
    amount          BIGINT   NOT NULL,
    posted          BIGINT   NOT NULL,
    held            BIGINT   NOT NULL CONSTRAINT entry_held CHECK (held >= 0),
    overdraft       BIGINT,
    transfer_id     UUID,
    counterparty    TEXT COLLATE "C",
    created_at_us   BIGINT   NOT NULL,
    CONSTRAINT entry_available CHECK (posted - held >= -overdraft)
);
CREATE TABLE ceiling.transfer_unchecked (LIKE ceiling.transfer);
ALTER TABLE ceiling.transfer_unchecked ADD PRIMARY KEY (id, debit);
CREATE TABLE ceiling.entry_unchecked (LIKE ceiling.entry);
ALTER TABLE ceiling.entry_unchecked ADD PRIMARY KEY (position);

-- A fence that every commit updates.
CREATE TABLE ceiling.shard_state (
    only_row          BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    next_position     BIGINT NOT NULL,
    ownership_version BIGINT NOT NULL,
    incarnation       BIGINT NOT NULL,
    schema_version    INT    NOT NULL
) WITH (fillfactor = 10);
INSERT INTO ceiling.shard_state VALUES (TRUE, 0, 1, 1, 1);

-- The columns that a plain transfer uses, for the row array.
CREATE TYPE ceiling.journal_row AS (
    position BIGINT, amount BIGINT, at_us BIGINT,
    payer_version BIGINT, payer_previous BIGINT, payer_posted BIGINT, payer_held BIGINT,
    payee_version BIGINT, payee_previous BIGINT, payee_posted BIGINT, payee_held BIGINT,
    payer_slot SMALLINT, payee_slot SMALLINT, kind SMALLINT, role SMALLINT,
    id UUID, payer TEXT, payee TEXT, asset TEXT
);

-- What the fold writes to.
CREATE TABLE ceiling.account (
    id            TEXT COLLATE "C" PRIMARY KEY,
    slot          SMALLINT NOT NULL,
    asset         TEXT COLLATE "C" NOT NULL,
    status        SMALLINT NOT NULL,
    posted        BIGINT   NOT NULL,
    held          BIGINT   NOT NULL CONSTRAINT account_held CHECK (held >= 0),
    overdraft     BIGINT,
    max_balance   BIGINT,
    version       BIGINT   NOT NULL,
    head          BIGINT   NOT NULL,
    metadata      TEXT     NOT NULL DEFAULT '',
    created_at_us BIGINT   NOT NULL,
    updated_at_us BIGINT   NOT NULL,
    CONSTRAINT account_available CHECK (overdraft IS NULL OR posted - held >= -overdraft)
) WITH (fillfactor = 70);
