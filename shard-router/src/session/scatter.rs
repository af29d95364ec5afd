//! A statement over several sources that only reads: sent to all of them at once, its rows merged by the mind as they come.
//!
//! What writes, or is within a transaction, runs on the servers of that transaction: see [`super::scatter_within`].

use std::{io, rc::Rc};

use holdfast_route::{
    Access, Plan, Rewritten, Target,
    merge::{Fields, Merger, Outcome},
};

use super::{End, FAILED, IDLE, Session, Statement};
use crate::{
    backend::{Pool, Server, tag_of},
    frame::{self, Body},
    meaning,
    refusal::{self, Refusal},
};

/// Bytes for the client beyond which they are written before more rows are merged.
pub(super) const WRITE_AT: usize = 32 * 1024;
/// Bytes that are read and dropped of a source whose rows are not needed any more; beyond, its connection is closed.
const DRAIN_BYTES_MAX: usize = 256 * 1024;

/// The code of a statement whose server was lost.
pub(super) const LOST: &str = "HF3205";

/// A statement over several sources, planned and not begun.
#[derive(Debug)]
pub(crate) struct Scatter {
    pub(super) plan: Box<Plan>,
    pub(super) sql: Box<str>,
    /// The parameters' types as the client gave them.
    types: Vec<u32>,
    /// The bind message behind its names; empty for a simple query.
    bind: Box<[u8]>,
}

/// A statement under way.
pub(crate) struct Running {
    parts: Vec<Part>,
    merger: Merger,
    done: bool,
}

/// One source's share.
pub(super) struct Part {
    pub(super) server: Option<Box<Server>>,
    pub(super) pool: Rc<Pool>,
    /// Its answer has come to its end.
    pub(super) ended: bool,
    /// The tag of its command, when that is complete.
    pub(super) tag: String,
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.broken |= !self.ended;
            server.unnamed = None;
            self.pool.give_back(server);
        }
    }
}

/// Why a statement over several sources ended early.
pub(super) enum Stopped {
    /// A source's own error, as it came.
    Told(Vec<u8>),
    Refused(Refusal),
    End(End),
}

impl Stopped {
    /// By a server's error, of which this is the body.
    pub(super) fn told(body: &[u8]) -> Self {
        let mut error = Vec::new();
        frame::put(&mut error, b'E', |out| out.extend_from_slice(body));
        Self::Told(error)
    }
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<holdfast_route::Refused> for Stopped {
    fn from(refused: holdfast_route::Refused) -> Self {
        Self::Refused(meaning::refusal(refused))
    }
}

impl Scatter {
    /// A simple query.
    pub(super) fn of_query(plan: Box<Plan>, sql: &str) -> Self {
        Self { plan, sql: sql.into(), types: Vec::new(), bind: Box::default() }
    }

    /// A bound statement.
    pub(super) fn of_bind(plan: Box<Plan>, statement: &Statement, rest: &[u8]) -> Self {
        let types = statement.types().collect();
        // A COPY has no parameters, and no say in the form of what a source tells the router of its rows.
        let bind = if plan.copy.is_some() { Box::default() } else { rest.into() };
        Self { plan, sql: statement.sql().into(), types, bind }
    }

    /// What each source is sent: parse, bind, describe, execute (if it is not only to be described), sync.
    pub(super) fn put_for(
        &self,
        rewritten: Option<&Rewritten>,
        execute: bool,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let bind = Bind::read(&self.bind)?;
        let all: Vec<u16> = (0..u16::try_from(bind.values.len()).ok()?).collect();
        let (sql, chosen) = match rewritten {
            Some(rewritten) => (rewritten.sql.as_str(), &rewritten.parameters),
            None => (&*self.sql, &all),
        };
        frame::put(out, b'P', |out| {
            out.push(0);
            frame::put_text(out, sql.as_bytes());
            put_count(out, chosen.len());
            for at in chosen {
                let oid = self.types.get(usize::from(*at)).copied().unwrap_or(0);
                out.extend_from_slice(&oid.to_be_bytes());
            }
        });
        let mut fits = Some(());
        frame::put(out, b'B', |out| {
            out.extend_from_slice(&[0, 0]);
            put_count(out, chosen.len());
            for at in chosen {
                let code = bind.formats.get(usize::from(*at)).copied().unwrap_or(0);
                out.extend_from_slice(&code.to_be_bytes());
            }
            put_count(out, chosen.len());
            for at in chosen {
                match bind.values.get(usize::from(*at)) {
                    None => fits = None,
                    Some(None) => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                    Some(Some(value)) => {
                        let length = u32::try_from(value.len()).unwrap_or(0);
                        out.extend_from_slice(&length.to_be_bytes());
                        out.extend_from_slice(value);
                    }
                }
            }
            put_count(out, bind.result_formats.len());
            for code in &bind.result_formats {
                out.extend_from_slice(&code.to_be_bytes());
            }
        });
        frame::put(out, b'D', |out| out.extend_from_slice(b"P\0"));
        if execute {
            frame::put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        }
        frame::put_bare(out, b'S');
        fits
    }

