//! The deposit module: debits, credits and transfers on the accounts of one data source.

use std::collections::BTreeMap;

use async_trait::async_trait;
use holdfast_fault::{Site, reached};
use holdfast_ledger::{Amount, BranchKey, Direction, Instruction, Refusal};
use holdfast_tcc_agent::{Answer, Call, LocalTransaction, Op, Participant};

use super::instruction::DepositInstruction;
use crate::store::Batch;

/// The deposit participant. It has no state of its own: everything is in the data source.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deposit;

#[async_trait]
impl Participant for Deposit {
    async fn carry_out(
        &self,
        local: LocalTransaction<'_>,
        calls: &[Call],
    ) -> Result<Vec<Answer>, tokio_postgres::Error> {
        // Read first, so that a call nobody understands locks nothing.
        let read: Vec<Result<(BranchKey, Instruction), Answer>> = calls.iter().map(read).collect();
        let instructions: Vec<_> =
            read.iter().filter_map(|call| call.as_ref().ok()).cloned().collect();
        if instructions.is_empty() {
            return Ok(read.into_iter().filter_map(Result::err).collect());
        }
        let mut batch = Batch::load(local, &instructions).await?;
        let mut tally = Tally::default();
        let answers = calls
            .iter()
            .zip(read)
            .map(|(call, read)| {
                let answer = match read {
                    Ok((branch, instruction)) => match batch.decide(&branch, &instruction) {
                        Ok(()) => {
                            tally.transfer(call.op, &instruction, &batch, &branch);
                            Answer::Done
                        }
                        Err(refusal) => refused(&refusal),
                    },
                    Err(answer) => answer,
                };
                tally.call(call.op, &answer);
                answer
            })
            .collect();
        tally.count();
        reached(Site::BankDecided);
        batch.write(local).await?;
        Ok(answers)
    }

    fn acts_locally(&self) -> bool {
        true
    }
}

/// What the call asks of the ledger, or why it asks nothing that can be understood.
fn read(call: &Call) -> Result<(BranchKey, Instruction), Answer> {
    let branch = BranchKey::new(call.gid.as_str(), call.branch);
    let payload = || {
        DepositInstruction::parse(&call.payload).map_err(|bad| Answer::Refused {
            code: bad.code().to_owned(),
            message: bad.to_string(),
        })
    };
    let instruction = match call.op {
        Op::Try => match payload()? {
            DepositInstruction::Debit { account, money } => {
                Instruction::PlaceHold { direction: Direction::Out, account, money }
            }
            DepositInstruction::Credit { account, money } => {
                Instruction::PlaceHold { direction: Direction::In, account, money }
            }
            DepositInstruction::Transfer { .. } => {
                let message = "a transfer within one shard is one local transaction and has no try; submit it as a saga \
                               of one action, or write a debit branch and a credit branch";
                return Err(Answer::Refused {
                    code: "op_unsupported".to_owned(),
                    message: message.to_owned(),
                });
            }
            DepositInstruction::Capture { .. } => return Err(capture_without_hold()),
        },
        Op::Confirm => Instruction::Capture { amount: captured(call, payload)? },
        Op::Cancel => Instruction::Release,
        Op::Action => match payload()? {
            DepositInstruction::Debit { account, money } => Instruction::Debit { account, money },
            DepositInstruction::Credit { account, money } => Instruction::Credit { account, money },
            DepositInstruction::Transfer { from, to, money } => {
                Instruction::Transfer { from, to, money }
            }
            DepositInstruction::Capture { .. } => return Err(capture_without_hold()),
        },
        Op::Prepare | Op::Commit | Op::Rollback => {
            let message = "the deposit module takes part in tcc and saga transactions; the verbs of xa are for databases";
            return Err(Answer::Unknown { message: message.to_owned() });
        }
        Op::Compensate => match payload()? {
            DepositInstruction::Debit { account, money } => {
                Instruction::ReverseDebit { account, money }
            }
            DepositInstruction::Credit { account, money } => {
                Instruction::ReverseCredit { account, money }
            }
            DepositInstruction::Transfer { from, to, money } => {
                Instruction::ReverseTransfer { from, to, money }
            }
            DepositInstruction::Capture { .. } => return Err(capture_without_hold()),
        },
    };
    Ok((branch, instruction))
}

/// How much of its hold a confirm captures; `None`: all of it. A payload that is none of ours is refused: nobody guesses how much was meant.
fn captured(
    call: &Call,
    payload: impl Fn() -> Result<DepositInstruction, Answer>,
) -> Result<Option<Amount>, Answer> {
    // A branch of which nothing else was said carries what its try carried, and the hold says it all.
    if call.payload.is_empty() {
        return Ok(None);
    }
    match payload()? {
        DepositInstruction::Capture { amount } => Ok(Some(amount)),
        DepositInstruction::Debit { .. }
        | DepositInstruction::Credit { .. }
        | DepositInstruction::Transfer { .. } => Ok(None),
    }
}

fn capture_without_hold() -> Answer {
    let message = "a capture says at the confirm how much of a hold moves; write a debit, a credit or a transfer here, and \
                   the capture in the submit of an enlisted tcc transaction";
    Answer::Refused { code: "op_unsupported".to_owned(), message: message.to_owned() }
}

fn refused(refusal: &Refusal) -> Answer {
    Answer::Refused { code: refusal.code().to_owned(), message: refusal.to_string() }
}

/// What a batch adds to the metrics; each of them is looked up once for all calls.
///
/// A local transaction that PostgreSQL makes us repeat is counted each time: these are measures of work, the audit is the measure of money.
#[derive(Default)]
struct Tally {
    /// By operation and answer.
    calls: BTreeMap<(&'static str, &'static str), u64>,
    /// By path.
    transfers: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// A transfer is counted where its money leaves: at once on one shard, at the confirm of the debit across shards.
    fn transfer(&mut self, op: Op, instruction: &Instruction, batch: &Batch, branch: &BranchKey) {
        let path = if op == Op::Action && matches!(instruction, Instruction::Transfer { .. }) {
            "one_shard"
        } else if op == Op::Confirm
            && batch.hold(branch).is_some_and(|hold| hold.direction == Direction::Out)
        {
            "cross_shard"
        } else {
            return;
        };
        *self.transfers.entry(path).or_default() += 1;
    }

    fn call(&mut self, op: Op, answer: &Answer) {
        let answer = match answer {
            Answer::Done => "done",
            Answer::Refused { .. } => "refused",
            Answer::Working | Answer::Unknown { .. } => "open",
        };
        *self.calls.entry((op.as_str(), answer)).or_default() += 1;
    }

    fn count(self) {
        for ((op, answer), by) in self.calls {
            metrics::counter!("holdfast_bank_calls_total", "op" => op, "answer" => answer)
                .increment(by);
        }
        for (path, by) in self.transfers {
            metrics::counter!("holdfast_bank_transfers_total", "path" => path).increment(by);
        }
    }
}
