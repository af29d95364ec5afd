//! A payment as a global transaction: across shards a TCC of a debit and a credit, within one a Saga of one action.

use holdfast_banking::DepositInstruction;
use holdfast_client::Submission;
use holdfast_ledger::{AccountId, Amount, Money};

use super::workload::{Bank, Transfer};

/// The submission that makes `transfer`, still without a gid.
pub(crate) fn transfer(bank: &Bank, transfer: Transfer) -> Submission {
    let Transfer { from, to, amount } = transfer;
    if bank.is_one_shard(transfer) {
        let account = |place: usize| bank.accounts[place].id.clone();
        let money = Money { amount, currency: bank.currency };
        let whole = DepositInstruction::Transfer { from: account(from), to: account(to), money };
        return Submission::saga().branch(participant(bank, from), whole.to_payload());
    }
    let submission =
        Submission::tcc().branch(participant(bank, from), debit(bank, from, amount).to_payload());
    submission.branch(participant(bank, to), credit(bank, to, amount).to_payload())
}

/// Takes `amount` from the account at that place.
pub(crate) fn debit(bank: &Bank, place: usize, amount: Amount) -> DepositInstruction {
    let (account, money) = leg(bank, place, amount);
    DepositInstruction::Debit { account, money }
}

/// Gives `amount` to the account at that place.
pub(crate) fn credit(bank: &Bank, place: usize, amount: Amount) -> DepositInstruction {
    let (account, money) = leg(bank, place, amount);
    DepositInstruction::Credit { account, money }
}

/// Who serves the account at that place.
pub(crate) fn participant(bank: &Bank, place: usize) -> String {
    format!("deposit@{}", bank.shards[bank.accounts[place].shard])
}

fn leg(bank: &Bank, place: usize, amount: Amount) -> (AccountId, Money) {
    (bank.accounts[place].id.clone(), Money { amount, currency: bank.currency })
}
