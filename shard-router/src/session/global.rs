//! A transaction on several sources: one server is at work, the others are quiet until a statement is for them or the transaction ends.
//!
//! A server joins when the first statement for its source comes, and is told what the others were told: `BEGIN`, settings, savepoints.
//! What it bears so that circles of waiting are seen is told of in [`crate::deadlock`].
//! What concerns the whole transaction is told to all of them at once, and the router answers for them.

use std::{rc::Rc, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::timeout;

use super::{Bound, End, FAILED, IDLE, IN_TRANSACTION, Session, consume::Taken};
use crate::{
    backend::{Pool, Reply, Server, messages},
    classify::Act,
    deadlock::Entry,
    global_write,
    meaning::Meaning,
    refusal::{self, Refusal},
    tokens::Tokens,
};

/// No SQL: a server that is sent this fails, and its log says why.
const DOOMED: &str = "holdfast ends the transaction that failed on another source";

/// A server that takes part in a transaction with others.
pub(super) struct Member {
    pub(super) bound: Bound,
    /// Whether it may have written or locked.
    pub(super) wrote: bool,
}

/// What a transaction on several sources has beside the server at work.
pub(super) struct Global {
    /// The name under which it will be decided about.
    pub(super) gid: String,
    /// Its entry among those that may wait for each other across sources.
    pub(super) entry: Arc<Entry>,
    pub(super) parked: Vec<Member>,
    /// It has failed, and so have all members.
    pub(super) doomed: bool,
}

/// A statement about the whole transaction.
pub(super) struct Span {
    pub(super) verb: Verb,
    pub(super) sql: Box<str>,
    /// A simple query; otherwise the execution of a portal.
    pub(super) simple: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Commit,
    Rollback,
    /// The next transaction begins at once, alike.
    CommitAndChain,
    RollbackAndChain,
    /// A savepoint or a setting.
    Within,
}

impl Session {
    /// What the router itself has all servers of the transaction do; `None` if the statement is for one of them, or for no transaction.
    pub(super) fn spans(&self, meaning: &Meaning) -> Option<Verb> {
        if matches!(meaning.act(), Act::Commit) && self.must_not_commit().is_some() {
            return Some(Verb::Commit);
        }
        let verb = match meaning.act() {
            Act::CommitAndChain => Some(Verb::CommitAndChain),
            Act::RollbackAndChain => Some(Verb::RollbackAndChain),
            _ => None,
        };
        if verb.is_some() {
            return verb.filter(|_| self.ends_chain());
        }
        self.global.as_ref()?;
        match meaning.act() {
            Act::Commit => Some(Verb::Commit),
            Act::Rollback => Some(Verb::Rollback),
            Act::InTransaction | Act::SetLocal | Act::Set(_) | Act::ResetAll => Some(Verb::Within),
            _ => None,
        }
    }

    /// What the status says of the transaction, each time that a server says it.
    pub(super) fn status_told(&mut self) {
        if self.status == IDLE {
            self.read_committed = None;
        }
        match self.status {
            IDLE if self.expected.is_empty() => {
                self.opening.clear();
                self.wrote = false;
                self.portal_homes.clear();
            }
            FAILED => {
                self.opening.forget_unsure();
                if let Some(global) = &self.global {
                    self.dooming = !global.doomed;
                }
            }
            IN_TRANSACTION => self.opening.is_sure(),
            _ => {}
        }
    }

    /// Whether `target` may be written to, by what has been written to before.
    /// # Errors
    /// HF3210: another source was written to, and nobody could decide for both.
    pub(super) fn may_write(&self, target: usize) -> Result<(), Refusal> {
        if self.worker.decides() {
            return Ok(());
        }
        let parked = self.global.iter().flat_map(|global| &global.parked);
        let mut writers: Vec<usize> =
            parked.filter(|member| member.wrote).map(|member| member.bound.source).collect();
        writers.extend(self.bound.as_ref().filter(|_| self.wrote).map(|bound| bound.source));
        let name = |source: usize| self.worker.sources()[source].name();
        match writers.into_iter().find(|writer| *writer != target) {
            Some(other) => Err(global_write::no_coordinator(name(other), name(target))),
            None => Ok(()),
        }
    }

    /// The transaction needs a source that is not at work, and nothing is under way.
    /// # Errors
    /// It cannot be had within this transaction.
    pub(super) fn second_source(&self, from: usize, to: usize) -> Result<Taken, Refusal> {
        let name = |source: usize| self.worker.sources()[source].name().to_owned();
        let (from, to) = (name(from), name(to));
        if let Some(why) = self.pinned {
            let cause = format!(
                "the session is tied to source {from} by {why}; this statement is for source {to}"
            );
            let remedy = "Use another session, or DISCARD ALL first";
            return Err(Refusal::new("HF3211", "0A000", cause, remedy));
        }
        if self.status != IN_TRANSACTION {
            let cause = format!(
                "messages without a Sync between them and without BEGIN are for sources {from} and {to}"
            );
            let remedy = "Send a Sync between them, or BEGIN first";
            return Err(Refusal::new("HF3210", "0A000", cause, remedy));
        }
        if let Err(why) = self.opening.statements() {
            let cause = format!(
                "the transaction uses source {from}; this statement is for source {to}, which cannot join, since {why}"
            );
            let remedy = "Send BEGIN as a query of its own";
            return Err(Refusal::new("HF3210", "0A000", cause, remedy));
        }
        let to = self.worker.sources().iter().position(|source| source.name() == to);
        Ok(Taken::Join(to.expect("it was just named")))
    }

    /// Puts another server to work, which joins the transaction if it has not yet.
    pub(super) async fn join(&mut self, source: usize) -> Result<(), End> {
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        let mut members = self.take_members();
        let known = members.iter().position(|member| member.bound.source == source);
        // A batch has its beginning in front of it, which costs no round trip of its own.
        let batch = self.inbox.filled().first().is_some_and(|tag| *tag != b'Q');
        let mut opening = None;
        let at = match known {
            Some(at) => self.tag_members(&mut members[at..=at]).await.map(|()| at),
            None if batch => self.enlist(&mut members, source).await.map(|told| {
                opening = Some(told);
                members.len() - 1
            }),
            None => self.admit(&mut members, source).await,
        };
        let at = match at {
            Ok(at) => at,
            Err(refusal) => {
                // The one that was at work is the last.
                let last = members.len() - 1;
                self.put_members(members, last);
                return self.refuse_current(&refusal);
            }
        };
        self.put_members(members, at);
        if let Some(opening) = opening {
            self.make_settings_ours();
            self.put_opening(&opening);
            (self.batch_open, self.batch_ran) = (true, true);
        }
        Ok(())
    }

    /// Has those of a transaction on several sources bear its tag that do not yet: each that is put to work, and all once one waits.
    /// # Errors
    /// One is lost, and the transaction with it.
    pub(super) async fn tag_members(&self, members: &mut [Member]) -> Result<(), Refusal> {
        let Some(global) = &self.global else { return Ok(()) };
        let tag = [crate::deadlock::tag(&global.gid)];
        let limit = self.worker.limits().commit_timeout;
        let untagged = members.iter_mut().filter(|member| !member.bound.tagged);
        let told = untagged.map(async |member| {
            // Not asked again: where it did not answer, it is broken.
            member.bound.tagged = true;
            let told = within(limit, &mut member.bound.server, &tag).await;
            told.map(drop).map_err(|why| lost_within(member.bound.pool.source.name(), &why))
        });
        join_all(told).await.into_iter().collect()
    }

    /// Whether a server of the transaction waits, and another does not bear its tag.
    pub(super) fn must_tag(&self) -> bool {
        self.global.as_ref().is_some_and(|global| {
            global.entry.waits() && global.parked.iter().any(|member| !member.bound.tagged)
        })
    }

    /// Has the quiet servers bear the tag. One that is lost is told of at the next statement.
    pub(super) async fn tag_parked(&mut self) {
        let Some(global) = &mut self.global else { return };
        let mut parked = std::mem::take(&mut global.parked);
        let tagged = self.tag_members(&mut parked).await;
        if let Err(refusal) = tagged {
            tracing::info!(%refusal, "a quiet server was lost");
        }
        self.global.as_mut().expect("nobody took it").parked = parked;
    }

    /// Has servers of all these sources take part, each ready to be put to work. Their places among the members.
    pub(super) async fn admit_all(
        &mut self,
        members: &mut Vec<Member>,
        sources: impl IntoIterator<Item = usize>,
    ) -> Result<Vec<usize>, Refusal> {
        let mut places = Vec::new();
        for source in sources {
            let known = members.iter().position(|member| member.bound.source == source);
            places.push(match known {
                Some(place) => place,
                None => self.admit(members, source).await?,
            });
        }
        self.tag_members(members).await?;
        Ok(places)
    }

    /// Has a server of `source` begin, as the others have. Its place among the members.
    pub(super) async fn admit(
        &mut self,
        members: &mut Vec<Member>,
        source: usize,
    ) -> Result<usize, Refusal> {
        let (pool, mut statements) = self.beginning(members.is_empty(), source)?;
        if let [.., before, tag] = &mut statements[..]
            && !members.is_empty()
        {
            // In one message.
            *before = format!("{before}\n;{tag}").into();
            statements.pop();
        }
        let mut server = pool.take().await?;
        let fitted = self.fit_settings(&mut server).await;
        let refused = |why: String| {
            let cause = format!("source {} could not join: {why}", pool.source.name());
            Refusal::new("HF3205", "08001", cause, "Roll back, and begin again")
        };
        let limit = self.worker.limits().commit_timeout;
        let begun = async {
            fitted.map_err(|error| error.to_string())?;
            let reply = within(limit, &mut server, &statements).await?;
            match reply.error {
                None => Ok(()),
                Some(_) => Err(reply.words()),
            }
        };
        if let Err(why) = begun.await {
            server.broken = true;
            pool.give_back(server);
            return Err(refused(why));
        }
        let tagged = !members.is_empty();
        members.push(Member { bound: Bound { server, pool, source, tagged }, wrote: false });
        Ok(members.len() - 1)
    }

    /// Adds a server of `source` to the members. What it must be told before anything else.
    async fn enlist(
        &mut self,
        members: &mut Vec<Member>,
        source: usize,
    ) -> Result<Vec<Box<str>>, Refusal> {
        let (pool, statements) = self.beginning(false, source)?;
        let server = pool.take().await?;
        let bound = Bound { server, pool, source, tagged: true };
        members.push(Member { bound, wrote: false });
        Ok(statements)
    }

    /// The pool from which a server of `source` joins, and what it must be told: that it begins, and its tag unless it is the first.
    fn beginning(
        &mut self,
        first: bool,
        source: usize,
    ) -> Result<(Rc<Pool>, Vec<Box<str>>), Refusal> {
        let pool = match first {
            true => self.pool(source),
            false => self.worker.joining_pool(source, &self.identity),
        };
        let mut statements: Vec<Box<str>> = match self.opening.statements() {
            Ok(statements) => statements.to_vec(),
            Err(why) => {
                let cause = format!("source {} cannot join: {why}", pool.source.name());
                return Err(Refusal::new("HF3210", "0A000", cause, "Send BEGIN by itself"));
            }
        };
        if !first {
            statements.push(self.tag());
        }
        Ok((pool, statements))
    }

    /// What marks a server as one of this transaction, for whoever looks at who waits for whom.
    fn tag(&mut self) -> Box<str> {
        let worker = &self.worker;
        let key = self.ticket.key();
        let global = self.global.get_or_insert_with(|| {
            let gid = ulid::Ulid::new().to_string();
            let entry = worker.shared().deadlocks.enter(&gid, key);
            Box::new(Global { gid, entry, parked: Vec::new(), doomed: false })
        });
        crate::deadlock::tag(&global.gid).into()
    }

    /// All servers of the transaction, the one at work last.
    pub(super) fn take_members(&mut self) -> Vec<Member> {
        let parked = self.global.as_mut().map(|global| std::mem::take(&mut global.parked));
        let mut members = parked.unwrap_or_default();
        let wrote = std::mem::take(&mut self.wrote);
        members.extend(self.bound.take().map(|bound| Member { bound, wrote }));
        members
    }

    /// Puts the servers of the transaction back, the one at `active` to work.
    pub(super) fn put_members(&mut self, mut members: Vec<Member>, active: usize) {
        if members.is_empty() {
            self.global = None;
            return;
        }
        let Member { bound, wrote } = members.remove(active);
        self.ticket.points_to(&bound.server);
        self.bound = Some(bound);
        self.wrote = wrote;
        match &mut self.global {
            Some(_) if members.is_empty() => self.global = None,
            Some(global) => global.parked = members,
            None => assert!(members.is_empty(), "two servers are a global transaction"),
        }
    }

    /// Closes the servers of a transaction, which PostgreSQL rolls back then.
    pub(super) fn close_members(&mut self, members: Vec<Member>) {
        for mut member in members {
            member.bound.server.broken = true;
            member.bound.pool.give_back(member.bound.server);
        }
        self.global = None;
    }

    /// The quiet servers of a transaction whose server at work is gone, or whose session ends.
    pub(super) fn close_parked(&mut self) {
        if let Some(mut global) = self.global.take() {
            let parked = std::mem::take(&mut global.parked);
            self.close_members(parked);
        }
        self.dooming = false;
    }

    /// The transaction has failed on one server: the others fail too, so that they keep no lock that one PostgreSQL would not keep.
    pub(super) async fn doom(&mut self) {
        self.dooming = false;
        let limit = self.worker.limits().commit_timeout;
        let Some(global) = &mut self.global else { return };
        global.doomed = true;
        let doomed = global.parked.iter_mut().map(async |member| {
            let told = within(limit, &mut member.bound.server, &[DOOMED]).await;
            if let Err(error) = told {
                tracing::info!(source = member.bound.pool.source.name(), error, "it is gone");
            }
        });
        join_all(doomed).await;
    }

    /// Tells all servers, and answers for them.
    pub(super) async fn span(&mut self, span: Span) -> Result<(), End> {
        if !self.to_client.is_empty() {
            self.flush_client().await?;
        }
        let said = match span.verb {
            Verb::CommitAndChain | Verb::RollbackAndChain => self.end_and_chain(span.verb).await,
            Verb::Commit => self.commit().await.map(str::to_owned),
            Verb::Rollback => {
                self.roll_back().await;
                Ok("ROLLBACK".to_owned())
            }
            Verb::Within => self.everywhere(&span.sql).await,
        };
        if span.verb != Verb::Within {
            self.drop_scatters();
        }
        match said {
            Ok(tag) => self.say_complete(&tag),
            Err(stopped) => {
                self.skipping = !span.simple;
                self.say_stopped(stopped)?;
            }
        }
        if span.simple {
            self.say_ready();
        }
        Ok(())
    }

    /// A savepoint or a setting, on all servers.
    async fn everywhere(&mut self, sql: &str) -> Result<String, super::Stopped> {
        let back = starts_with(sql, "rollback");
        if self.status == FAILED && !back {
            return Err(self.aborted().into());
        }
        let limit = self.worker.limits().commit_timeout;
        let mut statements: Vec<Box<str>> = vec![sql.into()];
        if back {
            // It may go back to before the server was marked.
            statements.push(self.tag());
        }
        let mut members = self.take_members();
        let told =
            members.iter_mut().map(|member| within(limit, &mut member.bound.server, &statements));
        let told = join_all(told).await;
        let mut wrong = None;
        let mut tag = String::new();
        for (reply, member) in told.into_iter().zip(&members) {
            match reply {
                Ok(Reply { error: Some(body), .. }) => {
                    wrong.get_or_insert(Ok(body));
                }
                Ok(reply) => tag = reply.tag,
                Err(error) => {
                    wrong = Some(Err((member.bound.pool.source.name().to_owned(), error)))
                }
            }
        }
        if back {
            "ROLLBACK".clone_into(&mut tag);
        }
        match wrong {
            None => {
                members.iter_mut().for_each(|member| member.bound.tagged |= back);
                let last = members.len() - 1;
                self.put_members(members, last);
                self.status = IN_TRANSACTION;
                if let Some(global) = &mut self.global {
                    global.doomed = false;
                }
                self.opening.push(sql);
                self.opening.is_sure();
                self.note_within(sql);
                Ok(tag)
            }
            Some(Ok(body)) => {
                let last = members.len() - 1;
                self.put_members(members, last);
                self.fail_members().await;
                Err(super::Stopped::told(&body))
            }
            Some(Err((source, error))) => {
                self.close_members(members);
                self.status = FAILED;
                Err(lost_within(&source, &error).into())
            }
        }
    }

    /// What a setting leaves behind when the transaction is over.
    fn note_within(&mut self, sql: &str) {
        match crate::classify::classify(sql) {
            Act::Set(names) => self.touch(&names),
            Act::SetLocal => self.touch(&[]),
            Act::ResetAll => self.touch_all(),
            _ if self.changes != 0 => self.touch(&[]),
            _ => {}
        }
    }

    /// From here on the transaction can only be rolled back, on every server.
    pub(super) async fn fail_members(&mut self) {
        self.status = FAILED;
        self.opening.forget_unsure();
        let limit = self.worker.limits().commit_timeout;
        if let Some(bound) = &mut self.bound {
            let _gone_or_failed = within(limit, &mut bound.server, &[DOOMED]).await;
        }
        self.doom().await;
    }

    /// Whether this error of a server is that of a deadlock across sources, in which this transaction was chosen to give way.
    pub(super) fn as_victim(&self, body: &[u8]) -> Option<Refusal> {
        let canceled = refusal::field(body, b'C') == Some(b"57014");
        let global = self.global.as_ref().filter(|_| canceled)?;
        global.entry.take_verdict()
    }
}

/// Has a server run these, within a bound; otherwise it is broken.
pub(crate) async fn within<Q: AsRef<str>>(
    limit: Duration,
    server: &mut Server,
    queries: &[Q],
) -> Result<Reply, String> {
    within_messages(limit, server, &messages(queries), queries.len()).await
}

/// The same with `count` messages that are written already.
pub(super) async fn within_messages(
    limit: Duration,
    server: &mut Server,
    messages: &[u8],
    count: usize,
) -> Result<Reply, String> {
    match timeout(limit, server.tell(messages, count)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => {
            server.broken = true;
            Err(error.to_string())
        }
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// A server was lost while its transaction was open.
pub(super) fn lost_within(source: &str, why: &str) -> Refusal {
    let cause = format!(
        "source {source}: the server connection was lost: {why}. The transaction is rolled back on every source"
    );
    Refusal::new("HF3206", "08006", cause, "ROLLBACK, then begin it again")
}

fn starts_with(sql: &str, wanted: &str) -> bool {
    matches!(
        Tokens::new(sql).next(),
        Some(crate::tokens::Token::Word(word)) if word.eq_ignore_ascii_case(wanted)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_is_told_by_its_first_word() {
        assert!(starts_with(" RollBack to a", "rollback") && !starts_with("release a", "rollback"));
    }
}
