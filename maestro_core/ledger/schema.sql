-- Schema 1 of a Maestro ledger. Money is integer nano-dollars (1e-9 US dollars), time integer microseconds since 1970 UTC.
-- The views at the end show dollars and ISO times.

-- One row: what all processes on this file agree on.
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    clock_us INTEGER NOT NULL,        -- the latest time seen; it never goes back
    meters_version INTEGER NOT NULL   -- rises whenever a meter is added
);
INSERT INTO store VALUES (1, 0, 0);

-- Running totals that caps and budgets look at.
CREATE TABLE meters (
    meter_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    per TEXT NOT NULL,                -- JSON array of dimensions
    matching TEXT NOT NULL,           -- JSON array of [dimension, value]
    every TEXT,                       -- hour | day | week | month, or NULL: no windows
    time_zone TEXT NOT NULL,
    since_us INTEGER NOT NULL         -- calls reserved before are not counted
);

-- One row per meter, window and value. The CHECK stops SQLite from turning an overflow into a float.
CREATE TABLE buckets (
    meter_id INTEGER NOT NULL REFERENCES meters,
    window_start_us INTEGER NOT NULL, -- 0 for a meter without windows
    value TEXT NOT NULL,              -- JSON array, one value for each dimension of the meter
    spent_nanos INTEGER NOT NULL CHECK (typeof(spent_nanos) = 'integer'),
    held_nanos INTEGER NOT NULL CHECK (typeof(held_nanos) = 'integer'),
    presumed_nanos INTEGER NOT NULL CHECK (typeof(presumed_nanos) = 'integer'),
    PRIMARY KEY (meter_id, window_start_us, value)
) WITHOUT ROWID;

-- Whom calls are for, each combination once. The run stands on the rows that use it.
CREATE TABLE attributions (
    attribution_id INTEGER PRIMARY KEY,
    dimensions TEXT NOT NULL,         -- JSON object, sorted, without the run
    path TEXT NOT NULL,               -- JSON array of [agent | tool, name], outermost first
    UNIQUE (dimensions, path)
);

-- Money that open calls hold, and money presumed spent that may still be corrected.
CREATE TABLE holds (
    key TEXT PRIMARY KEY,
    amount_nanos INTEGER NOT NULL,
    reserved_at_us INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    attribution_id INTEGER NOT NULL REFERENCES attributions,
    run TEXT,
    owner TEXT NOT NULL,              -- the process that made it
    state TEXT NOT NULL               -- held | presumed
) WITHOUT ROWID;

-- What happened, for ever. Amounts are what each row adds, so sums over any rows are right.
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,               -- settled | released | presumed | corrected | refused | granted
    key TEXT NOT NULL,
    reserved_at_us INTEGER NOT NULL,  -- decides window and report
    written_at_us INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,              -- the model asked for
    attribution_id INTEGER NOT NULL REFERENCES attributions,
    run TEXT,
    cost_nanos INTEGER NOT NULL,
    held_nanos INTEGER NOT NULL,
    estimated_nanos INTEGER NOT NULL, -- the part of the cost that no provider reported
    sheet_nanos INTEGER,              -- what the price book alone says
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    unpriced_calls INTEGER NOT NULL,
    usage TEXT NOT NULL,              -- JSON object: tokens and fees by kind
    price_id TEXT NOT NULL,
    price_book TEXT NOT NULL,
    unpriced TEXT NOT NULL,           -- JSON array of token kinds without a rate
    overrun INTEGER NOT NULL,
    detail TEXT NOT NULL              -- JSON object
);
-- A key is settled once, released once, ... : the store itself refuses to count a call twice.
CREATE UNIQUE INDEX journal_by_key ON journal (key, kind);
CREATE INDEX journal_by_time ON journal (reserved_at_us);
CREATE INDEX journal_by_run ON journal (run) WHERE run IS NOT NULL;
CREATE TRIGGER journal_is_append_only BEFORE UPDATE ON journal
BEGIN
    SELECT raise(ABORT, 'the journal is append-only');
END;

CREATE TRIGGER journal_is_never_shortened BEFORE DELETE ON journal
BEGIN
    SELECT raise(ABORT, 'the journal is append-only');
END;

-- Sums per UTC hour of reservation: once for all calls (dimension ''), once for each dimension that a call has,
-- save run and conversation, which have a value per handful of calls.
CREATE TABLE hourly_spend (
    dimension TEXT NOT NULL,
    hour_us INTEGER NOT NULL,
    value TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    cost_nanos INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    estimated_nanos INTEGER NOT NULL,
    unpriced_calls INTEGER NOT NULL,
    PRIMARY KEY (dimension, hour_us, value, provider, model)
) WITHOUT ROWID;

