-- The ledger of one data source. Counters on the account, and an append-only journal whose fold they are.
--
-- No foreign keys point at accounts or holds: they would take a lock and an index look-up for every row of a batch to prove what
-- the ledger has just read and decided in the same local transaction. The audit proves it again, for all rows, by plain SQL.

-- Half-filled pages, so that an update of the counters stays on its page and touches no index.
CREATE TABLE bank.account (
    -- Every update of an account proves its checks anew, and counting within an expression takes several times as long.
    id              text COLLATE "C" PRIMARY KEY CHECK (id !~ '[^A-Za-z0-9-]' AND length(id) BETWEEN 1 AND 34),
    currency        text COLLATE "C" NOT NULL CHECK (currency !~ '[^A-Z]' AND length(currency) = 3),
    state           text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    balance_minor   bigint NOT NULL CHECK (balance_minor >= 0),
    held_out_minor  bigint NOT NULL DEFAULT 0 CHECK (held_out_minor >= 0),
    held_in_minor   bigint NOT NULL DEFAULT 0 CHECK (held_in_minor >= 0),
    CONSTRAINT account_covers_holds CHECK (held_out_minor <= balance_minor),
    -- Whatever is announced to arrive will fit.
    CONSTRAINT account_has_room CHECK (held_in_minor <= 9223372036854775807 - balance_minor)
) WITH (fillfactor = 50);

-- One row for each effect. What a branch set aside stands here as well, and how that ended.
CREATE TABLE bank.journal (
    account         text COLLATE "C" NOT NULL,
    id              bigint GENERATED ALWAYS AS IDENTITY,
    gid             text COLLATE "C" NOT NULL,
    branch          integer NOT NULL,
    op              text COLLATE "C" NOT NULL,
    kind            text COLLATE "C" NOT NULL,
    balance_delta   bigint NOT NULL,
    held_out_delta  bigint NOT NULL,
    held_in_delta   bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (account, id),
    -- What places a hold moves nothing, and holds in one direction. One check, and the kinds as one constant: PostgreSQL reads and proves
    -- every check anew for each statement.
    CONSTRAINT journal_kind_check CHECK (
        kind = ANY ('{opening,hold_captured,hold_released,debit,credit,debit_reversed,credit_reversed}')
        OR kind = 'hold_placed' AND balance_delta = 0 AND least(held_out_delta, held_in_delta) = 0)
);

-- Makes a second effect of a branch impossible, whatever calls it; a hold ends once, captured or released.
CREATE UNIQUE INDEX journal_once ON bank.journal
    (gid, branch, account, (CASE kind WHEN 'hold_released' THEN 'hold_captured' ELSE kind END));

-- The holds that the journal tells of, for people and the audit: what was set aside, and what of it moved in the end.
CREATE VIEW bank.hold AS
SELECT p.gid, p.branch, p.account, CASE WHEN p.held_in_delta = 0 THEN 'out' ELSE 'in' END AS direction,
       p.held_out_delta + p.held_in_delta AS amount_minor, p.at AS placed_at,
       CASE e.kind WHEN 'hold_captured' THEN 'captured' WHEN 'hold_released' THEN 'released' END AS ended,
       abs(e.balance_delta) AS moved_minor, e.at AS ended_at
FROM bank.journal AS p
LEFT JOIN bank.journal AS e ON e.gid = p.gid AND e.branch = p.branch AND e.account = p.account
                           AND e.kind IN ('hold_captured', 'hold_released')
WHERE p.kind = 'hold_placed';
