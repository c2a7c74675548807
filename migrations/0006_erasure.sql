-- Erasure of metadata (docs/adr/0021).

-- Kinds 8 and 9, role 0: the metadata of a transfer (8) or hold (9) was erased. erases is the transfer or hold, payee its debit account. payer is the account
-- whose slot the booking belongs to: the debit account, or the credit account for the copy of a transfer at its shard. The metadata of an account is erased by
-- kind 2 with the metadata '-'.
ALTER TABLE shardledger.journal ADD COLUMN erases UUID;

-- Finds the opening and the updates of an account.
CREATE INDEX journal_account_changes ON shardledger.journal (payer) WHERE kind < 3;

-- Carries out the erasures among the bookings between two positions. '-' stands in place of erased metadata; no client can send it, because
-- metadata is a JSON object. This is the only statement that changes a row of the journal.
CREATE FUNCTION shardledger.apply_erasures(p_after BIGINT, p_to BIGINT) RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    v_erasure shardledger.journal;
BEGIN
    FOR v_erasure IN
        SELECT * FROM shardledger.journal
        WHERE position > p_after AND position <= p_to AND (kind IN (8, 9) OR (kind = 2 AND metadata = '-'))
        -- The fold locks rows of account in this order.
        ORDER BY payer, position
    LOOP
        IF v_erasure.kind = 2 THEN
            UPDATE shardledger.journal SET metadata = '-'
            WHERE payer = v_erasure.payer AND kind < 3 AND payer_version < v_erasure.payer_version AND metadata NOT IN ('', '-');
            -- The fold writes the row when it comes to it.
            UPDATE shardledger.account SET metadata = '-'
            WHERE id = v_erasure.payer AND version < v_erasure.payer_version AND metadata NOT IN ('', '-');
        ELSE
            UPDATE shardledger.journal SET metadata = '-'
            WHERE id = v_erasure.erases AND payer = v_erasure.payee AND metadata NOT IN ('', '-')
                AND role = CASE v_erasure.kind WHEN 8 THEN 1 ELSE 4 END;
        END IF;
    END LOOP;
END
$$;
