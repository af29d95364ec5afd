//! One drill from the first look to the verdict: steady state, fault, recovery, steady state, books.

use std::time::Duration;

use holdfast_fault::held;
use tokio::time::{Instant, sleep};

use super::{
    alarms::Watch,
    catalog::{Drill, From, Mend, Surge, Whom},
    door::Order,
    fleet::{Fleet, Own},
    load::{Work, ms},
    mend,
    report::{
        Alarm, AlarmState, Books, Repeat, Report, Setup, Spread, Steady, Verdict, longest_gap,
    },
    target::Target,
};
use crate::demo::{
    audit::{Memory, audit},
    driver::{Record, Told},
    postgres::DATABASE,
    progress::Progress,
    saga::Rounds,
};

/// How long the steady state is looked at before and after each blow.
const STEADY: Duration = Duration::from_millis(1_500);
/// For everybody to be well again after a blow.
const WELL_MAX: Duration = Duration::from_secs(30);
/// For what is open to end after the load.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// For a struck process to be down.
const DOWN_MAX: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Alarms that are kept.
const ALARMS_MAX: usize = 500;

/// How a drill is run.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) repeat: u32,
    pub(crate) clients: u32,
    pub(crate) seed: u64,
    /// The error budget, ms: a longer time without a commit aborts.
    pub(crate) gap_max_ms: u64,
    pub(crate) held: Duration,
    /// For the report: `demo`, or the doors.
    pub(crate) cluster: String,
}

struct Course<'a> {
    drill: &'a Drill,
    terms: &'a Terms,
    fleet: &'a Fleet,
    work: &'a Work,
    began: Instant,
    alarms: Vec<Alarm>,
    seen: (u64, u64),
}

/// Why a drill ends before its time.
struct Aborted(String);

