//! One step: its slots freeze, the last changes follow, the rows leave one source and arrive at the other in two prepared transactions, and an entry
//! in the coordinators' log decides about both.
//!
//! Who decides is the log alone. The rules that settle a step follow the epoch that froze it; whoever thaws instead follows the same epoch;
//! one of them enters. So whatever becomes of this process, what is prepared has one fate, which any router reads from the log as well.

use std::time::{Duration, Instant};

use holdfast_client::{
    Client, ClientError,
    wire::{ApplyRulesRequest, RouterLease, ShardRules},
};
use holdfast_fault::{Site, reached};
use holdfast_route::{MoveFate, MoveId, Moving, SlotRange, Topology};
use tokio::time::sleep;

use super::{
    Fault, Said,
    copy::{Pair, Sum, sum},
    side::Side,
    steps::{Leg, State, Step, Way},
};
use crate::{rules_plan, source::Failed};

/// Between two questions who still goes by older rules.
const LOOK: Duration = Duration::from_millis(5);
/// Between two tries to hear from the coordinators what became of an entry.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long they are asked.
const ASK_MAX: Duration = Duration::from_secs(60);
/// What part of the longest pause writers are waited for. A transaction that began while slots are frozen may have written to others here, and then
/// wait for frozen ones: it would be waited for in vain, and is let go soon.
const BARRIER_SHARE: u32 = 8;
/// Of a cause that is kept in the log.
const WHY_BYTES_MAX: usize = 300;
/// The code of a refusal because others changed the rules meanwhile.
const CHANGED: &str = "HF2009";

/// A step that is done.
#[derive(Debug, serde::Serialize)]
pub(super) struct Moved {
    pub(super) group: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) slots: Vec<SlotRange>,
    pub(super) rows: u64,
    /// The sum of the rows' hashes, the same where they left and where they arrived.
    pub(super) hash: String,
    /// From when its slots were frozen until both sources had committed.
    pub(super) pause_ms: u64,
    /// Of that: until no router had anything open that it had planned before.
    pub(super) routers_ms: u64,
    /// The epoch that decided.
    pub(super) epoch: u64,
    /// Where the source wrote when its rows had left.
    pub(super) lsn: String,
    pub(super) tries: u32,
}

/// Why a step was not taken this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotNow {
    /// Nothing has changed; another try may be better. Why, in words.
    #[error("{0}")]
    Again(String),
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Puts rules into force, one epoch behind the other.
pub(super) struct Scribe {
    client: Client,
    pub(super) epoch: u64,
    say: Said,
}

/// What became of rules that were to follow an epoch.
enum Written {
    InForce,
    /// Others followed it.
    Others,
}

impl Scribe {
    pub(super) fn new(client: Client, epoch: u64, say: Said) -> Self {
        Self { client, epoch, say }
    }

    /// Has rules follow those of the epoch that is known here. Asks until somebody says what became of them.
    async fn write(&mut self, text: &str, why: &str) -> Result<Written, Fault> {
        let request = ApplyRulesRequest {
            text: text.to_owned(),
            expected_epoch: self.epoch,
            reason: why.to_owned(),
            dev_name: self.say.dev_name.clone(),
            rows_are_moved: true,
            ..ApplyRulesRequest::default()
        };
        // The same again changes nothing, and says what became of the first.
        match heard(async || self.client.apply_rules(request.clone()).await).await {
            Ok(reply) => {
                self.epoch = reply.epoch;
                Ok(Written::InForce)
            }
            Err(ClientError::Refused { code, .. }) if code == CHANGED => Ok(Written::Others),
            Err(error) => Err(error.into()),
        }
    }

    /// Rules that nobody else may have changed meanwhile.
    /// # Errors
    /// HF1032: somebody has. The coordinators refuse, or cannot be reached.
    pub(super) async fn apply(&mut self, text: &str, why: &str) -> Result<(), Fault> {
        match self.write(text, &format!("{}: {why}", self.say.reason)).await? {
            Written::InForce => Ok(()),
            Written::Others => Err(Fault::GivenUp(format!(
                "the rules of epoch {} were changed by somebody else meanwhile. See what they are (holdfast rules history), and move on from there",
                self.epoch
            ))),
        }
    }

