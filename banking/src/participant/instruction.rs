//! What a branch's payload says to the deposit module: strict JSON, money as a string of minor units.

use bytes::Bytes;
use holdfast_ledger::{AccountId, Amount, BadAmount, Currency, Money};
use serde::{Deserialize, Serialize};

/// The longest payload that is read; the longest right one is far below.
const PAYLOAD_BYTES_MAX: usize = 4096;

/// One branch's instruction. As JSON, one of
///
/// ```json
/// {"debit":    {"account": "A-1", "amount_minor": "1050", "currency": "EUR"}}
/// {"credit":   {"account": "B-7", "amount_minor": "1050", "currency": "EUR"}}
/// {"transfer": {"from": "A-1", "to": "A-2", "amount_minor": "1050", "currency": "EUR"}}
/// {"capture":  {"amount_minor": "700"}}
/// ```
///
/// Debit and credit serve TCC (a hold, then its capture or release) and Saga (a posting, then its reversal); a transfer needs both
/// accounts on this shard and serves Saga alone, since it is one local transaction. A capture is for the confirm of a debit or credit
/// of which less moves than is held: so much of it, in the currency of the hold; the rest is let go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub enum DepositInstruction {
    /// Takes money from an account.
    Debit {
        /// The account that pays.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Gives money to an account.
    Credit {
        /// The account that receives.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Says at the confirm how much of the hold moves.
    Capture {
        /// At most what is held.
        amount: Amount,
    },
    /// Moves money between two accounts of one shard.
    Transfer {
        /// The account that pays.
        from: AccountId,
        /// The account that receives.
        to: AccountId,
        /// How much.
        money: Money,
    },
}

/// A payload that is no instruction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    /// It is not JSON of the right shape, or a value in it is malformed.
    #[error(
        "{0}. Write {{\"debit\":{{\"account\":\"A-1\",\"amount_minor\":\"1050\",\"currency\":\"EUR\"}}}}, \"credit\" in the same shape, or {{\"transfer\":{{\"from\":\"A-1\",\"to\":\"A-2\",\"amount_minor\":\"1050\",\"currency\":\"EUR\"}}}}"
    )]
    Malformed(String),
    /// The amount is a whole number, but none that may be moved.
    #[error("{0}")]
    AmountOutOfRange(String),
}

impl BadPayload {
    /// The refusal's code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "bad_payload",
            Self::AmountOutOfRange(_) => "amount_out_of_range",
        }
    }
}

