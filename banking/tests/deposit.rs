//! Stories of the deposit module in service: behind the barrier, on a real PostgreSQL.

#![allow(clippy::inconsistent_digit_grouping, reason = "100_00 are 100.00 EUR in minor units")]

mod fixture;

use fixture::{Bank, account, call, eur, refused};
use holdfast_banking::{Closing, DepositInstruction, audit, close_account};
use holdfast_tcc_agent::{Answer, Op};

fn debit(id: &str, amount: &str) -> Vec<u8> {
    DepositInstruction::Debit { account: account(id), money: eur(amount) }.to_payload().to_vec()
}

fn credit(id: &str, amount: &str) -> Vec<u8> {
    DepositInstruction::Credit { account: account(id), money: eur(amount) }.to_payload().to_vec()
}

fn transfer(from: &str, to: &str, amount: &str) -> Vec<u8> {
    DepositInstruction::Transfer { from: account(from), to: account(to), money: eur(amount) }
        .to_payload()
        .to_vec()
}

#[tokio::test]
async fn a_transfer_is_held_then_captured() {
    let bank = Bank::with(&[("alice", 100_00), ("bob", 5_00)]).await;
    let resource = bank.resource();
    let (out, into) = (debit("alice", "80.00"), credit("bob", "80.00"));
    for (branch, payload) in [(1, &out), (2, &into)] {
        assert_eq!(resource.call(call(Op::Try, "g1", branch, payload)).await, Answer::Done);
    }
    assert_eq!(bank.counters("alice").await, (100_00, 80_00, 0));
    assert_eq!(bank.counters("bob").await, (5_00, 0, 80_00));
    // Each confirm comes twice, as after a failover; it takes effect once.
    for (branch, payload) in [(1, &out), (2, &into), (2, &into), (1, &out)] {
        assert_eq!(resource.call(call(Op::Confirm, "g1", branch, payload)).await, Answer::Done);
    }
    assert_eq!(bank.counters("alice").await, (20_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (85_00, 0, 0));
    let sql = "SELECT count(*) FROM bank.hold WHERE ended = 'captured' AND moved_minor = 8000";
    assert_eq!(bank.number(sql).await, 2);
    assert_eq!(bank.number("SELECT count(*) FROM bank.journal WHERE gid = 'g1'").await, 4);
}

#[tokio::test]
async fn a_part_of_a_hold_is_captured_and_the_rest_let_go() {
    let mut bank = Bank::with(&[("guest", 300_00), ("hotel", 0)]).await;
    let resource = bank.resource();
    let (out, into) = (debit("guest", "200.00"), credit("hotel", "200.00"));
    let part = |minor: &str| format!(r#"{{"capture":{{"amount_minor":"{minor}"}}}}"#).into_bytes();
    for (branch, payload) in [(1, &out), (2, &into)] {
        assert_eq!(resource.call(call(Op::Try, "g1", branch, payload)).await, Answer::Done);
    }
    // The guest leaves early. Each confirm comes twice, and the second, whatever it says, moves nothing.
    for branch in [1, 2, 2, 1] {
        let confirm = call(Op::Confirm, "g1", branch, part("13000"));
        assert_eq!(resource.call(confirm).await, Answer::Done);
    }
    assert_eq!(bank.counters("guest").await, (170_00, 0, 0));
    assert_eq!(bank.counters("hotel").await, (130_00, 0, 0));
    // All of it is a part, too; one cent more is refused, and the hold still stands.
    assert_eq!(resource.call(call(Op::Try, "g2", 1, debit("guest", "50.00"))).await, Answer::Done);
    for (minor, code) in [("5001", "amount_out_of_range"), ("0", "amount_out_of_range")] {
        let gid = format!("g2-{minor}");
        assert_eq!(
            resource.call(call(Op::Try, &gid, 1, debit("guest", "50.00"))).await,
            Answer::Done
        );
        let answer = resource.call(call(Op::Confirm, &gid, 1, part(minor))).await;
        assert_eq!(refused(&answer).0, code);
    }
    assert_eq!(resource.call(call(Op::Confirm, "g2", 1, part("5000"))).await, Answer::Done);
    assert_eq!(bank.counters("guest").await, (120_00, 100_00, 0));
    // Where nothing is held a capture says nothing.
    for op in [Op::Try, Op::Action] {
        let answer = resource.call(call(op, &format!("g3-{}", op.as_str()), 1, part("1"))).await;
        assert_eq!(refused(&answer).0, "op_unsupported");
    }
    let books = audit(&mut bank.client).await.unwrap();
    // Nothing but the two holds whose captures were refused: people decide about them.
    let standing = ["2 holds without an end", "EUR: 10000 held to leave, 0 to arrive"];
    assert_eq!(books.findings(), standing);
}

#[tokio::test]
async fn a_cancelled_transfer_leaves_nothing_held() {
    let mut bank = Bank::with(&[("alice", 100_00), ("bob", 0)]).await;
    let resource = bank.resource();
    let (out, into) = (debit("alice", "80.00"), credit("bob", "80.00"));
    assert_eq!(resource.call(call(Op::Try, "g1", 1, &out)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Try, "g1", 2, &into)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Cancel, "g1", 1, &out)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Cancel, "g1", 2, &into)).await, Answer::Done);
    // A cancel that overtakes its try: empty, and the try is late.
    assert_eq!(resource.call(call(Op::Cancel, "g2", 1, &out)).await, Answer::Done);
    refused(&resource.call(call(Op::Try, "g2", 1, &out)).await);
    assert_eq!(bank.counters("alice").await, (100_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (0, 0, 0));
    let books = audit(&mut bank.client).await.unwrap();
    assert_eq!((books.findings(), books.holds), (vec![], 2));
}

