//! The bank's modules, plugged in as participants, on PostgreSQL.