/// Runs it. The faults have ended when this returns, whatever it returns.
/// # Errors
/// What kept it from being run. A goal that was missed is no error but the verdict.
pub(crate) async fn run(
    drill: &Drill,
    terms: &Terms,
    fleet: &mut Fleet,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let began = Instant::now();
    let work = Work::start(fleet, terms.clients, terms.seed, began);
    let watch = Watch::start(fleet.targets.clone(), began);
    let Struck { mut repeats, mut surge, mut aborted, mut alarms } =
        strike_all(drill, terms, fleet, &work, began, progress).await?;
    progress.now("Waiting until everything is known");
    let well = fleet.is_well(WELL_MAX).await;
    let ended_ms = ms(began.elapsed());
    alarms.extend(watch.stop().await);
    alarms.sort_by_key(|alarm| alarm.at_ms);
    let (records, curve) = work.stop().await?;
    for blow in repeats.iter_mut().chain(&mut surge) {
        blow.gap_ms = longest_gap(&curve, blow.from_ms, blow.to_ms.max(blow.from_ms + ms(STEADY)));
    }
    let books = match &mut fleet.own {
        Some(own) => read_books(own, &fleet.client, records, terms.seed).await?,
        None => Books::default(),
    };
    let mut problems = books.problems;
    if !well && aborted.is_none() {
        aborted = Some("not every process was well again".to_owned());
    }
    problems.dedup();
    let of =
        |what: fn(&Repeat) -> Option<u64>| Spread::of(repeats.iter().filter_map(what).collect());
    let report = Report {
        drill: drill.name,
        what: drill.what,
        blast_radius: drill.blast_radius,
        verdict: Verdict::Fail,
        recover_ms: of(|blow| blow.recover_ms),
        resolved_ms: of(|blow| blow.resolved_ms),
        lost: books.lost,
        doubled: books.doubled,
        in_doubt: books.in_doubt,
        conserved: books.conserved,
        goals: drill.goals,
        steady: steady(&curve, repeats.iter().chain(&surge), ended_ms),
        mended_ms: of(|blow| blow.mended_ms),
        repeats,
        surge,
        alarms,
        aborted,
        problems,
        setup: Setup {
            cluster: terms.cluster.clone(),
            coordinators: fleet.coordinators().len(),
            banks: fleet.banks().len(),
            clients: terms.clients,
            seed: terms.seed,
            held_ms: ms(terms.held),
            whole_s: (began.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            version: env!("CARGO_PKG_VERSION"),
        },
        curve,
    };
    Ok(report.judge(drill))
}

/// What came of all blows.
struct Struck {
    repeats: Vec<Repeat>,
    surge: Option<Repeat>,
    aborted: Option<String>,
    alarms: Vec<Alarm>,
}

/// Every blow, until the last or until the drill is aborted; every fault has ended then.
async fn strike_all(
    drill: &Drill,
    terms: &Terms,
    fleet: &Fleet,
    work: &Work,
    began: Instant,
    progress: &Progress,
) -> anyhow::Result<Struck> {
    let mut course = Course { drill, terms, fleet, work, began, alarms: Vec::new(), seen: (0, 0) };
    let (mut repeats, mut surge, mut aborted) = (Vec::new(), None, None);
    let surges = drill.surge.filter(|_| fleet.own.is_some()).map(Some);
    progress.now("Waiting for the first commit");
    if let Err(Aborted(why)) = course.first_commit().await {
        return Ok(Struck { repeats, surge, aborted: Some(why), alarms: Vec::new() });
    }
    for (turn, with) in (0..terms.repeat).map(|_| None).chain(surges).enumerate() {
        progress.now(&match with {
            None => format!("{} {} of {}", drill.name, turn + 1, terms.repeat),
            Some(Surge { in_flight, .. }) => format!("{} with {in_flight} in flight", drill.name),
        });
        match course.blow(turn, with).await {
            Ok(mut blows) => {
                blows.iter().for_each(|blow| progress.say(&blow.to_text()));
                match with {
                    None => repeats.append(&mut blows),
                    Some(_) => surge = blows.pop(),
                }
            }
            Err(error) => {
                fleet.end_all().await;
                aborted = Some(error.downcast::<Aborted>()?.0);
                break;
            }
        }
    }
    fleet.end_all().await;
    Ok(Struck { repeats, surge, aborted, alarms: course.alarms })
}

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Aborted {}

impl Course<'_> {
    /// One blow, or one of each process in turn; with a surge, while so much more is under way.
    async fn blow(&mut self, turn: usize, surge: Option<Surge>) -> anyhow::Result<Vec<Repeat>> {
        let mut blows = Vec::new();
        for victims in self.victims(turn).await? {
            self.steady("before").await?;
            if let Some(surge) = surge {
                self.work.surge(surge.in_flight).await;
            }
            blows.push(self.strike(&victims).await?);
            if !self.fleet.is_well(WELL_MAX).await {
                return Err(Aborted(format!(
                    "not every process was well {} s after the fault",
                    WELL_MAX.as_secs()
                ))
                .into());
            }
            self.steady("after").await?;
        }
        Ok(blows)
    }

    /// Who is struck together; several lists are struck one after the other.
    async fn victims(&self, turn: usize) -> anyhow::Result<Vec<Vec<Target>>> {
        let fleet = self.fleet;
        Ok(match self.drill.whom {
            Whom::Leader => vec![vec![fleet.leader(WELL_MAX).await?.0]],
            Whom::Follower => {
                let (_, others) = fleet.leader(WELL_MAX).await?;
                let chosen = others.get(turn % others.len().max(1));
                vec![vec![
                    chosen.ok_or_else(|| Aborted("there is no follower".to_owned()))?.clone(),
                ]]
            }
            Whom::AllCoordinators => vec![fleet.coordinators().into_iter().cloned().collect()],
            Whom::OneBank => {
                let banks = fleet.banks();
                let chosen = banks.get(turn % banks.len().max(1));
                let none = || Aborted("none of the doors is a bank's".to_owned());
                vec![vec![(*chosen.ok_or_else(none)?).clone()]]
            }
            Whom::EachInTurn => fleet.targets.iter().map(|target| vec![target.clone()]).collect(),
        })
    }

    /// Waits for the first commit: a cluster that has only just been started may take a while, and one that says why it refuses is
    /// believed sooner. The error budget counts from there.
    async fn first_commit(&mut self) -> Result<(), Aborted> {
        let from = Instant::now();
        while self.committed() == 0 {
            let patience = if self.work.complaint().is_some() { STEADY } else { WELL_MAX };
            if from.elapsed() > patience {
                return Err(self.nothing_committed(patience, "before"));
            }
            sleep(LOOK_AGAIN).await;
        }
        self.seen = (self.committed(), ms(self.began.elapsed()));
        Ok(())
    }

    fn nothing_committed(&self, within: Duration, when: &str) -> Aborted {
        let complaint = self.work.complaint().map_or(String::new(), |said| format!(": {said}"));
        let ms = within.as_millis();
        Aborted(format!("nothing was committed in {ms} ms {when} the fault{complaint}"))
    }

    /// Transactions commit.
    async fn steady(&mut self, when: &str) -> anyhow::Result<()> {
        let before = self.committed();
        self.watch(STEADY).await?;
        if self.committed() == before {
            return Err(self.nothing_committed(STEADY, when).into());
        }
        Ok(())
    }

    async fn strike(&mut self, victims: &[Target]) -> anyhow::Result<Repeat> {
        let held = self.terms.held.min(held::LIMIT_MAX);
        let order = Order {
            fault: self.drill.strike.fault.to_owned(),
            measure: self.drill.strike.measure,
            limit_ms: ms(held),
        };
        let dies = ["kill", "pause", "lose-disk"].contains(&order.fault.as_str());
        let mut pids = Vec::new();
        for victim in victims.iter().filter(|_| dies) {
            pids.extend(victim.pid().await);
        }
        let in_flight: Vec<u64> = self.work.tally.under_way().iter().copied().collect();
        let struck_at = Instant::now();
        for victim in victims {
            victim.strike(&order).await?;
        }
        for pid in pids {
            if !Target::is_down(pid, DOWN_MAX).await {
                return Err(Aborted(format!("process {pid} was struck and is not down")).into());
            }
        }
        let mut mended = None;
        if order.fault == "restart" && self.drill.whom == Whom::Leader {
            // Until then it is the former leader that commits.
            if !mend::another_leads(self.fleet, &victims[0], DOWN_MAX).await {
                return Err(Aborted("the leadership was not handed over".to_owned()).into());
            }
            mended = Some(struck_at.elapsed());
        }
        let down_at = Instant::now();
        let shard = match self.drill.whom {
            Whom::OneBank => self.fleet.banks().iter().position(|bank| **bank == victims[0]),
            Whom::Leader | Whom::Follower | Whom::AllCoordinators | Whom::EachInTurn => None,
        };
        let mut recovered = match self.drill.measured_from {
            From::Fault => Some(self.work.recovery.dead(struck_at, down_at, shard)),
            From::End => None,
        };
        let end_at = struck_at + held;
        let mut mending = mend::begin(self.drill.mend, self.fleet, &victims[0]);
        let (mut resolved, mut recover) = (None, None);
        loop {
            self.look(struck_at, &in_flight, &mut resolved).await?;
            if let Some(ended) = mending.take_if(|mending| mending.is_finished()) {
                let failed = |error| Aborted(format!("the node was not replaced: {error:#}"));
                ended.await?.map_err(failed)?;
                mended = Some(struck_at.elapsed());
            }
            let over = match self.drill.mend {
                Mend::ByItself => Instant::now() >= end_at,
                Mend::Replace => mended.is_some(),
            };
            if over && recovered.is_none() {
                recovered = Some(self.work.recovery.dead(end_at, end_at, shard));
            }
            if let Some(recovered) = &mut recovered
                && recover.is_none()
            {
                recover = recovered.within(Duration::ZERO).await;
            }
            let late = struck_at.elapsed() > held + WELL_MAX;
            if over && ((recover.is_some() && resolved.is_some()) || late) {
                break;
            }
        }
        let lasted = match self.drill.mend {
            Mend::ByItself => held,
            Mend::Replace => mended.unwrap_or(held),
        };
        let names: Vec<&str> = victims.iter().map(|victim| victim.name.as_str()).collect();
        Ok(Repeat {
            victim: names.join(", "),
            from_ms: ms(struck_at.duration_since(self.began)),
            to_ms: ms(struck_at.duration_since(self.began) + lasted),
            recover_ms: recover.map(ms),
            mended_ms: mended.map(ms),
            in_flight: in_flight.len(),
            resolved_ms: resolved.map(ms),
            gap_ms: 0,
        })
    }

    /// One look while a fault is held: is what was in flight answered, is the error budget kept?
    async fn look(
        &mut self,
        struck_at: Instant,
        in_flight: &[u64],
        resolved: &mut Option<Duration>,
    ) -> anyhow::Result<()> {
        if resolved.is_none() {
            let under_way = self.work.tally.under_way();
            if !in_flight.iter().any(|number| under_way.contains(number)) {
                *resolved = Some(struck_at.elapsed());
            }
        }
        self.watch(LOOK_AGAIN).await
    }

    /// Waits, and keeps the error budget.
    async fn watch(&mut self, long: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + long;
        loop {
            let committed = self.committed();
            let now_ms = ms(self.began.elapsed());
            if committed != self.seen.0 {
                self.seen = (committed, now_ms);
            }
            let gap_ms = now_ms - self.seen.1;
            if gap_ms > self.terms.gap_max_ms {
                self.fleet.end_all().await;
                return Err(Aborted(format!(
                    "no commit for {gap_ms} ms, the error budget is {} ms",
                    self.terms.gap_max_ms
                ))
                .into());
            }
            self.raise(now_ms, gap_ms);
            if Instant::now() >= until {
                return Ok(());
            }
            sleep(LOOK_AGAIN.min(long)).await;
        }
    }

    /// What a pager would have said.
    fn raise(&mut self, at_ms: u64, gap_ms: u64) {
        let what = "no commit for a second";
        let fresh = self.alarms.last().is_none_or(|last| at_ms - last.at_ms > 3_000);
        if gap_ms > 1_000 && fresh && self.alarms.len() < ALARMS_MAX {
            self.alarms.push(Alarm {
                at_ms,
                what: what.to_owned(),
                severity: "page".to_owned(),
                state: AlarmState::Firing,
            });
        }
    }

    fn committed(&self) -> u64 {
        self.work.tally.committed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn steady<'a>(
    curve: &[super::report::Point],
    blows: impl Iterator<Item = &'a Repeat>,
    ended_ms: u64,
) -> Steady {
    let repeats: Vec<&Repeat> = blows.collect();
    let rate = |within: &dyn Fn(u64) -> bool| {
        let points: Vec<u64> =
            curve.iter().filter(|point| within(point.at_ms)).map(|point| point.committed).collect();
        let seconds = points.len() as f64 / 10.0;
        let committed = points.iter().sum::<u64>() as f64;
        if points.is_empty() { 0.0 } else { (committed / seconds * 10.0).round() / 10.0 }
    };
    let first = repeats.first().map_or(ended_ms, |blow| blow.from_ms);
    let last = repeats
        .last()
        .map_or(0, |blow| blow.to_ms.max(blow.from_ms + blow.recover_ms.unwrap_or(0)));
    let during = |at: u64| repeats.iter().any(|blow| (blow.from_ms..=blow.to_ms).contains(&at));
    Steady {
        before: rate(&|at| at < first),
        during: rate(&during),
        after: rate(&|at| at > last && at < ended_ms),
    }
}

/// Waits for quiet and holds the books against what clients were told.
async fn read_books(
    own: &mut Own,
    client: &holdfast_client::Client,
    records: Vec<Record>,
    seed: u64,
) -> anyhow::Result<Books> {
    let until = Instant::now() + QUIET_MAX;
    let in_doubt = loop {
        let open = client.node_status().await.map(|said| said.open_transactions).ok();
        let mut held = 0_i64;
        for server in &own.cluster.servers {
            let client = server.connect(DATABASE).await?;
            let row = client
                .query_one("SELECT (SELECT count(*) FROM bank.account WHERE held_out_minor + held_in_minor > 0) + (SELECT count(*) FROM pg_prepared_xacts)", &[])
                .await?;
            held += row.get::<_, i64>(0);
        }
        match open {
            Some(0) if held == 0 => break 0,
            _ if Instant::now() > until => break open.unwrap_or(0) + held.unsigned_abs(),
            _ => sleep(LOOK_AGAIN * 5).await,
        }
    };
    let nothing = records.iter().filter(|record| record.told == Told::Nothing).count() as u64;
    let turned_away =
        records.iter().filter(|record| matches!(record.told, Told::TurnedAway(_))).count();
    let memory = Memory { seed, records, rounds: Rounds::default() };
    let findings = audit(&own.cluster.servers, &own.bank, &memory).await?;
    let mut problems = findings.problems;
    if turned_away > 0 {
        problems.push(format!("{turned_away} transfers were turned away"));
    }
    Ok(Books {
        lost: Some(findings.lost),
        doubled: Some(findings.doubled),
        in_doubt: Some(in_doubt + nothing),
        conserved: Some(findings.money.conserved),
        problems,
    })
}
