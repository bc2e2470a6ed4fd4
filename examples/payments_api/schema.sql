-- The application's own tables. Every row belongs to a tenant, and amounts are in cents.

CREATE TABLE accounts (
    tenant  text NOT NULL,
    id      text NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0),
    PRIMARY KEY (tenant, id)
);

CREATE TABLE charges (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant      text NOT NULL,
    account     text NOT NULL,
    amount      bigint NOT NULL CHECK (amount > 0),
    refunded    bigint NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND amount),
    -- Under which key the card network knows it.
    capture_key text NOT NULL UNIQUE,
    FOREIGN KEY (tenant, account) REFERENCES accounts
);

CREATE TABLE refunds (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    charge     bigint NOT NULL REFERENCES charges,
    amount     bigint NOT NULL CHECK (amount > 0),
    refund_key text NOT NULL UNIQUE
);

CREATE INDEX ON charges (tenant, id);

INSERT INTO accounts
VALUES ('bookshop', 'alice', 50000), ('bookshop', 'bob', 1000),
       ('florist', 'alice', 20000), ('florist', 'carol', 7500);
