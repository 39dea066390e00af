-- Schema 3: calls that wait for held money stand in one line, whatever process they are in.
-- One row per process and bucket, for the process's oldest waiter. Times are microseconds of the machine's monotonic
-- clock, which nobody sets; a row that was not seen for a second belongs to nobody.
CREATE TABLE tickets (
    key TEXT PRIMARY KEY,             -- the call's
    process TEXT NOT NULL,
    meter TEXT NOT NULL,              -- the meter's name
    value TEXT NOT NULL,              -- as in buckets: the bucket that lacks room for the call
    inside INTEGER NOT NULL,          -- whether it is made inside an open call, and goes before all others
    since_us INTEGER NOT NULL,
    seen_us INTEGER NOT NULL,
    wanted_nanos INTEGER NOT NULL     -- what later callers of other processes leave free there
) WITHOUT ROWID;