#[tokio::test]
async fn a_refused_try_says_why_with_numbers() {
    let bank = Bank::with(&[("alice", 50_00), ("carol", 0)]).await;
    bank.open(&[("dave", 10_00)], "USD").await;
    assert_eq!(close_account(&bank.client, &account("alice")).await.unwrap(), Closing::InUse);
    assert_eq!(close_account(&bank.client, &account("carol")).await.unwrap(), Closing::Closed);
    assert_eq!(close_account(&bank.client, &account("nobody")).await.unwrap(), Closing::Unknown);
    let resource = bank.resource();
    let table = [
        (debit("alice", "80.00"), "insufficient_funds", "available 50.00 EUR, needed 80.00 EUR"),
        (debit("nobody", "1.00"), "account_unknown", "nobody"),
        (credit("nobody", "1.00"), "account_unknown", "nobody"),
        (credit("carol", "1.00"), "account_closed", "carol"),
        (debit("dave", "1.00"), "currency_mismatch", "kept in USD, the instruction is in EUR"),
        (transfer("alice", "dave", "1.00"), "op_unsupported", "saga"),
    ];
    for (branch, (payload, code, words)) in (1..).zip(table) {
        for _ in 0..2 {
            // Asked again, it is refused again, in the same words.
            let answer = resource.call(call(Op::Try, "g1", branch, &payload)).await;
            let (found, message) = refused(&answer);
            assert_eq!(found, code);
            assert!(message.contains(words), "{message}");
        }
    }
    assert_eq!(bank.counters("alice").await, (50_00, 0, 0));
    assert_eq!(bank.number("SELECT count(*) FROM bank.hold").await, 0);
}