    /// Routers that may still have something open that was planned by rules before `epoch`; and for how long there may be others.
    async fn behind(&self, epoch: u64) -> Result<(Vec<RouterLease>, u64), ClientError> {
        let said = heard(async || self.client.routers().await).await?;
        let behind = said.routers.into_iter().filter(|router| router.oldest_epoch < epoch);
        Ok((behind.collect(), said.unknown_ms))
    }

    /// Waits until the leader knows every router that may go by older rules.
    /// # Errors
    /// The coordinators cannot be reached.
    pub(super) async fn all_known(&self, mut tell: impl FnMut(u64)) -> Result<(), Fault> {
        loop {
            let (_, unknown_ms) = self.behind(0).await?;
            if unknown_ms == 0 {
                return Ok(());
            }
            tell(unknown_ms);
            sleep(Duration::from_millis(unknown_ms.min(1_000))).await;
        }
    }

    /// Whether what a step has prepared under this name is committed; `None`: no rules that are kept say so, or it is not decided.
    /// # Errors
    /// The coordinators cannot be reached.
    pub(super) async fn fate(&self, name: &str) -> Result<Option<bool>, Fault> {
        let Some(id) = MoveId::of_prepared(name) else { return Ok(None) };
        let kept = heard(async || self.client.rules_kept().await);
        let read = |version: ShardRules| {
            Some(Topology::parse(&version.text).ok()?.at_epoch(version.epoch))
        };
        let versions: Vec<Topology> = kept.await?.into_iter().filter_map(read).collect();
        Ok(match id.fate(&versions) {
            MoveFate::Commit => Some(true),
            MoveFate::RollBack => Some(false),
            MoveFate::Leave | MoveFate::Unknown => None,
        })
    }

    /// The rules in force, behind everything that was decided before.
    async fn newest(&self) -> Result<(u64, Topology), Fault> {
        let version = heard(async || {
            let versions = self.client.rules_versions().await?;
            self.client.rules(versions.last().map_or(0, |version| version.epoch)).await
        });
        read(&version.await?)
    }

    /// The slots lie where they lay, and are frozen no more: by this process, or by whoever was faster.
    async fn thaw(&mut self, way: &Way, why: &str) -> Result<(), Fault> {
        let text = way.text(None).map_err(Fault::GivenUp)?;
        let frozen = self.epoch;
        match self.write(&text, &format!("{}: thawed, since {why}", self.say.reason)).await? {
            Written::InForce => Ok(()),
            Written::Others => {
                let (epoch, now) = self.newest().await?;
                let so_far = Topology::parse(&text).map_err(|_| {
                    Fault::GivenUp("the rules on the way are not readable".to_owned())
                })?;
                let is_frozen = now.moving().is_some_and(Moving::is_frozen);
                if is_frozen || !so_far.strays(&now).is_empty() {
                    return Err(Fault::GivenUp(format!(
                        "others put rules of epoch {epoch} into force behind epoch {frozen}, and they are no thaw. See: holdfast rules history"
                    )));
                }
                self.epoch = epoch;
                Ok(())
            }
        }
    }
}

/// Asks until somebody answers, or a while is over: leaders come and go, and for a moment nobody may be reached at all.
/// # Errors
/// A refusal, or the last word of nobody's answer.
pub(super) async fn heard<T>(
    ask: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    heard_within(ASK_MAX, ask).await
}

async fn heard_within<T>(
    at_most: Duration,
    ask: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        match &answer {
            Err(ClientError::Refused { .. }) | Ok(_) => return answer,
            Err(_) if begun.elapsed() >= at_most => return answer,
            Err(_) => sleep(ASK_AGAIN).await,
        }
    }
}

