-- Moves of slots from one shard to another (docs/adr/0010).

-- What the accounts of the moved slots hold together may be negative.
ALTER TABLE shardledger.journal DROP CONSTRAINT journal_amount,
    ADD CONSTRAINT journal_amount CHECK (amount >= 0 OR kind BETWEEN 4 AND 7) NOT VALID;

-- The moves in which this shard takes part. The row is there before the first row of another table, and is never deleted.
CREATE TABLE shardledger.slot_move (
    id            UUID     PRIMARY KEY,
    -- 1: this shard gives the slots away; 2: it receives them.
    role          SMALLINT NOT NULL CONSTRAINT slot_move_role CHECK (role IN (1, 2)),
    -- The shard at the other end.
    peer          TEXT     NOT NULL,
    slots         INT4MULTIRANGE NOT NULL,
    -- Of the receiver: 1 copying, 2 catching up, 3 taken, 4 finished, 5 aborting, 6 aborted, 7 reversed. Of the giver: 11 joined, 12 released,
    -- 13 cleaned up, 14 left, 15 got back.
    phase         SMALLINT NOT NULL,
    -- Grows with each start of a driver. A change of the row compares phase, driver epoch and progress.
    driver_epoch  BIGINT   NOT NULL,
    -- JSON: what the driver has done, and what an operator wants.
    progress      TEXT     NOT NULL,
    wishes        TEXT     NOT NULL DEFAULT '{}',
    started_at_us BIGINT   NOT NULL,
    updated_at_us BIGINT   NOT NULL
);

-- Changes phase or progress of a move. A row that does not match means that another driver has taken over, that the move has gone on, or
-- that the database went back in time. p_before is the progress that the caller believes.
CREATE FUNCTION shardledger.advance_move(p_id UUID, p_from SMALLINT, p_driver_epoch BIGINT, p_before TEXT, p_to SMALLINT, p_progress TEXT)
RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    UPDATE shardledger.slot_move SET phase = p_to, progress = p_progress,
        updated_at_us = (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::int8
    WHERE id = p_id AND phase = p_from AND driver_epoch = p_driver_epoch AND progress = p_before;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'move % does not have phase %, driver epoch % and the expected progress', p_id, p_from, p_driver_epoch USING ERRCODE = 'SL003';
    END IF;
END
$$;

-- Changes the state of slots and the ownership version. The caller holds lane_fence. Every slot must be in the former state.
CREATE FUNCTION shardledger.change_slots(p_slots INT4MULTIRANGE, p_from SMALLINT, p_to SMALLINT, p_epoch BIGINT, p_peer TEXT)
RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    v_expected BIGINT;
    v_changed  BIGINT;
BEGIN
    SELECT sum(upper(r) - lower(r)) INTO v_expected FROM unnest(p_slots) AS r;
    UPDATE shardledger.slot_ownership SET state = p_to, epoch = p_epoch, peer = p_peer WHERE slot <@ p_slots AND state = p_from;
    GET DIAGNOSTICS v_changed = ROW_COUNT;
    IF v_changed <> v_expected THEN
        RAISE EXCEPTION '% of % slots are in state %', v_changed, v_expected, p_from USING ERRCODE = 'SL003';
    END IF;
    UPDATE shardledger.shard_state SET ownership_version = ownership_version + 1;
END
$$;
