//! What people settle by hand stays settled, on a real PostgreSQL, whatever call comes late.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

mod points;
mod postgres;

use holdfast_branch::Op;
use holdfast_tcc_agent::{Answer, Call};
use points::{call, effects, resource};
use postgres::Postgres;

/// What a late duplicate of an action may say of itself: (`repeat`, `refusal_waits`).
const EVERY_MAKE: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

fn is_refused(answer: &Answer, with: &str) -> bool {
    matches!(answer, Answer::Refused { code, .. } if code == with)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_duplicate_of_a_call_before_the_retry_never_overturns_a_refusal() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 2);
    let asked = |repeat, refusal_waits| {
        resource.call(Call { repeat, refusal_waits, ..call("g1", 1, Op::Action, 2_000) })
    };
    assert!(is_refused(&asked(false, false).await, "AM04"));
    // By now there would be points enough.
    watcher.batch_execute("UPDATE points SET amount = 5000").await.unwrap();
    // The first call once more, the second one (its answer was lost), and a first call as coordinators wrote it formerly.
    for (repeat, refusal_waits) in [(false, false), (true, false), (false, true)] {
        let late = asked(repeat, refusal_waits).await;
        assert!(is_refused(&late, "AM04"), "repeat {repeat}, waits {refusal_waits}: {late:?}");
    }
    assert!(effects(&watcher, "g1", 1).await.is_empty());
    // Only what people had asked for again is carried out; and then no duplicate does it twice.
    assert_eq!(asked(true, true).await, Answer::Done);
    assert_eq!(asked(false, false).await, Answer::Done);
    assert_eq!(asked(true, true).await, Answer::Done);
    assert_eq!(effects(&watcher, "g1", 1).await, ["action"]);
}

/// Two people mark a branch refused, and the coordinator has it compensated: the calls of deposed leaders come afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_that_comes_after_its_branch_was_marked_refused_is_turned_away() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 2);
    let undo = |gid| resource.call(call(gid, 1, Op::Compensate, 2_000));
    let asked = |gid, (repeat, refusal_waits)| {
        resource.call(Call { repeat, refusal_waits, ..call(gid, 1, Op::Action, 2_000) })
    };
    // Nothing of it had come; it had come and was refused; it had been done, and nobody heard.
    assert!(is_refused(&asked("refused", (false, false)).await, "AM04"));
    watcher.batch_execute("UPDATE points SET amount = 50000").await.unwrap();
    assert_eq!(asked("done", (false, false)).await, Answer::Done);
    for (gid, told, before) in [
        ("nothing", "HF4101", vec![]),
        ("refused", "AM04", vec![]),
        ("done", "HF4101", vec!["action", "compensate"]),
    ] {
        assert_eq!(undo(gid).await, Answer::Done, "{gid}");
        for make in EVERY_MAKE {
            let late = asked(gid, make).await;
            assert!(is_refused(&late, told), "{gid} {make:?}: {late:?}");
        }
        assert_eq!(effects(&watcher, gid, 1).await, before, "{gid}");
    }
}

/// People do in the participant's database what is owed there, and enter it at the barrier in the same local transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_enter_at_the_barrier_by_hand_is_done_once_whatever_comes_late() {
    let server = Postgres::start();
    let watcher = server.connect().await;
    points::prepare(&watcher).await;
    let resource = resource(&server, 2);
    let by_hand = async |gid: &str, op: &str| -> String {
        let mut client = server.connect().await;
        let local = client.transaction().await.unwrap();
        let entered = "SELECT holdfast.enter($1, 1, $2, 'waits')";
        let verdict: String = local.query_one(entered, &[&gid, &op]).await.unwrap().get(0);
        if verdict == "proceed" {
            let line = "INSERT INTO effects (gid, branch, op, amount) VALUES ($1, 1, $2, 0)";
            let words = format!("{op} by hand");
            local.execute(line, &[&gid, &words]).await.unwrap();
        }
        local.commit().await.unwrap();
        verdict
    };

    // A cancel of what has not come: the try that comes after it is too late, and the coordinator's own cancel is a repeat.
    assert_eq!(by_hand("g1", "cancel").await, "empty");
    let late = resource.call(call("g1", 1, Op::Try, 10)).await;
    assert!(is_refused(&late, "HF4101"), "{late:?}");
    assert_eq!(resource.call(call("g1", 1, Op::Cancel, 10)).await, Answer::Done);
    assert!(effects(&watcher, "g1", 1).await.is_empty());

    // A confirm, done by hand, is not done again.
    assert_eq!(resource.call(call("g2", 1, Op::Try, 10)).await, Answer::Done);
    assert_eq!(by_hand("g2", "confirm").await, "proceed");
    assert_eq!(resource.call(call("g2", 1, Op::Confirm, 10)).await, Answer::Done);
    assert_eq!(effects(&watcher, "g2", 1).await, ["try", "confirm by hand"]);

    // An action that was refused before, done by hand, neither.
    assert!(is_refused(&resource.call(call("g3", 1, Op::Action, 2_000)).await, "AM04"));
    assert_eq!(by_hand("g3", "action").await, "proceed");
    for (repeat, refusal_waits) in EVERY_MAKE {
        let again = Call { repeat, refusal_waits, ..call("g3", 1, Op::Action, 2_000) };
        assert_eq!(resource.call(again).await, Answer::Done);
    }
    assert_eq!(effects(&watcher, "g3", 1).await, ["action by hand"]);
}
