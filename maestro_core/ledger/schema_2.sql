-- Schema 2: prices change, so a call may be corrected more than once; all else happens to a key once, as before.
DROP INDEX journal_by_key;
CREATE UNIQUE INDEX journal_by_key ON journal (key, kind, CASE kind WHEN 'corrected' THEN seq ELSE 0 END);
