//! The end of a transaction on several sources.
//!
//! Sources that were only read from are committed at once. One writer is committed as ever. Several are prepared, all at the same time; the
//! coordinator decides; the client is told; then they are committed, behind the answer. Whatever was lost on the way is in one of
//! two states: not decided, so the coordinator can be made to say *never*; or decided, so that anybody may carry it out.

use std::{rc::Rc, time::Duration};

use futures::future::{join, join_all};
use holdfast_fault::{Site, reached};
use tokio::{sync::oneshot, time::timeout};

use super::{
    End, FAILED, IDLE, Session, Stopped,
    global::{Global, Member, within, within_messages},
    old_rows::{self, MAX_STALENESS},
    second_phase::{self, Ending},
};
use crate::{
    backend::literal,
    classify::Act,
    counts::Counts,
    frame,
    global_write::{Decision, Prepared, xid},
    refusal::Refusal,
    tokens::{Token, Tokens},
};

/// The setting that says what a session sees of its own transactions on several sources.
pub(crate) const READ_OWN_WRITES: &str = "holdfast.read_own_writes";

/// `pg_catalog.pg_current_xact_id()`: numbers of what PostgreSQL comes with never change.
const CURRENT_XACT_ID: u32 = 5_059;

/// Who waits until what was decided is to be seen on every source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOwnWrites {
    /// Nobody.
    Off,
    /// The next statement of the session; its COMMIT is answered at the decision.
    Session,
    /// COMMIT itself, so that whoever hears of it, by whatever way, finds it done.
    All,
}

impl ReadOwnWrites {
    /// # Errors
    /// The text is none of its values.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        match text.to_ascii_lowercase().as_str() {
            "off" | "false" => Ok(Self::Off),
            "session" | "" => Ok(Self::Session),
            "all" | "on" | "true" => Ok(Self::All),
            _ => {
                let cause = format!("{READ_OWN_WRITES} = {text:?} is none of its values");
                Err(Refusal::new("HF3217", "22023", cause, "Set it to off, session, or all"))
            }
        }
    }
}

/// A value of the router's own setting is judged before any server takes it.
/// # Errors
/// HF3217: it is none.
pub(super) fn check_setting(act: &Act, sql: &str) -> Result<(), Refusal> {
    let Act::Set(names) = act else { return Ok(()) };
    let check = |text: &str| match names.first().map(String::as_str) {
        Some(MAX_STALENESS) => old_rows::parse(text).map(|_| ()),
        _ => ReadOwnWrites::parse(text).map(|_| ()),
    };
    if !names.iter().any(|name| [READ_OWN_WRITES, MAX_STALENESS].contains(&name.as_str())) {
        return Ok(());
    }
    let mut tokens = Tokens::new(sql).skip_while(|token| match token {
        Token::Word(word) => !word.eq_ignore_ascii_case("to"),
        token => *token != Token::Sign(b'='),
    });
    match tokens.nth(1) {
        // RESET, or SET ... TO DEFAULT.
        None => Ok(()),
        Some(Token::Word(word)) if word.eq_ignore_ascii_case("default") => Ok(()),
        Some(Token::Word(text) | Token::Quoted(text) | Token::Value(text)) => check(text),
        Some(Token::Sign(sign)) => check(&char::from(sign).to_string()),
    }
}

/// A second phase that goes on behind its COMMIT.
pub(super) struct Pending {
    gid: String,
    done: oneshot::Receiver<Result<(), String>>,
    /// It was given up; why.
    failed: Option<String>,
}

