-- Losses that new commits have overtaken (docs/adr/0016).

-- The next position of the journal when a node first accepted the timeline; 0 if the shard was founded on it, or if it was accepted before
-- this column was added.
ALTER TABLE shardledger.shard_identity ADD COLUMN timeline_began BIGINT NOT NULL DEFAULT 0;
