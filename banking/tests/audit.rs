//! The audit finds what is planted, and nothing where nothing is.

#![allow(clippy::inconsistent_digit_grouping, reason = "100_00 are 100.00 EUR in minor units")]

mod fixture;

use fixture::{Bank, account, call, connect, eur};
use holdfast_banking::{Audit, DepositInstruction, audit, audit_all};
use holdfast_tcc_agent::{Answer, Op};

/// Two data sources between which transfers have run: g1 and g2 committed, g3 cancelled.
async fn two_sources() -> [Bank; 2] {
    let banks = [
        Bank::with(&[("alice", 100_00), ("anna", 10_00)]).await,
        Bank::with(&[("bob", 50_00), ("berta", 0)]).await,
    ];
    let out = |amount| DepositInstruction::Debit { account: account("alice"), money: eur(amount) };
    let into = |amount| DepositInstruction::Credit { account: account("bob"), money: eur(amount) };
    for (gid, amount, end) in
        [("g1", "10.00", Op::Confirm), ("g2", "20.00", Op::Confirm), ("g3", "30.00", Op::Cancel)]
    {
        for op in [Op::Try, end] {
            let answers = banks[0].carry_out(&[call(op, gid, 1, out(amount).to_payload())]).await;
            assert_eq!(answers, [Answer::Done]);
            let answers = banks[1].carry_out(&[call(op, gid, 2, into(amount).to_payload())]).await;
            assert_eq!(answers, [Answer::Done]);
        }
    }
    banks
}

async fn books(banks: &[Bank]) -> (Audit, Vec<String>) {
    let mut sources = Vec::new();
    for (number, bank) in (1..).zip(banks) {
        sources.push((format!("pg-{number}"), connect(&bank.config()).await));
    }
    let mut seen = Vec::new();
    let audit = audit_all(&mut sources, |effect| {
        seen.push(format!(
            "{} {} -{} +{}",
            effect.gid, effect.currency, effect.lost, effect.gained
        ));
    })
    .await
    .expect("the server is up");
    (audit, seen)
}

#[tokio::test]
async fn right_books_are_right() {
    let banks = two_sources().await;
    let (audit, seen) = books(&banks).await;
    assert_eq!(audit.findings(), Vec::<String>::new());
    assert!(audit.is_right());
    assert_eq!(seen, ["g1 EUR -1000 +1000", "g2 EUR -2000 +2000", "g3 EUR -0 +0"]);
    assert_eq!((audit.gids, audit.gids_moved, audit.gids_unbalanced), (3, 2, 0));
    let total = audit.totals()["EUR"];
    assert_eq!((total.opening, total.balance), (160_00, 160_00));
    assert_eq!((total.debits, total.credits), (30_00, 30_00));
    assert_eq!(audit.to_string(), "the books are right: 2 data sources, 3 global transactions");
}

/// Plants one error by SQL and gives what the audit then says.
async fn findings_after(which: usize, sql: &str) -> Vec<String> {
    let banks = two_sources().await;
    banks[which].sql(sql).await;
    let (audit, _) = books(&banks).await;
    assert!(!audit.is_right(), "not found: {sql}");
    audit.findings()
}

fn assert_found(findings: &[String], words: &str) {
    assert!(
        findings.iter().any(|finding| finding.contains(words)),
        "{words:?} is not in {findings:#?}"
    );
}

#[tokio::test]
async fn a_journal_row_that_was_removed_is_found() {
    let sql = "DELETE FROM bank.journal WHERE gid = 'g1' AND kind = 'hold_captured'";
    let findings = findings_after(0, sql).await;
    assert_found(&findings, "pg-1: 1 accounts whose counters are not the fold");
    assert_found(
        &findings,
        "1 global transactions did not end alike everywhere: g1 (EUR: lost 0, gained 1000)",
    );
    assert_found(&findings, "EUR: 2000 was debited and 3000 credited");
}