    /// Each column in a form of its own cannot be asked of sources that are sent other columns.
    pub(super) fn formats_fit(&self) -> bool {
        let Target::Several(parts) = &self.plan.target else { return false };
        let rewritten = parts.iter().any(|part| part.rewritten.is_some());
        Bind::read(&self.bind).is_some_and(|bind| {
            let same = bind.result_formats.windows(2).all(|pair| pair[0] == pair[1]);
            !rewritten || same
        })
    }
}

/// A bind message behind its names.
#[derive(Debug, Default)]
struct Bind<'m> {
    /// One for each parameter.
    formats: Vec<i16>,
    values: Vec<Option<&'m [u8]>>,
    /// None, or one for all, or one for each column.
    result_formats: Vec<i16>,
}

impl<'m> Bind<'m> {
    fn read(rest: &'m [u8]) -> Option<Self> {
        if rest.is_empty() {
            return Some(Self::default());
        }
        let mut body = Body(rest);
        let codes = |body: &mut Body<'m>| {
            let count = usize::from(body.int16()?.cast_unsigned());
            (0..count).map(|_| body.int16()).collect::<Option<Vec<_>>>()
        };
        let mut formats = codes(&mut body)?;
        let count = usize::from(body.int16()?.cast_unsigned());
        let mut values = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            values.push(match usize::try_from(body.int32()?) {
                Ok(length) => Some(body.bytes(length)?),
                Err(_) => None,
            });
        }
        match formats.len() {
            0 => formats = vec![0; count],
            1 => formats = vec![formats[0]; count],
            _ => {}
        }
        let mut result_formats = codes(&mut body)?;
        if result_formats.windows(2).all(|pair| pair[0] == pair[1]) {
            result_formats.truncate(1);
        }
        Some(Self { formats, values, result_formats })
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).expect("a bind message counts in 16 bits");
    out.extend_from_slice(&count.to_be_bytes());
}

impl Session {
    /// Whether a plan over several sources can be carried out as things are.
    /// # Errors
    /// It writes, and nobody could decide for all its sources; or the transaction cannot reach them.
    pub(super) fn may_scatter(&mut self, plan: &Plan) -> Result<(), Refusal> {
        if plan.access == Access::Read && self.status == IDLE && self.pinned.is_none() {
            return Ok(());
        }
        if self.status == FAILED {
            return Err(self.aborted());
        }
        let names = meaning::sources(plan);
        let names: Vec<_> = names.iter().map(|at| self.worker.sources()[*at].name()).collect();
        let names = names.join(", ");
        let refuse = |cause: String, remedy: &str| {
            Err(Refusal::new("HF3210", "0A000", cause, remedy.to_owned()))
        };
        if self.status == IDLE && self.batch_open {
            let cause = format!(
                "messages without a Sync before them and without BEGIN are for sources {names}"
            );
            return refuse(cause, "Send a Sync before them, or BEGIN first");
        }
        // A COPY whose rows all go to one source needs nobody to decide for several.
        let alone = plan.copy.is_some() && !plan.lookups && plan.sources() == 1;
        if plan.access != Access::Read && !self.worker.decides() && !alone {
            let cause = format!(
                "a statement writes to sources {names}, and the router knows no coordinator that could decide for all of them"
            );
            return refuse(
                cause,
                "Name the coordinators (coordinators.addresses) and an account for each source, or write by a key",
            );
        }
        Ok(())
    }

    /// A simple query over several sources, from its planning to ready.
    pub(super) async fn scatter(&mut self, scatter: Scatter) -> Result<(), End> {
        let rows = async {
            if self.is_within(&scatter) {
                return self.run_within(&scatter, true, 0).await;
            }
            if let Some(copy) = &scatter.plan.copy {
                return self.copy_alone(&scatter, copy).await;
            }
            let mut running = self.open_scatter(&scatter).await?;
            let fields = running.merger.fields();
            self.say(|out| frame::put(out, b'T', |out| out.extend_from_slice(&fields.encode())));
            self.run_scatter(&mut running, 0).await?;
            Ok(())
        };
        if let Err(stopped) = rows.await {
            self.say_stopped(stopped)?;
        }
        if self.bound.is_none() {
            self.ticket.points_nowhere();
        }
        self.say_ready();
        Ok(())
    }

