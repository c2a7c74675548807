-- Every transfer touches account 1, on either side.
\set other random(2, 100000)
\set side random(0, 1)
\set debit case when :side = 0 then 1 else :other end
\set credit case when :side = 0 then :other else 1 end
\set amount random(1, 9999)
SELECT baseline.transfer((lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || substr(gen_random_uuid()::text, 15))::uuid, :debit, :credit, :amount);