/// The rules of a version.
/// # Errors
/// HF1032: they are not readable here.
pub(super) fn read(version: &ShardRules) -> Result<(u64, Topology), Fault> {
    let ShardRules { epoch, text, .. } = version;
    let read = Topology::parse(text).map_err(|_| {
        Fault::GivenUp(format!(
            "the rules of epoch {epoch} are not readable here. Use a newer holdfast"
        ))
    });
    Ok((*epoch, read?))
}

/// A step that is to be taken.
pub(super) struct Take<'s> {
    pub(super) id: MoveId,
    pub(super) leg: &'s Leg,
    pub(super) step: &'s Step,
    /// How long its slots may be frozen.
    pub(super) pause_max: Duration,
    pub(super) tries: u32,
}

impl Take<'_> {
    /// Takes the step, or leaves everything as it was.
    /// # Errors
    /// [`NotNow`].
    pub(super) async fn run(
        &self,
        way: &mut Way,
        pair: &mut Pair,
        scribe: &mut Scribe,
    ) -> Result<Moved, NotNow> {
        let Self { id, leg, step, pause_max, tries } = self;
        let hold_ms = u32::try_from(pause_max.as_millis()).unwrap_or(u32::MAX);
        let text = |way: &Way, state| {
            way.text(Some((id, leg, step, state)))
                .map_err(|words| NotNow::Fault(Fault::GivenUp(words)))
        };
        let slots = rules_plan::ranges(&SlotRange::gather(step.slots.iter().copied()));
        let what = format!("slots {slots} of group {} from {} to {}", step.group, leg.from, leg.to);
        let began = Instant::now();
        let end = began + *pause_max;
        scribe.apply(&text(way, State::Frozen(hold_ms))?, &format!("freezes {what}")).await?;
        let frozen = scribe.epoch;
        reached(Site::MoverFrozen);
        let names = id.prepared_as();
        let ready = self.ready(frozen, scribe, pair, &names, end).await;
        let (sum, routers) = match ready {
            Ok(ready) => ready,
            Err(not_now) => {
                // A source that is lost keeps nothing that is not prepared; what is, routers roll back behind the thaw.
                let left = pair.from.abandon(&names[0]).await;
                let arrived = pair.to.abandon(&names[1]).await;
                scribe.thaw(way, &for_the_log(&not_now.to_string())).await?;
                left.and(arrived)?;
                return Err(not_now);
            }
        };
        reached(Site::MoverPrepared);
        let mut moved = way.clone();
        moved.take(step);
        let evidence = format!("moved {what}: {} rows, hash {:x}", sum.rows, sum.hash);
        let settling = text(&moved, State::Settling)?;
        let why = format!("{}: {evidence}", scribe.say.reason);
        // Where nobody can say what became of it, what is prepared stays: routers end it as the log says.
        let undecided = |cause: String| Fault::Undecided { what: what.clone(), cause };
        let written = scribe.write(&settling, &why).await;
        let decided = match written.map_err(|fault| undecided(fault.to_string()))? {
            Written::InForce => Some(true),
            // An answer may have been lost: then the entry is there, and others behind it. The versions alone say so.
            Written::Others => {
                let fate = scribe.fate(&names[0]).await;
                fate.map_err(|fault| undecided(fault.to_string()))?
            }
        };
        match decided {
            Some(true) => {}
            None => {
                let cause = "others changed the rules since, and no rules that are kept say so";
                return Err(undecided(cause.to_owned()).into());
            }
            Some(false) => {
                for (side, name) in [&pair.from, &pair.to].into_iter().zip(&names) {
                    side.end(name, false).await?;
                }
                scribe.thaw(way, "it took too long").await?;
                let ms = began.elapsed().as_millis();
                return Err(NotNow::Again(format!("the coordinators thawed it after {ms} ms")));
            }
        }
        reached(Site::MoverDecided);
        *way = moved;
        pair.from.end(&names[0], true).await?;
        reached(Site::MoverHalfCommitted);
        pair.to.end(&names[1], true).await?;
        let pause = began.elapsed();
        let lsn = pair.from.one("SELECT pg_catalog.pg_current_wal_lsn()::text", &[]).await?.get(0);
        pair.done(step).await?;
        Ok(Moved {
            group: step.group.to_string(),
            from: leg.from.to_string(),
            to: leg.to.to_string(),
            slots: SlotRange::gather(step.slots.iter().copied()),
            rows: sum.rows,
            hash: format!("{:x}", sum.hash),
            pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            routers_ms: u64::try_from(routers.as_millis()).unwrap_or(u64::MAX),
            epoch: scribe.epoch,
            lsn,
            tries: *tries,
        })
    }

    /// Has both sources ready to commit: rows gone here and there there.
    async fn ready(
        &self,
        frozen: u64,
        scribe: &Scribe,
        pair: &Pair,
        names: &[String; 2],
        end: Instant,
    ) -> Result<(Sum, Duration), NotNow> {
        let began = Instant::now();
        loop {
            let (behind, unknown_ms) = scribe.behind(frozen).await.map_err(Fault::from)?;
            if unknown_ms > 0 {
                return Err(NotNow::Again(
                    "another coordinator leads since, and does not know every router yet"
                        .to_owned(),
                ));
            }
            let Some(first) = behind.first() else { break };
            if Instant::now() > end {
                return Err(NotNow::Again(late(first, behind.len())));
            }
            sleep(LOOK).await;
        }
        let routers = began.elapsed();
        let soon = Instant::now() + self.pause_max / BARRIER_SHARE;
        if let Err(failed) = pair.from.barrier(&pair.relations, soon.min(end)).await {
            return Err(match &failed {
                Failed::Refused(_) => NotNow::Again(format!(
                    "a transaction that writes to these tables is open at source {} for long ({failed})",
                    pair.from.name
                )),
                Failed::Silent(_) => NotNow::Fault(pair.from.lost(&failed)),
            });
        }
        pair.follow().await?;
        if Instant::now() > end {
            return Err(NotNow::Again("the last changes took too long to follow".to_owned()));
        }
        let sum = pair.exchange(self.step, names).await?;
        Ok((sum, routers))
    }
}