#[tokio::test]
async fn amounts_out_of_range_and_bad_payloads_are_refused() {
    let bank = Bank::with(&[("alice", 50_00)]).await;
    let resource = bank.resource();
    let amount = |amount: &str| {
        format!(r#"{{"debit":{{"account":"alice","amount_minor":"{amount}","currency":"EUR"}}}}"#)
    };
    let table = [
        (amount("0"), "amount_out_of_range"),
        (amount("-1"), "amount_out_of_range"),
        (amount("9223372036854775808"), "amount_out_of_range"),
        (amount("1000000000000000000"), "amount_out_of_range"),
        (amount("1.5"), "bad_payload"),
        (amount(""), "bad_payload"),
        (String::new(), "bad_payload"),
        ("{}".to_owned(), "bad_payload"),
        (
            r#"{"debit":{"account":"alice","amount_minor":100,"currency":"EUR"}}"#.to_owned(),
            "bad_payload",
        ),
        (amount("1").replace("EUR", "EUX"), "bad_payload"),
        (amount("1").replace("alice", "alice' OR true --"), "bad_payload"),
        (amount("1").replace("}}", r#","memo":"hi"}}"#), "bad_payload"),
    ];
    for (branch, (payload, code)) in (1..).zip(table) {
        for op in [Op::Try, Op::Action] {
            let gid = if op == Op::Try { "tcc" } else { "saga" };
            let answer = resource.call(call(op, gid, branch, &payload)).await;
            let (found, message) = refused(&answer);
            assert_eq!(found, code, "{payload}");
            assert!(code == "amount_out_of_range" || message.contains("Write {"), "{message}");
        }
    }
    assert_eq!(bank.counters("alice").await, (50_00, 0, 0));
}

#[tokio::test]
async fn a_saga_goes_forward_and_back() {
    let mut bank = Bank::with(&[("alice", 100_00), ("bob", 0)]).await;
    let resource = bank.resource();
    let (out, into) = (debit("alice", "60.00"), credit("bob", "60.00"));
    assert_eq!(resource.call(call(Op::Action, "g1", 1, &out)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Action, "g1", 2, &into)).await, Answer::Done);
    assert_eq!(bank.counters("alice").await, (40_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (60_00, 0, 0));
    for _ in 0..2 {
        assert_eq!(resource.call(call(Op::Compensate, "g1", 2, &into)).await, Answer::Done);
        assert_eq!(resource.call(call(Op::Compensate, "g1", 1, &out)).await, Answer::Done);
    }
    assert_eq!(bank.counters("alice").await, (100_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (0, 0, 0));

    // What was spent cannot be taken back: refused, for people to see to, and never below zero.
    assert_eq!(resource.call(call(Op::Action, "g2", 1, &into)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Action, "g3", 1, debit("bob", "59.99"))).await, Answer::Done);
    let answer = resource.call(call(Op::Compensate, "g2", 1, &into)).await;
    let (code, message) = refused(&answer);
    assert_eq!(code, "insufficient_funds");
    assert!(message.contains("available 0.01 EUR, needed 60.00 EUR"), "{message}");
    assert_eq!(bank.counters("bob").await, (1, 0, 0));
    // Money has come in from nowhere and gone out to nowhere, but every account's counters are its journal's fold.
    let books = audit(&mut bank.client).await.unwrap();
    assert_eq!((books.fold_mismatches, books.hold_mismatches, books.negative), (0, 0, 0));
}

#[tokio::test]
async fn a_transfer_within_one_shard_is_one_local_transaction() {
    let mut bank = Bank::with(&[("alice", 100_00), ("bob", 0)]).await;
    let resource = bank.resource();
    let payload = transfer("alice", "bob", "60.00");
    assert_eq!(resource.call(call(Op::Action, "g1", 1, &payload)).await, Answer::Done);
    assert_eq!(resource.call(call(Op::Action, "g1", 1, &payload)).await, Answer::Done);
    assert_eq!(bank.counters("alice").await, (40_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (60_00, 0, 0));
    let legs = "SELECT count(DISTINCT xmin::text) FROM bank.journal WHERE gid = 'g1'";
    assert_eq!(bank.number(legs).await, 1);
    assert_eq!(bank.number("SELECT count(*) FROM bank.journal WHERE gid = 'g1'").await, 2);

    let answer = resource.call(call(Op::Action, "g2", 1, &payload)).await;
    assert_eq!(refused(&answer).0, "insufficient_funds");
    let answer = resource.call(call(Op::Action, "g3", 1, transfer("bob", "bob", "1.00"))).await;
    assert_eq!(refused(&answer).0, "same_account");
    assert_eq!(resource.call(call(Op::Compensate, "g1", 1, &payload)).await, Answer::Done);
    assert_eq!(bank.counters("alice").await, (100_00, 0, 0));
    assert_eq!(bank.counters("bob").await, (0, 0, 0));
    assert_eq!(audit(&mut bank.client).await.unwrap().findings(), Vec::<String>::new());
}

#[tokio::test]
async fn a_hold_with_an_end_that_nobody_understands_does_not_end_again() {
    let bank = Bank::with(&[("alice", 100_00)]).await;
    let placed = bank.carry_out(&[call(Op::Try, "g1", 1, debit("alice", "80.00"))]).await;
    assert_eq!(placed, [Answer::Done]);
    let sql = "INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
               VALUES ('no account', 'g1', 1, 'confirm', 'hold_captured', -8000, -8000, 0)";
    bank.sql(sql).await;
    for op in [Op::Confirm, Op::Cancel] {
        let answers = bank.carry_out(&[call(op, "g1", 1, "")]).await;
        assert_eq!(refused(&answers[0]).0, "hold_unknown");
    }
    assert_eq!(bank.counters("alice").await, (100_00, 80_00, 0));
}

#[tokio::test]
async fn a_confirm_without_its_hold_is_refused_and_changes_nothing() {
    let bank = Bank::with(&[("alice", 100_00)]).await;
    // Straight to the participant: the barrier would not let it through.
    for op in [Op::Confirm, Op::Cancel] {
        let answers = bank.carry_out(&[call(op, "g1", 1, debit("alice", "1.00"))]).await;
        assert_eq!(refused(&answers[0]).0, "hold_unknown");
    }
    bank.carry_out(&[call(Op::Try, "g1", 1, debit("alice", "1.00"))]).await;
    // The hold is the truth, whatever the payload of the confirm says.
    let answers = bank.carry_out(&[call(Op::Confirm, "g1", 1, debit("alice", "99.00"))]).await;
    assert_eq!(answers, [Answer::Done]);
    for op in [Op::Confirm, Op::Cancel] {
        let answers = bank.carry_out(&[call(op, "g1", 1, "")]).await;
        assert_eq!(refused(&answers[0]).0, "hold_resolved");
    }
    assert_eq!(bank.counters("alice").await, (99_00, 0, 0));
}
