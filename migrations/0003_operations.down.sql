-- Undoes 0003_operations.up.sql: forgets who evicted what.

DROP FUNCTION pgonce.purge_expired(integer);
DROP TABLE pgonce.evictions;