-- Every dimension's rows with what is left over as (unattributed), so that each dimension adds up to the total.
CREATE VIEW spend_by_dimension AS
SELECT
    strftime('%Y-%m-%dT%H:00:00Z', hour_us / 1000000, 'unixepoch') AS hour, dimension, value, provider, model,
    sum(cost_nanos) / 1e9 AS usd, sum(calls) AS calls, sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens, sum(estimated_nanos) / 1e9 AS estimated_usd,
    sum(unpriced_calls) AS unpriced_calls, sum(cost_nanos) AS cost_nanos
FROM (
    SELECT * FROM hourly_spend WHERE dimension <> ''
    UNION ALL
    SELECT
        named.dimension, hour_us, '(unattributed)', provider, model,
        cost_nanos, calls, input_tokens, output_tokens, estimated_nanos, unpriced_calls
    FROM (
        SELECT 'team' AS dimension UNION SELECT 'feature' UNION SELECT 'customer' UNION SELECT 'agent'
        UNION SELECT 'tool' UNION SELECT dimension FROM hourly_spend WHERE dimension <> ''
    ) AS named
    CROSS JOIN hourly_spend AS whole ON whole.dimension = ''
    UNION ALL
    SELECT
        dimension, hour_us, '(unattributed)', provider, model,
        -cost_nanos, -calls, -input_tokens, -output_tokens, -estimated_nanos, -unpriced_calls
    FROM hourly_spend WHERE dimension <> ''
)
GROUP BY dimension, hour_us, value, provider, model
HAVING sum(cost_nanos) <> 0 OR sum(calls) <> 0 OR sum(unpriced_calls) <> 0;

CREATE VIEW spend_by_team AS
SELECT hour, value AS team, provider, model, usd, calls, input_tokens, output_tokens, estimated_usd, unpriced_calls, cost_nanos
FROM spend_by_dimension WHERE dimension = 'team';
CREATE VIEW spend_by_feature AS
SELECT hour, value AS feature, provider, model, usd, calls, input_tokens, output_tokens, estimated_usd, unpriced_calls, cost_nanos
FROM spend_by_dimension WHERE dimension = 'feature';
CREATE VIEW spend_by_customer AS
SELECT hour, value AS customer, provider, model, usd, calls, input_tokens, output_tokens, estimated_usd, unpriced_calls, cost_nanos
FROM spend_by_dimension WHERE dimension = 'customer';
CREATE VIEW spend_by_agent AS
SELECT hour, value AS agent, provider, model, usd, calls, input_tokens, output_tokens, estimated_usd, unpriced_calls, cost_nanos
FROM spend_by_dimension WHERE dimension = 'agent';
CREATE VIEW spend_by_tool AS
SELECT hour, value AS tool, provider, model, usd, calls, input_tokens, output_tokens, estimated_usd, unpriced_calls, cost_nanos
FROM spend_by_dimension WHERE dimension = 'tool';

CREATE VIEW spend_by_model AS
SELECT
    strftime('%Y-%m-%dT%H:00:00Z', hour_us / 1000000, 'unixepoch') AS hour, provider, model,
    cost_nanos / 1e9 AS usd, calls, input_tokens, output_tokens,
    estimated_nanos / 1e9 AS estimated_usd, unpriced_calls, cost_nanos
FROM hourly_spend WHERE dimension = '';

CREATE VIEW spend_by_day AS
SELECT
    strftime('%Y-%m-%d', hour_us / 1000000, 'unixepoch') AS day,
    sum(cost_nanos) / 1e9 AS usd, sum(calls) AS calls, sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens, sum(estimated_nanos) / 1e9 AS estimated_usd,
    sum(unpriced_calls) AS unpriced_calls, sum(cost_nanos) AS cost_nanos
FROM hourly_spend WHERE dimension = '' GROUP BY day;

CREATE VIEW spend_by_meter AS
SELECT
    name AS meter, value,
    CASE WHEN every IS NULL THEN NULL
        ELSE strftime('%Y-%m-%dT%H:%M:%SZ', window_start_us / 1000000, 'unixepoch') END AS window_start,
    spent_nanos / 1e9 AS spent_usd, held_nanos / 1e9 AS held_usd, presumed_nanos / 1e9 AS presumed_usd
FROM buckets JOIN meters USING (meter_id);
