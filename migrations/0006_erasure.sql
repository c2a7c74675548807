-- Erasure of metadata (docs/adr/0021).

-- Kinds 8 and 9, role 0: the metadata of a transfer (8) or hold (9) was erased. The column names the transfer or hold, and payee is its debit
-- account. The payer is the account whose shard erased: the debit account, or the credit account of a transfer whose booking a move of slots has left
-- behind. The kind 2 with the metadata '-' erases that of the account's earlier bookings.
ALTER TABLE shardledger.journal ADD COLUMN erases UUID;

-- Leads from an account to the bookings that record its metadata. Transfers and holds are not in it.
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
