-- Both accounts uniformly. The id begins with the time, as Shardledger's clients are advised to make it, so that its index
-- grows at one edge here too.
\set debit random(1, 100000)
\set other random(1, 99999)
\set credit case when :other >= :debit then :other + 1 else :other end
\set amount random(1, 9999)
SELECT baseline.transfer((lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') || substr(gen_random_uuid()::text, 15))::uuid, :debit, :credit, :amount);
