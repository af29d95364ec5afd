//! The coordinator process: doors, proposer, replica and dispatcher around the transaction machine.
