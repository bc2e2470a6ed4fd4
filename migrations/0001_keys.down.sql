-- Undoes 0001_keys.up.sql. The schema itself stays: the migration table lives in it.

DROP VIEW pgonce.readable_keys;
DROP TABLE pgonce.keys;
DROP TABLE pgonce.unfinished;