impl DepositInstruction {
    /// Reads a payload.
    /// # Errors
    /// [`BadPayload`] for anything but exactly one of the shapes above: unknown or repeated fields, numbers in place of strings, and
    /// more than 4 KiB are all refused.
    pub fn parse(payload: &[u8]) -> Result<Self, BadPayload> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            let found = payload.len();
            let cause = format!("the payload has {found} bytes, more than {PAYLOAD_BYTES_MAX}");
            return Err(BadPayload::Malformed(cause));
        }
        let wire: Wire = serde_json::from_slice(payload)
            .map_err(|error| BadPayload::Malformed(error.to_string()))?;
        Self::try_from(wire)
    }

    /// The instruction as a branch's payload. The same instruction gives the same bytes.
    #[must_use]
    pub fn to_payload(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings in structures are always JSON").into()
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Wire {
    Debit(Leg),
    Credit(Leg),
    Transfer(Legs),
    Capture(Part),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leg {
    account: String,
    amount_minor: String,
    currency: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    amount_minor: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Legs {
    from: String,
    to: String,
    amount_minor: String,
    currency: String,
}

impl TryFrom<Wire> for DepositInstruction {
    type Error = BadPayload;

    fn try_from(wire: Wire) -> Result<Self, BadPayload> {
        Ok(match wire {
            Wire::Debit(leg) => Self::Debit {
                account: account(&leg.account)?,
                money: money(&leg.amount_minor, &leg.currency)?,
            },
            Wire::Credit(leg) => Self::Credit {
                account: account(&leg.account)?,
                money: money(&leg.amount_minor, &leg.currency)?,
            },
            Wire::Transfer(legs) => Self::Transfer {
                from: account(&legs.from)?,
                to: account(&legs.to)?,
                money: money(&legs.amount_minor, &legs.currency)?,
            },
            Wire::Capture(part) => Self::Capture { amount: amount(&part.amount_minor)? },
        })
    }
}

impl From<DepositInstruction> for Wire {
    fn from(instruction: DepositInstruction) -> Self {
        let leg = |account: &AccountId, money: Money| Leg {
            account: account.as_str().to_owned(),
            amount_minor: money.amount.minor().to_string(),
            currency: money.currency.code().to_owned(),
        };
        match &instruction {
            DepositInstruction::Debit { account, money } => Self::Debit(leg(account, *money)),
            DepositInstruction::Credit { account, money } => Self::Credit(leg(account, *money)),
            DepositInstruction::Capture { amount } => {
                Self::Capture(Part { amount_minor: amount.minor().to_string() })
            }
            DepositInstruction::Transfer { from, to, money } => Self::Transfer(Legs {
                from: from.as_str().to_owned(),
                to: to.as_str().to_owned(),
                amount_minor: money.amount.minor().to_string(),
                currency: money.currency.code().to_owned(),
            }),
        }
    }
}

fn account(text: &str) -> Result<AccountId, BadPayload> {
    AccountId::parse(text).map_err(|bad| BadPayload::Malformed(bad.to_string()))
}

fn money(minor: &str, currency: &str) -> Result<Money, BadPayload> {
    let currency =
        Currency::parse(currency).map_err(|bad| BadPayload::Malformed(bad.to_string()))?;
    Ok(Money { amount: amount(minor)?, currency })
}

fn amount(minor: &str) -> Result<Amount, BadPayload> {
    Amount::parse_minor(minor).map_err(|bad| match bad {
        BadAmount::OutOfRange(_) => BadPayload::AmountOutOfRange(bad.to_string()),
        BadAmount::Malformed(..) | BadAmount::TooManyDecimals { .. } => {
            BadPayload::Malformed(bad.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debit() -> DepositInstruction {
        DepositInstruction::Debit {
            account: AccountId::parse("A-1").unwrap(),
            money: Money::parse("10.50", "EUR").unwrap(),
        }
    }

    #[test]
    fn instructions_have_one_spelling_and_come_back_as_they_went() {
        let text = r#"{"debit":{"account":"A-1","amount_minor":"1050","currency":"EUR"}}"#;
        assert_eq!(debit().to_payload(), text.as_bytes());
        assert_eq!(DepositInstruction::parse(text.as_bytes()).unwrap(), debit());
        let transfer = DepositInstruction::Transfer {
            from: AccountId::parse("A-1").unwrap(),
            to: AccountId::parse("B-2").unwrap(),
            money: Money::parse("7", "JPY").unwrap(),
        };
        assert_eq!(DepositInstruction::parse(&transfer.to_payload()).unwrap(), transfer);
        let part = DepositInstruction::Capture { amount: Amount::parse_minor("700").unwrap() };
        assert_eq!(part.to_payload(), r#"{"capture":{"amount_minor":"700"}}"#.as_bytes());
        assert_eq!(DepositInstruction::parse(&part.to_payload()).unwrap(), part);
    }

    #[test]
    fn everything_else_is_a_bad_payload_that_says_what_to_write() {
        let leg = r#""account":"A","amount_minor":"1","currency":"EUR""#;
        let table: Vec<String> = vec![
            String::new(),
            "null".into(),
            "{}".into(),
            "[]".into(),
            "{".into(),
            format!(r#"{{"debit":{{{leg}}}}} x"#),
            format!(r#"{{"debit":{{{leg},"note":"x"}}}}"#),
            format!(r#"{{"debit":{{{leg},"account":"B"}}}}"#),
            format!(r#"{{"debit":{{{leg}}},"credit":{{{leg}}}}}"#),
            format!(r#"{{"Debit":{{{leg}}}}}"#),
            format!(r#"{{"withdraw":{{{leg}}}}}"#),
            format!(r#"{{"transfer":{{{leg}}}}}"#),
            r#"{"debit":{"account":"A","amount_minor":1,"currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A","amount_minor":"1.0","currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A","amount_minor":"01","currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A","amount_minor":"1","currency":"eur"}}"#.into(),
            r#"{"debit":{"account":"","amount_minor":"1","currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A B","amount_minor":"1","currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A'; --","amount_minor":"1","currency":"EUR"}}"#.into(),
            r#"{"debit":{"account":"A","amount_minor":"1"}}"#.into(),
            r#"{"capture":{}}"#.into(),
            r#"{"capture":{"amount_minor":"7.00"}}"#.into(),
            r#"{"capture":{"amount_minor":"7","currency":"EUR"}}"#.into(),
            format!(r#"{{"debit":{{{leg}}}}}{}"#, " ".repeat(PAYLOAD_BYTES_MAX)),
        ];
        for payload in table {
            let bad = DepositInstruction::parse(payload.as_bytes()).expect_err(&payload);
            assert_eq!(bad.code(), "bad_payload", "{payload}: {bad}");
            assert!(bad.to_string().contains(r#"Write {"debit":{"account""#), "{bad}");
        }
        assert_eq!(DepositInstruction::parse(b"\xff").unwrap_err().code(), "bad_payload");
    }

    #[test]
    fn amounts_out_of_range_have_their_own_code() {
        for amount in ["0", "-1", "1000000000000000000", "9223372036854775808"] {
            let payload = format!(
                r#"{{"credit":{{"account":"A","amount_minor":"{amount}","currency":"EUR"}}}}"#
            );
            let bad = DepositInstruction::parse(payload.as_bytes()).unwrap_err();
            assert_eq!(bad.code(), "amount_out_of_range", "{amount}");
            assert!(bad.to_string().contains(amount));
        }
    }
}