#[tokio::test]
async fn a_balance_that_was_changed_is_found() {
    let sql = "UPDATE bank.account SET balance_minor = balance_minor + 1 WHERE id = 'bob'";
    let findings = findings_after(1, sql).await;
    assert_found(&findings, "pg-2: 1 accounts whose counters are not the fold");
    assert_found(&findings, "EUR: all accounts were opened with 16000, and now have 16001");
}

#[tokio::test]
async fn a_change_that_covers_its_tracks_on_one_source_is_found_over_all() {
    // The balance and the journal agree with each other; only the other data source knows better.
    let sql = "UPDATE bank.account SET balance_minor = balance_minor - 5 WHERE id = 'bob';
               UPDATE bank.journal SET balance_delta = balance_delta - 5 WHERE gid = 'g2' AND kind = 'hold_captured'";
    let findings = findings_after(1, sql).await;
    assert_found(&findings, "g2 (EUR: lost 2000, gained 1995)");
    assert!(!findings.iter().any(|finding| finding.starts_with("pg-")), "{findings:?}");
}

#[tokio::test]
async fn a_hold_without_an_end_is_found() {
    let banks = two_sources().await;
    let hold = DepositInstruction::Debit { account: account("anna"), money: eur("1.00") };
    banks[0].carry_out(&[call(Op::Try, "g9", 1, hold.to_payload())]).await;
    let (audit, _) = books(&banks).await;
    assert_found(&audit.findings(), "pg-1: 1 holds without an end");
    assert_found(&audit.findings(), "pg-1: EUR: 100 held to leave, 0 to arrive");
}

#[tokio::test]
async fn an_end_that_does_not_fit_its_hold_is_found() {
    for sql in [
        "DELETE FROM bank.journal WHERE gid = 'g3' AND kind = 'hold_placed'",
        "UPDATE bank.journal SET held_out_delta = -2999 WHERE gid = 'g3' AND kind = 'hold_released'",
        "UPDATE bank.journal SET balance_delta = -1 WHERE gid = 'g3' AND kind = 'hold_released'",
        "UPDATE bank.journal SET balance_delta = -1001 WHERE gid = 'g1' AND kind = 'hold_captured'",
        "UPDATE bank.journal SET balance_delta = 1000 WHERE gid = 'g1' AND kind = 'hold_captured'",
    ] {
        let findings = findings_after(0, sql).await;
        assert_found(&findings, "pg-1: 1 ends that do not fit their hold");
    }
}

/// A row for each of two accounts, of one branch: the journal itself does not forbid it.
#[tokio::test]
async fn a_branch_with_a_hold_on_two_accounts_is_found() {
    let sql = "INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
               VALUES ('anna', 'g3', 1, 'try', 'hold_placed', 0, 5, 0),
                      ('anna', 'g3', 1, 'cancel', 'hold_released', 0, -5, 0)";
    let findings = findings_after(0, sql).await;
    assert_eq!(findings, ["pg-1: 1 branches with more than one hold"]);
}

/// What places a hold moves nothing and holds in one direction; everything else is refused where it is written.
#[tokio::test]
async fn a_hold_that_moves_money_or_holds_in_two_directions_is_not_written() {
    let bank = Bank::with(&[("alice", 1_00)]).await;
    let written = async |kind: &str, deltas: &str| {
        let sql = format!(
            "INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
             VALUES ('alice', 'g{kind}{deltas}', 1, 'try', '{kind}', {deltas})"
        );
        bank.client.batch_execute(&sql).await.map_err(|error| {
            let constraint = error.as_db_error().and_then(|db| db.constraint());
            constraint.unwrap_or_default().to_owned()
        })
    };
    for right in ["0, 1, 0", "0, 0, 1"] {
        assert_eq!(written("hold_placed", right).await, Ok(()), "{right}");
    }
    for wrong in ["-1, 1, 0", "1, 0, 1", "0, 1, 1", "0, -1, 0", "0, 0, -1", "0, 1, -1"] {
        let refused = Err("journal_kind_check".to_owned());
        assert_eq!(written("hold_placed", wrong).await, refused, "{wrong}");
    }
    assert_eq!(written("holdplaced", "0, 1, 0").await, Err("journal_kind_check".to_owned()));
    assert_eq!(written("credit", "5, 0, 0").await, Ok(()));
}

