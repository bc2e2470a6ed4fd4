-- Undoes 0005_optimistic.up.sql.

DROP FUNCTION pgonce.refuse_commit();
