//! The ledger mind: money, accounts, holds and postings.