/// A cause, which may be a server's own words, as the log takes it: short, and on one line.
fn for_the_log(why: &str) -> String {
    let mut kept = String::new();
    for char in why.chars() {
        if kept.len() + char.len_utf8() > WHY_BYTES_MAX {
            break;
        }
        kept.push(if char.is_control() { ' ' } else { char });
    }
    kept
}

fn late(router: &RouterLease, count: usize) -> String {
    let RouterLease { address, oldest_epoch, heard_ms, lease_left_ms, .. } = router;
    format!(
        "{count} routers have transactions open that began before, the first at {address}: it goes by epoch {oldest_epoch}, was heard of {heard_ms} ms ago, and is known for {lease_left_ms} ms more"
    )
}

impl Pair {
    /// Rows leave and arrive, the same ones, and both is prepared.
    async fn exchange(&self, step: &Step, names: &[String; 2]) -> Result<Sum, Fault> {
        let places = self.places(&step.group, &step.slots);
        let mut keys: Vec<Vec<String>> = Vec::new();
        for relation in &self.relations {
            let rows = self.to.rows(&relation.keys_sql(), &[&places]).await?;
            keys.push(rows.iter().map(|row| row.get(0)).collect());
        }
        let begin = "BEGIN; SET LOCAL session_replication_role = replica";
        self.from.run(begin).await?;
        self.to.run(begin).await?;
        let leave = async {
            let mut sums = Vec::new();
            for (relation, keys) in self.relations.iter().zip(&keys) {
                sums.push(sum(&self.from.one(&relation.delete_sql(), &[keys]).await?, 0)?);
            }
            Ok::<_, Fault>(sums)
        };
        let arrive = async {
            let mut sums = Vec::new();
            for relation in &self.relations {
                sums.push(sum(&self.to.one(&relation.insert_sql(), &[&places]).await?, 0)?);
            }
            Ok::<_, Fault>(sums)
        };
        let (left, arrived) = tokio::try_join!(leave, arrive)?;
        let mut all = Sum::default();
        for (relation, (left, arrived)) in self.relations.iter().zip(left.iter().zip(&arrived)) {
            if left != arrived {
                return Err(Fault::Differ(format!(
                    "{} rows of {} left and {} arrived, or not the same ones",
                    left.rows, relation.table, arrived.rows
                )));
            }
            all.add(*left);
        }
        self.from.run(&format!("PREPARE TRANSACTION '{}'", names[0])).await?;
        reached(Site::MoverHalfPrepared);
        self.to.run(&format!("PREPARE TRANSACTION '{}'", names[1])).await?;
        Ok(all)
    }