#[tokio::test]
async fn a_hold_counter_without_a_hold_is_found() {
    let sql = "UPDATE bank.account SET held_out_minor = 7 WHERE id = 'anna';
               INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
               VALUES ('anna', 'gX', 1, 'action', 'credit', 0, 7, 0)";
    let findings = findings_after(0, sql).await;
    assert_found(
        &findings,
        "pg-1: 1 accounts whose hold counters are not the sum of their open holds",
    );
}

#[tokio::test]
async fn an_account_that_vanished_is_found() {
    let findings = findings_after(0, "DELETE FROM bank.account WHERE id = 'anna'").await;
    assert_found(&findings, "pg-1: 1 accounts whose counters are not the fold");
    assert_found(&findings, "???: opened with 1000");
}

#[tokio::test]
async fn an_account_below_zero_is_found() {
    let sql = "ALTER TABLE bank.account DROP CONSTRAINT account_balance_minor_check;
               ALTER TABLE bank.account DROP CONSTRAINT account_covers_holds;
               ALTER TABLE bank.account DROP CONSTRAINT account_has_room;
               UPDATE bank.account SET balance_minor = -1 WHERE id = 'berta'";
    let findings = findings_after(1, sql).await;
    assert_found(&findings, "pg-2: 1 accounts below zero");
}

#[tokio::test]
async fn a_prepared_transaction_of_ours_is_found() {
    let mut bank = Bank::with(&[("alice", 1_00)]).await;
    let sql = "BEGIN; UPDATE bank.account SET state = state; PREPARE TRANSACTION 'holdfast-g1-1'";
    bank.sql(sql).await;
    let found = audit(&mut bank.client).await.unwrap();
    assert_eq!(found.findings(), ["1 prepared transactions left"]);
    bank.sql("ROLLBACK PREPARED 'holdfast-g1-1'").await;
    // Another program's is none of ours.
    bank.sql("BEGIN; UPDATE bank.account SET state = state; PREPARE TRANSACTION 'other-1'").await;
    assert_eq!(audit(&mut bank.client).await.unwrap().findings(), Vec::<String>::new());
    bank.sql("ROLLBACK PREPARED 'other-1'").await;
}

#[tokio::test]
async fn a_long_journal_is_compared_in_chunks() {
    let banks = [Bank::with(&[("alice", 0)]).await, Bank::with(&[("bob", 0)]).await];
    let rows = |account: &str, sign: i32| {
        format!(
            "INSERT INTO bank.journal (account, gid, branch, op, kind, balance_delta, held_out_delta, held_in_delta)
             SELECT '{account}', 'g' || n, 1, 'action', 'credit', {sign} * n, 0, 0
             FROM generate_series(1, 25000) AS n"
        )
    };
    banks[0].sql(&rows("alice", 1)).await;
    banks[1].sql(&rows("bob", -1)).await;
    banks[1].sql("DELETE FROM bank.journal WHERE gid IN ('g1', 'g12345', 'g25000')").await;
    let (audit, seen) = books(&banks).await;
    assert_eq!(seen.len(), 25_000);
    assert!(seen.is_sorted_by_key(|line| line.split(' ').next().unwrap().to_owned()));
    assert_eq!((audit.gids, audit.gids_unbalanced), (25_000, 3));
    let named: Vec<&str> = audit.unbalanced_examples.iter().map(|effect| &*effect.gid).collect();
    assert_eq!(named, ["g1", "g12345", "g25000"]);
}