impl Session {
    /// COMMIT on all servers. What to say: COMMIT, or ROLLBACK for a transaction that has failed.
    pub(super) async fn commit(&mut self) -> Result<&'static str, Stopped> {
        if self.status == FAILED {
            self.roll_back().await;
            return Ok("ROLLBACK");
        }
        if let Some(refusal) = self.must_not_commit() {
            Counts::refused(refusal.code);
            self.roll_back().await;
            return Err(refusal.into());
        }
        let members = self.take_members();
        let global = self.global.take();
        let ended = self.commit_members(members, global).await;
        self.leave_global();
        ended.map(|()| "COMMIT")
    }

    /// ROLLBACK on all servers. Those that do not answer are closed, which comes to the same.
    pub(super) async fn roll_back(&mut self) {
        let members = self.take_members();
        let limit = self.worker.limits().commit_timeout;
        roll_back_all(members, limit).await;
        self.touched.clear();
        self.leave_global();
    }

    fn leave_global(&mut self) {
        self.global = None;
        self.status = IDLE;
        self.read_committed = None;
        self.wrote = false;
        self.changes = 0;
        self.dooming = false;
        self.opening.clear();
        self.portal_homes.clear();
        // A cancel that is still on its way could hit the next user of a server; those were closed if one was.
        self.ticket.points_nowhere();
    }

    async fn commit_members(
        &mut self,
        members: Vec<Member>,
        global: Option<Box<Global>>,
    ) -> Result<(), Stopped> {
        // From here on nothing is to be canceled.
        let canceled = self.ticket.points_nowhere();
        let limit = self.worker.limits().commit_timeout;
        let (mut writers, mut readers): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.wrote);
        if writers.len() < 2 {
            let ended = self.commit_one(&mut readers, &mut writers, limit).await;
            self.read_back_settings(readers.iter_mut().chain(&mut writers)).await;
            give_back_all(readers.into_iter().chain(writers), canceled);
            return ended;
        }
        // Before anything is waited for: by these rules it is where it belongs.
        let epoch = self.planned.as_ref().map(|planned| self.worker.commits_by(planned));
        let gid = global.map_or_else(|| ulid::Ulid::new().to_string(), |global| global.gid);
        reached(Site::RouterBeforePrepare);
        let (read, prepared) =
            join(end_readers(&mut readers, limit), prepare(&mut writers, &gid, limit)).await;
        let prepared = match read.and(prepared) {
            Ok(prepared) => prepared,
            Err(stopped) => {
                give_back_all(readers, canceled);
                self.undo(writers, gid, canceled);
                return Err(stopped);
            }
        };
        self.read_back_settings(readers.iter_mut().chain(&mut writers)).await;
        give_back_all(readers, canceled);
        reached(Site::RouterPrepared);
        let decider = self.worker.decider().cloned().expect("a second writer needs one");
        let decision = decider.decide(&gid, &prepared, epoch).await;
        reached(Site::RouterDecided);
        match decision {
            Decision::Commit => {
                Counts::global("committed");
                self.apply(writers, gid, prepared, canceled).await
            }
            Decision::RollBack(why) => {
                Counts::global("rolled_back");
                self.undo(writers, gid.clone(), canceled);
                let cause = format!(
                    "the coordinator did not commit transaction {gid}: {why}. It is rolled back on every source"
                );
                Err(Refusal::new("HF3218", "40000", cause, "Begin it again").into())
            }
            Decision::Outdated => {
                Counts::global("rolled_back");
                self.undo(writers, gid, canceled);
                Err(crate::rules::moved().into())
            }
            Decision::Unknown(why) => {
                Counts::global("unknown");
                close_all(writers);
                let cause = format!("whether transaction {gid} commits is not known: {why}");
                let remedy = format!(
                    "Ask with this gid (holdfast tx get {gid}) before you repeat it; it ends by itself, alike on every source"
                );
                Err(Refusal::new("HF3219", "40003", cause, remedy).into())
            }
        }
    }

    /// At most one source was written to: its own COMMIT decides.
    async fn commit_one(
        &self,
        readers: &mut [Member],
        writers: &mut [Member],
        limit: Duration,
    ) -> Result<(), Stopped> {
        let read = end_readers(readers, limit).await;
        let Some(writer) = writers.first_mut() else { return read };
        if let Err(stopped) = read {
            let _gone_or_rolled_back = within(limit, &mut writer.bound.server, &["ROLLBACK"]).await;
            return Err(stopped);
        }
        let source = writer.bound.pool.source.name();
        match within(limit, &mut writer.bound.server, &["COMMIT"]).await {
            Ok(reply) => match reply.error {
                Some(body) => Err(Stopped::told(&body)),
                None if reply.tag == "COMMIT" => Ok(()),
                None => Err(not_committed(source).into()),
            },
            Err(why) => {
                let cause =
                    format!("source {source}: the server connection was lost during COMMIT: {why}");
                let remedy = "Look whether it took effect before you repeat it";
                Err(Refusal::new("HF3207", "08007", cause, remedy).into())
            }
        }
    }

    /// It is decided: the client is told, and behind that the writers are committed.
    async fn apply(
        &mut self,
        writers: Vec<Member>,
        gid: String,
        prepared: Vec<Prepared>,
        canceled: bool,
    ) -> Result<(), Stopped> {
        let (sender, done) = oneshot::channel();
        let ending = Ending { gid: gid.clone(), prepared, commit: true, canceled };
        let (worker, planned) = (Rc::clone(&self.worker), self.planned.clone());
        tokio::task::spawn_local(async move {
            let ended = second_phase::carry_out(&worker, writers, ending).await;
            drop(planned);
            let _nobody_waits = sender.send(ended);
        });
        let mut pending = Pending { gid, done, failed: None };
        match self.read_own_writes() {
            ReadOwnWrites::Off => {}
            ReadOwnWrites::Session => self.pending = Some(pending),
            ReadOwnWrites::All => {
                let limit = self.worker.limits().commit_timeout;
                if let Err(why) = pending.ended(limit).await {
                    let words = format!(
                        "transaction {} is committed, and not to be seen everywhere yet: {why}",
                        pending.gid
                    );
                    self.say(|out| crate::refusal::put_warning(out, "01000", &words));
                }
            }
        }
        Ok(())
    }

    /// It will never be decided: what is prepared is rolled back, behind the answer. A writer without a number was not prepared.
    fn undo(&self, writers: Vec<Member>, gid: String, canceled: bool) {
        let prepared = numbered(&writers);
        let ending = Ending { gid, prepared, commit: false, canceled };
        let (worker, planned) = (Rc::clone(&self.worker), self.planned.clone());
        tokio::task::spawn_local(async move {
            let _until_it_is_ended = planned;
            if let Err(why) = second_phase::carry_out(&worker, writers, ending).await {
                tracing::warn!(why, "what was prepared is not rolled back yet; the sweeper will");
            }
        });
    }

    /// What this session sees of its own transactions.
    fn read_own_writes(&self) -> ReadOwnWrites {
        let pairs = self.settings.as_ref().map(|settings| settings.pairs.as_slice());
        let mut found =
            pairs.unwrap_or_default().iter().filter(|(name, _)| name == READ_OWN_WRITES);
        let value = found.next().map_or("", |(_, value)| value);
        ReadOwnWrites::parse(value).unwrap_or(ReadOwnWrites::Session)
    }

    /// Whether what this session has committed is still being carried out, so that its next statement must wait.
    pub(super) fn must_settle(&mut self) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        if pending.failed.is_some() {
            return true;
        }
        match pending.done.try_recv() {
            Ok(Ok(())) => self.pending = None,
            Ok(Err(why)) => pending.failed = Some(why),
            Err(_) => {}
        }
        self.pending.is_some()
    }

    /// Waits until it is; the statement that waits for it is refused where that takes too long.
    pub(super) async fn settle(&mut self) -> Result<(), End> {
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        let limit = self.worker.limits().commit_timeout;
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        let Err(why) = pending.ended(limit).await else { return Ok(()) };
        let cause = format!(
            "transaction {} of this session is committed, and not to be seen on every source yet: {why}",
            pending.gid
        );
        let remedy = "Try again; or SET holdfast.read_own_writes = off to read what is there";
        self.pending = Some(pending);
        self.refuse_current(&Refusal::new("HF3220", "55000", cause, remedy))
    }

    /// Settings that the transaction has changed and kept are the session's from now on.
    async fn read_back_settings<'m>(&mut self, mut members: impl Iterator<Item = &'m mut Member>) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        let ask: Vec<String> = touched
            .iter()
            .map(|name| {
                let name = literal(name);
                format!("SELECT {name}, pg_catalog.current_setting({name}, true)")
            })
            .collect();
        let limit = self.worker.limits().commit_timeout;
        let Some(first) = members.next() else { return };
        let Ok(reply) = within(limit, &mut first.bound.server, &ask).await else { return };
        let read = reply.rows.into_iter().filter_map(|row| {
            let mut row = row.into_iter();
            Some((row.next()??, row.next()?.unwrap_or_default()))
        });
        self.adopt(read.collect());
        first.bound.server.settings.clone_from(&self.settings);
        for member in members {
            member.bound.server.settings.clone_from(&self.settings);
        }
    }
}

