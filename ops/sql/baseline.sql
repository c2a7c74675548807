-- What `make bench` compares with: a ledger as one PL/pgSQL function, one commit a transfer. The same guarantees as a
-- local transfer of Shardledger: double entry, no overdraft of limited accounts, idempotent by id, balances after each
-- entry. Accounts have integer keys here and text keys there; every other choice is the faster one of two as well.
DROP SCHEMA IF EXISTS baseline CASCADE;
CREATE SCHEMA baseline;

CREATE TABLE baseline.account (
    id        BIGINT PRIMARY KEY,
    balance   BIGINT NOT NULL,
    overdraft BIGINT, -- NULL: unlimited
    version   BIGINT NOT NULL,
    CONSTRAINT account_available CHECK (overdraft IS NULL OR balance + overdraft >= 0)
) WITH (fillfactor = 70);

CREATE TABLE baseline.transfer (
    id         UUID PRIMARY KEY,
    debit      BIGINT NOT NULL,
    credit     BIGINT NOT NULL,
    amount     BIGINT NOT NULL CHECK (amount > 0),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE baseline.entry (
    account     BIGINT NOT NULL,
    version     BIGINT NOT NULL,
    transfer_id UUID   NOT NULL,
    amount      BIGINT NOT NULL,
    balance     BIGINT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (account, version)
);

CREATE FUNCTION baseline.transfer(p_id UUID, p_debit BIGINT, p_credit BIGINT, p_amount BIGINT) RETURNS TEXT
LANGUAGE plpgsql AS $$
DECLARE
    payer baseline.account;
    payee baseline.account;
BEGIN
    INSERT INTO baseline.transfer (id, debit, credit, amount) VALUES (p_id, p_debit, p_credit, p_amount)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'replayed';
    END IF;
    -- Both rows in id order, or two transfers in opposite directions deadlock.
    PERFORM 1 FROM baseline.account WHERE id IN (p_debit, p_credit) ORDER BY id FOR UPDATE;
    UPDATE baseline.account SET balance = balance - p_amount, version = version + 1
    WHERE id = p_debit AND (overdraft IS NULL OR balance + overdraft >= p_amount)
    RETURNING * INTO payer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'insufficient_funds';
    END IF;
    UPDATE baseline.account SET balance = balance + p_amount, version = version + 1 WHERE id = p_credit
    RETURNING * INTO payee;
    INSERT INTO baseline.entry (account, version, transfer_id, amount, balance)
    VALUES (p_debit, payer.version, p_id, -p_amount, payer.balance), (p_credit, payee.version, p_id, p_amount, payee.balance);
    RETURN 'posted';
END
$$;

INSERT INTO baseline.account SELECT id, 0, NULL, 0 FROM generate_series(1, 100000) AS id;
ANALYZE baseline.account;
