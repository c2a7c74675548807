-- A scratch copy of the append path: the journal of a shard and the fence of its lane, without anything that reads them. `make
-- bench` writes plain transfers into it through one connection: that is the most this PostgreSQL could append.
DROP SCHEMA IF EXISTS ceiling CASCADE;
CREATE SCHEMA ceiling;

CREATE TABLE ceiling.journal (
    position          BIGINT   PRIMARY KEY,
    amount            BIGINT   NOT NULL CONSTRAINT journal_amount CHECK (amount >= 0),
    at_us             BIGINT   NOT NULL,
    payer_version     BIGINT,
    payer_previous    BIGINT,
    payer_posted      BIGINT,
    payer_held        BIGINT   CONSTRAINT journal_payer_held CHECK (payer_held >= 0),
    payer_overdraft   BIGINT,
    payee_version     BIGINT,
    payee_previous    BIGINT,
    payee_posted      BIGINT,
    payee_held        BIGINT   CONSTRAINT journal_payee_held CHECK (payee_held >= 0),
    payee_overdraft   BIGINT,
    payer_slot        SMALLINT NOT NULL,
    payee_slot        SMALLINT NOT NULL,
    kind              SMALLINT NOT NULL,
    role              SMALLINT NOT NULL,
    id                UUID,
    payer             TEXT COLLATE "C" NOT NULL,
    payee             TEXT COLLATE "C" NOT NULL,
    asset             TEXT COLLATE "C" NOT NULL,
    -- Rare content.
    metadata          TEXT,
    refusal           SMALLINT,
    side              SMALLINT,
    hold              UUID,
    reverses          UUID,
    final             BOOLEAN,
    whole             BOOLEAN,
    cross_shard       BOOLEAN,
    answer_position   BIGINT,
    first_attempt_us  BIGINT,
    expires_at_us     BIGINT,
    captured          BIGINT,
    status            SMALLINT,
    max_balance       BIGINT,
    CONSTRAINT journal_role CHECK (role = kind / 10),
    CONSTRAINT journal_payer_available CHECK (payer_overdraft IS NULL OR payer_posted - payer_held >= -payer_overdraft),
    CONSTRAINT journal_payee_available CHECK (payee_overdraft IS NULL OR payee_posted - payee_held >= -payee_overdraft)
);
CREATE UNIQUE INDEX journal_id ON ceiling.journal (id, payer, role) WHERE id IS NOT NULL;

-- Locked by every transaction of the lane; it has no rows.
CREATE TABLE ceiling.lane_fence ();

-- What a lane must believe besides the highest position. Rows are only added, so that a snapshot elsewhere costs nothing.
CREATE TABLE ceiling.lane_facts (
    position          BIGINT PRIMARY KEY,
    ownership_version BIGINT NOT NULL,
    schema_version    INT    NOT NULL,
    incarnation       BIGINT NOT NULL
);
INSERT INTO ceiling.lane_facts VALUES (0, 1, 1, 1);

CREATE FUNCTION ceiling.check_fence(p_highest BIGINT, p_ownership BIGINT, p_schema INT, p_incarnation BIGINT)
RETURNS BOOLEAN LANGUAGE plpgsql AS $$
DECLARE
    highest BIGINT := (SELECT max(position) FROM ceiling.journal);
    facts   ceiling.lane_facts;
BEGIN
    SELECT * INTO facts FROM ceiling.lane_facts ORDER BY position DESC LIMIT 1;
    IF coalesce(highest, 0) <> p_highest OR facts.ownership_version <> p_ownership OR facts.schema_version <> p_schema
       OR facts.incarnation <> p_incarnation THEN
        RAISE EXCEPTION 'the lane is superseded: the highest position is %', highest;
    END IF;
    RETURN TRUE;
END
$$;