    /// What was staged of the step is rows now.
    async fn done(&mut self, step: &Step) -> Result<(), Fault> {
        let places = self.places(&step.group, &step.slots);
        for relation in &self.relations {
            self.to.rows(&relation.done_sql(), &[&places]).await?;
        }
        self.gone(&step.group, &step.slots);
        Ok(())
    }
}

impl Side {
    /// Whatever was begun here ends as if it had not been.
    async fn abandon(&self, name: &str) -> Result<(), Fault> {
        // Outside of a transaction this warns, and does nothing.
        self.run("ROLLBACK").await?;
        self.end(name, false).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn whoever_reaches_nobody_or_no_leader_asks_again_for_a_while_and_a_refusal_is_an_answer()
    {
        let nobody = || ClientError::Unreachable { patience_ms: 1, last: "refused".to_owned() };
        let code = || "HF2101".to_owned();
        let retry = || ClientError::Retry { code: code(), message: "no leader".to_owned() };
        let asked = Cell::new(0);
        let one_more = |answers: [Result<u8, ClientError>; 3]| {
            asked.set(asked.get() + 1);
            answers.into_iter().nth(asked.get() - 1).expect("no more is asked")
        };
        let answer = heard(async || one_more([Err(nobody()), Err(retry()), Ok(7)])).await;
        assert_eq!((answer.ok(), asked.replace(0)), (Some(7), 3));
        let refused = || ClientError::Refused { code: code(), message: "no".to_owned() };
        let answer = heard(async || one_more([Err(refused()), Ok(7), Ok(7)])).await;
        assert!(matches!(answer, Err(ClientError::Refused { .. })), "{answer:?}");
        asked.set(0);
        let over = heard_within(Duration::ZERO, async || one_more([Err(nobody()), Ok(7), Ok(7)]));
        let over = over.await;
        assert!(matches!(over, Err(ClientError::Unreachable { .. })), "{over:?}");
        let once_more =
            heard_within(ASK_AGAIN / 2, async || one_more([Ok(7), Err(nobody()), Err(retry())]));
        let last = once_more.await;
        assert!(matches!(last, Err(ClientError::Retry { .. })), "the last word: {last:?}");
        assert_eq!(asked.get(), 3, "asked until the time is over and once behind it");
    }

    #[test]
    fn a_cause_is_kept_on_one_line_and_no_longer_than_allowed() {
        assert_eq!(for_the_log("FEHLER:\tzu\nspät"), "FEHLER: zu spät");
        assert_eq!(for_the_log(&"x".repeat(WHY_BYTES_MAX)).len(), WHY_BYTES_MAX);
        assert_eq!(for_the_log(&"x".repeat(WHY_BYTES_MAX + 1)).len(), WHY_BYTES_MAX);
        let odd = format!("x{}", "ä".repeat(WHY_BYTES_MAX));
        assert_eq!(for_the_log(&odd).len(), WHY_BYTES_MAX - 1, "no character is cut");
    }
}
