-- The ledger of one data source. Counters on the account, and an append-only journal whose fold they are.
--
-- No foreign keys point at accounts or holds: they would take a lock and an index look-up for every row of a batch to prove what
-- the ledger has just read and decided in the same local transaction. The audit proves it again, for all rows, by plain SQL.

-- Half-filled pages, so that an update of the counters stays on its page and touches no index.
CREATE TABLE bank.account (
    id              text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9-]{1,34}$'),
    currency        text COLLATE "C" NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    state           text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    balance_minor   bigint NOT NULL CHECK (balance_minor >= 0),
    held_out_minor  bigint NOT NULL DEFAULT 0 CHECK (held_out_minor >= 0),
    held_in_minor   bigint NOT NULL DEFAULT 0 CHECK (held_in_minor >= 0),
    CONSTRAINT account_covers_holds CHECK (held_out_minor <= balance_minor),
    -- Whatever is announced to arrive will fit.
    CONSTRAINT account_has_room CHECK (held_in_minor <= 9223372036854775807 - balance_minor)
) WITH (fillfactor = 50);

-- Money set aside by a branch. Never changed: how it ended stands in bank.hold_resolution.
CREATE TABLE bank.hold (
    gid             text COLLATE "C" NOT NULL,
    branch          integer NOT NULL,
    account         text COLLATE "C" NOT NULL,
    direction       text COLLATE "C" NOT NULL CHECK (direction IN ('out', 'in')),
    amount_minor    bigint NOT NULL CHECK (amount_minor > 0),
    currency        text COLLATE "C" NOT NULL,
    placed_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gid, branch)
);

-- How a hold ended. The primary key says: once.
CREATE TABLE bank.hold_resolution (
    gid             text COLLATE "C" NOT NULL,
    branch          integer NOT NULL,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('captured', 'released')),
    amount_minor    bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gid, branch),
    CHECK ((kind = 'captured' AND amount_minor > 0) OR (kind = 'released' AND amount_minor = 0))
);

-- One row for each effect. The unique key makes a second effect of a branch impossible, whatever calls it.
CREATE TABLE bank.journal (
    account         text COLLATE "C" NOT NULL,
    id              bigint GENERATED ALWAYS AS IDENTITY,
    gid             text COLLATE "C" NOT NULL,
    branch          integer NOT NULL,
    op              text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL CHECK (kind IN ('opening', 'hold_placed', 'hold_captured', 'hold_released',
                                                              'debit', 'credit', 'debit_reversed', 'credit_reversed')),
    balance_delta   bigint NOT NULL,
    held_out_delta  bigint NOT NULL,
    held_in_delta   bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, id),
    UNIQUE (gid, branch, account, kind)
);