    /// Tells the client why a statement of the router's own conduct ended early.
    pub(super) fn say_stopped(&mut self, stopped: Stopped) -> Result<(), End> {
        self.fail_sequence();
        match stopped {
            Stopped::Told(error) => self.say(|out| out.extend_from_slice(&error)),
            Stopped::Refused(refusal) => {
                crate::counts::Counts::refused(refusal.code);
                self.say(|out| refusal.put(out));
            }
            Stopped::End(end) => return Err(end),
        }
        Ok(())
    }

    /// Portals end with their transaction.
    pub(super) fn drop_scatters(&mut self) {
        if !self.scatters.is_empty() {
            self.scatters.clear();
            self.ticket.points_nowhere();
        }
    }

    /// Whether it runs on the servers of a transaction: the client's, or one of its own.
    fn is_within(&self, scatter: &Scatter) -> bool {
        scatter.plan.access != Access::Read || self.status != IDLE
    }

    /// Describes and executes a portal over several sources, as far as the client asked: `rows_max` 0 means all.
    pub(super) async fn scatter_portal(
        &mut self,
        name: &[u8],
        describe: bool,
        rows_max: u64,
    ) -> Result<(), End> {
        let Some(mut portal) = self.scatters.remove(name) else { return Ok(()) };
        let copy = portal.scatter.plan.copy.clone();
        if copy.is_some() && describe {
            self.scatters.insert(name.into(), portal);
            self.say(|out| frame::put_bare(out, b'n'));
            return Ok(());
        }
        if self.is_within(&portal.scatter) {
            let did = match describe {
                true => self.describe_within(&portal.scatter).await,
                false => self.run_within(&portal.scatter, false, rows_max).await,
            };
            match did {
                Ok(()) => {
                    self.scatters.insert(name.into(), portal);
                }
                Err(stopped) => {
                    self.skipping = true;
                    self.say_stopped(stopped)?;
                }
            }
            return Ok(());
        }
        let mut running = portal.running.take();
        let did = async {
            if let Some(copy) = &copy {
                return self.copy_alone(&portal.scatter, copy).await;
            }
            if running.is_none() {
                running = Some(self.open_scatter(&portal.scatter).await?);
            }
            let running = running.as_mut().expect("it was opened");
            if describe {
                let fields = running.merger.fields();
                self.say(|out| {
                    frame::put(out, b'T', |out| out.extend_from_slice(&fields.encode()))
                });
            } else {
                self.run_scatter(running, rows_max).await?;
            }
            Ok(())
        };
        match did.await {
            Ok(()) => {
                portal.running = running;
                self.scatters.insert(name.into(), portal);
            }
            Err(Stopped::Told(error)) => {
                self.skipping = true;
                self.say(|out| out.extend_from_slice(&error));
            }
            Err(Stopped::Refused(refusal)) => self.refuse_batch(&refusal),
            Err(Stopped::End(end)) => return Err(end),
        }
        Ok(())
    }

    /// A server of each source of its plan.
    pub(super) async fn take_parts(&mut self, scatter: &Scatter) -> Result<Vec<Part>, Stopped> {
        let Target::Several(targets) = &scatter.plan.target else {
            unreachable!("a plan over several sources has several parts")
        };
        let mut parts = Vec::with_capacity(targets.len());
        for target in targets {
            let source = usize::from(target.source.0);
            let pool = self.pool_for_part(source, scatter.plan.access);
            let mut server = pool.take().await?;
            self.fit_settings(&mut server).await.map_err(|error| lost(&pool, &error))?;
            parts.push(Part::new(server, pool));
        }
        self.ticket.points_to_all(parts.iter().filter_map(|part| part.server.as_deref()));
        Ok(parts)
    }

    /// Sends the statement to every source of its plan and hears what columns they have.
    async fn open_scatter(&mut self, scatter: &Scatter) -> Result<Running, Stopped> {
        let Target::Several(targets) = &scatter.plan.target else {
            unreachable!("a plan over several sources has several parts")
        };
        if !scatter.formats_fit() {
            let cause = "columns in mixed formats over several sources";
            let remedy = "Ask for all columns as text, or all in binary";
            return Err(Refusal::new("HF3211", "0A000", cause, remedy).into());
        }
        self.worker.shared().counts.scattered.increment(1);
        let mut parts = self.take_parts(scatter).await?;
        for (part, target) in parts.iter_mut().zip(targets) {
            let mut out = Vec::new();
            if scatter.put_for(target.rewritten.as_ref(), true, &mut out).is_none() {
                let cause = "a bind message has fewer parameters than its statement";
                return Err(Refusal::new("HF3209", "08P01", cause, "Mend the driver").into());
            }
            let server = part.server.as_mut().expect("it was just taken");
            let written = server.wire.write_all(&out).await;
            written.map_err(|error| lost(&part.pool, &error))?;
        }
        let mut merger: Option<Merger> = None;
        let count = parts.len();
        for part in &mut parts {
            let fields = part.columns().await?;
            match &merger {
                Some(merger) => merger.agrees(&fields)?,
                None => {
                    let bytes_max = self.worker.limits().merge_bytes_max;
                    let merge = scatter.plan.merge.clone();
                    merger = Some(Merger::new(merge, fields, count, bytes_max)?);
                }
            }
        }
        let merger = merger.expect("a plan over several sources has parts");
        Ok(Running { parts, merger, done: false })
    }

