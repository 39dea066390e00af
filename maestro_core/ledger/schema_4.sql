-- Schema 4: a meter added to a long journal is filled step by step; counters of runs that ended come and go; old rows may
-- move to an archive, and processes tell each other their limits.
ALTER TABLE meters ADD COLUMN fill_to_seq INTEGER NOT NULL DEFAULT 0; -- journal rows up to here are being counted in; 0: all are
ALTER TABLE meters ADD COLUMN fill_done INTEGER NOT NULL DEFAULT 0;   -- how many of their buckets are written already
ALTER TABLE store ADD COLUMN repairs INTEGER NOT NULL DEFAULT 0;      -- rises whenever counters change without a call
ALTER TABLE store ADD COLUMN runs_dropped_us INTEGER NOT NULL DEFAULT 0; -- runs that ended before have been looked at

-- What was moved out of the journal, and where to.
CREATE TABLE archives (
    archive_id INTEGER PRIMARY KEY,
    archived_at_us INTEGER NOT NULL,
    before_us INTEGER NOT NULL,       -- rows of calls reserved before are in the file, save those of open calls
    file TEXT NOT NULL
);

-- What the moved rows add to counters without windows, so that those can still be rebuilt.
CREATE TABLE carried (
    run TEXT NOT NULL,                -- '' for calls without one
    attribution_id INTEGER NOT NULL REFERENCES attributions,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL CHECK (typeof(cost_nanos) = 'integer'),
    PRIMARY KEY (run, attribution_id, provider, model)
) WITHOUT ROWID;

-- The limits that each process enforces. A meter has none of its own.
CREATE TABLE limits (
    meter_id INTEGER NOT NULL REFERENCES meters,
    owner TEXT NOT NULL,              -- the process
    limit_nanos INTEGER NOT NULL,
    PRIMARY KEY (meter_id, owner, limit_nanos)
) WITHOUT ROWID;

DROP TRIGGER journal_is_never_shortened;
CREATE TRIGGER journal_is_never_shortened BEFORE DELETE ON journal
WHEN OLD.reserved_at_us >= (SELECT coalesce(max(before_us), 0) FROM archives)
BEGIN
    SELECT raise(ABORT, 'the journal is append-only');
END;
