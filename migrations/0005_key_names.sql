-- Who ordered a booking (docs/adr/0015).

-- The name of the API key: of a transfer's or hold's first answer (kinds 11 to 14, 41, 42), of a register (31, 32), and of a hold's end by a
-- client (51, 52). NULL: the router had no keys, or no client ordered the booking. The name itself is stored and no number for it, so that a row
-- means the same on every shard. 12 characters take 13 bytes; NULL takes none, because the row has a NULL bitmap of 5 bytes for 35 and for 36 columns.
ALTER TABLE shardledger.journal ADD COLUMN ordered_by TEXT COLLATE "C";