impl Pending {
    async fn ended(&mut self, limit: Duration) -> Result<(), String> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let why = match timeout(limit, &mut self.done).await {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(why))) => why,
            Ok(Err(_)) => "the router gave up on it".to_owned(),
            Err(_) => return Err(format!("after {} ms", limit.as_millis())),
        };
        self.failed = Some(why.clone());
        Err(why)
    }
}

/// Each writer with its number, from 1 in their order.
fn numbered(writers: &[Member]) -> Vec<Prepared> {
    let numbered = (1..).zip(writers);
    let prepared = numbered.map(|(branch, member)| Prepared {
        branch,
        source: member.bound.pool.source.name().to_owned(),
        xact: String::new(),
    });
    prepared.collect()
}

/// Prepares all writers at once.
async fn prepare(
    writers: &mut [Member],
    gid: &str,
    limit: Duration,
) -> Result<Vec<Prepared>, Stopped> {
    let mut prepared = numbered(writers);
    let told = writers.iter_mut().zip(&prepared).map(async |(member, branch)| {
        reached(Site::RouterPreparing);
        // The number is what PostgreSQL still knows when the name is gone.
        let mut messages = Vec::new();
        frame::put_call(&mut messages, CURRENT_XACT_ID);
        let sql = format!("PREPARE TRANSACTION '{}'", xid(gid, branch.branch));
        frame::put_query(&mut messages, sql.as_bytes());
        within_messages(limit, &mut member.bound.server, &messages, 2).await
    });
    let told = join_all(told).await;
    let mut stopped = None;
    for (reply, branch) in told.into_iter().zip(&mut prepared) {
        let failed = match reply {
            Ok(reply) => match reply.error {
                Some(body) => Stopped::told(&body),
                None if reply.tag == "PREPARE TRANSACTION" => {
                    let xact = reply.rows.into_iter().next().and_then(|row| row.into_iter().next());
                    branch.xact = xact.flatten().unwrap_or_default();
                    continue;
                }
                None => not_committed(&branch.source).into(),
            },
            Err(why) => super::global::lost_within(&branch.source, &why).into(),
        };
        stopped.get_or_insert(failed);
    }
    match stopped {
        None => Ok(prepared),
        Some(stopped) => Err(stopped),
    }
}