    /// Merges rows and says them, until there are no more or as many as the client wants.
    async fn run_scatter(&mut self, running: &mut Running, rows_max: u64) -> Result<(), Stopped> {
        let mut said = 0;
        while !running.done {
            if rows_max > 0 && said == rows_max {
                self.say(|out| frame::put_bare(out, b's'));
                return Ok(());
            }
            match running.merger.next()? {
                Outcome::Row(row) => {
                    self.say(|out| frame::put(out, b'D', |out| out.extend_from_slice(&row)));
                    said += 1;
                    if self.to_client.len() > WRITE_AT {
                        self.flush_client().await.map_err(Stopped::End)?;
                    }
                }
                Outcome::Wants(at) => match running.parts[at].row().await? {
                    Some(row) => running.merger.push(at, &row)?,
                    None => running.merger.end(at),
                },
                Outcome::Done => running.done = true,
            }
        }
        for part in &mut running.parts {
            part.drain().await;
        }
        // PostgreSQL counts the rows of this execute alone.
        self.say_complete(&format!("SELECT {said}"));
        Ok(())
    }
}

impl Part {
    pub(super) fn new(server: Box<Server>, pool: Rc<Pool>) -> Self {
        Self { server: Some(server), pool, ended: false, tag: String::new() }
    }

    /// The next message of this source. Notices are dropped; an error ends the whole statement.
    pub(super) async fn message(&mut self) -> Result<(u8, Vec<u8>), Stopped> {
        let server = self.server.as_mut().expect("it is kept until the end");
        loop {
            let read = server.next_frame().await;
            let (tag, body) = read.map_err(|error| lost(&self.pool, &error))?;
            match tag {
                b'N' | b'A' | b'S' | b'1' | b'2' => {}
                b'E' => return Err(part_ends(&self.pool, &body)),
                _ => return Ok((tag, body)),
            }
        }
    }

    pub(super) async fn columns(&mut self) -> Result<Fields, Stopped> {
        match self.message().await? {
            (b'T', body) => Ok(Fields::parse(&body)?),
            (b'n', _) => Ok(Fields::default()),
            (tag, _) => Err(self.nonsense(tag)),
        }
    }

    /// The next row; `None` behind the last one.
    pub(super) async fn row(&mut self) -> Result<Option<Vec<u8>>, Stopped> {
        loop {
            match self.message().await? {
                (b'D', body) => return Ok(Some(body)),
                (b'C', body) => self.tag = tag_of(&body),
                (b'I', _) => {}
                (b'Z', _) => {
                    self.ended = true;
                    return Ok(None);
                }
                (tag, _) => return Err(self.nonsense(tag)),
            }
        }
    }

    /// Reads what is left, if it is little; otherwise the connection is closed with the part.
    async fn drain(&mut self) {
        let mut dropped = 0;
        while !self.ended && dropped < DRAIN_BYTES_MAX {
            match self.row().await {
                Ok(Some(row)) => dropped += row.len(),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    pub(super) fn nonsense(&self, tag: u8) -> Stopped {
        let error = io::Error::other(format!("it says {:?}", char::from(tag)));
        lost(&self.pool, &error).into()
    }
}

/// What a server's error comes to: it is passed on, unless the connection ends with it.
pub(super) fn part_ends(pool: &Pool, body: &[u8]) -> Stopped {
    if !matches!(refusal::field(body, b'V'), Some(b"FATAL" | b"PANIC")) {
        return Stopped::told(body);
    }
    let words = refusal::field(body, b'M').unwrap_or_default();
    lost(pool, &io::Error::other(String::from_utf8_lossy(words))).into()
}

pub(super) fn lost(pool: &Pool, error: &io::Error) -> Refusal {
    let cause = format!("source {}: the server connection was lost: {error}", pool.source.name());
    Refusal::new(LOST, "08006", cause, "Send the statement again: it only reads")
}
