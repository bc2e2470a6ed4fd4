-- Undoes 0007_allow_commit.up.sql.

DROP FUNCTION pgonce.allow_commit();