/// Ends those that were only read from.
async fn end_readers(readers: &mut [Member], limit: Duration) -> Result<(), Stopped> {
    let told =
        readers.iter_mut().map(|member| within(limit, &mut member.bound.server, &["COMMIT"]));
    let told = join_all(told).await;
    for (reply, member) in told.into_iter().zip(readers) {
        let source = member.bound.pool.source.name();
        match reply {
            Ok(reply) => match reply.error {
                Some(body) => return Err(Stopped::told(&body)),
                None if reply.tag == "COMMIT" => {}
                None => return Err(not_committed(source).into()),
            },
            Err(why) => return Err(super::global::lost_within(source, &why).into()),
        }
    }
    Ok(())
}

/// A server that took part says that its transaction had failed, which nobody had told the router.
fn not_committed(source: &str) -> Refusal {
    let cause =
        format!("source {source} has rolled back. The transaction is rolled back on every source");
    Refusal::new("HF3206", "25P02", cause, "Begin it again")
}

async fn roll_back_all(mut members: Vec<Member>, limit: Duration) {
    let told =
        members.iter_mut().map(|member| within(limit, &mut member.bound.server, &["ROLLBACK"]));
    for (reply, error) in join_all(told)
        .await
        .into_iter()
        .enumerate()
        .filter_map(|(at, reply)| reply.err().map(|error| (at, error)))
    {
        tracing::info!(at = reply, error, "a server was lost before its rollback");
    }
    give_back_all(members, false);
}

fn give_back_all(members: impl IntoIterator<Item = Member>, broken: bool) {
    for mut member in members {
        member.bound.server.broken |= broken;
        member.bound.pool.give_back(member.bound.server);
    }
}

fn close_all(members: Vec<Member>) {
    give_back_all(members, true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_said_in_words_that_settings_have() {
        for (text, wanted) in [
            ("off", ReadOwnWrites::Off),
            ("Session", ReadOwnWrites::Session),
            ("", ReadOwnWrites::Session),
            ("ON", ReadOwnWrites::All),
            ("all", ReadOwnWrites::All),
        ] {
            assert_eq!(ReadOwnWrites::parse(text), Ok(wanted), "{text}");
        }
        let check = |sql: &str| check_setting(&crate::classify::classify(sql), sql).is_ok();
        for sql in [
            "SET holdfast.read_own_writes = on",
            "set session holdfast.read_own_writes to 'all'",
            "SET holdfast.read_own_writes TO DEFAULT",
            "RESET holdfast.read_own_writes",
            "SET other = maybe",
            "SET holdfast.max_staleness = '500ms'",
            "SET holdfast.max_staleness TO DEFAULT",
            "SET holdfast.max_staleness = 250",
        ] {
            assert!(check(sql), "{sql}");
        }
        assert!(!check("SET holdfast.read_own_writes = maybe"));
        assert!(
            !check("SET holdfast.max_staleness = on") && !check("SET holdfast.max_staleness = -1")
        );
        assert_eq!(ReadOwnWrites::parse("maybe").map_err(|r| r.code), Err("HF3217"));
    }
}
