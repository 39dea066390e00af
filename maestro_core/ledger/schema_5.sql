-- Schema 5: what processes leave each other: which alerts were told, what detectors have learned.
CREATE TABLE notes (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,               -- alert | ...
    body TEXT NOT NULL,               -- JSON object
    revision INTEGER NOT NULL,        -- 1 when first written; a change has to know the one before
    written_at_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX notes_by_kind ON notes (kind, written_at_us);
CREATE VIEW alerts AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%SZ', written_at_us / 1000000, 'unixepoch') AS told_at,
    json_extract(body, '$.kind') AS kind, json_extract(body, '$.scope') AS scope, json_extract(body, '$.text') AS text
FROM notes WHERE kind = 'alert';
