//! Settings of a session that has no server of its own: made on each server that it uses, and read back where they may have changed.
//!
//! Values travel as parameters, never as SQL. A `SET` runs on a server like any statement, so PostgreSQL itself judges it; when the
//! transaction is over, the router asks that server what became of it, so that a rollback counts.

use std::{io, rc::Rc};

use super::{Bound, FAILED, Session, expect::Expect, old_rows::age_max};
use crate::{
    backend::{Reading, Server, Settings},
    frame::{self, Body},
    refusal::{self, Refusal},
};

/// Names and values that a server told of itself.
pub(crate) type Statuses = Rc<Vec<(Vec<u8>, Vec<u8>)>>;

const SET: &[u8] = b"SELECT pg_catalog.set_config($1, $2, false)";
const GET: &[u8] = b"SELECT $1::text, pg_catalog.current_setting($1::text, true)";
/// Settings that one session may have of its own, and one transaction may change.
const SETTINGS_MAX: usize = 256;
/// Why a session with one more keeps its server.
const TOO_MANY: &str = "more settings than can be carried";

/// Appends what makes `wanted` of a server that has `present`.
fn put_change(
    out: &mut Vec<u8>,
    present: Option<&Rc<Settings>>,
    wanted: Option<&Rc<Settings>>,
) -> usize {
    let mut queries = 0;
    if present.is_some() {
        frame::put_query(out, b"RESET ALL");
        frame::put_query(out, b"RESET ROLE");
        queries += 2;
    }
    if let Some(wanted) = wanted {
        let pairs =
            wanted.pairs.iter().map(|(name, value)| vec![name.as_bytes(), value.as_bytes()]);
        put_calls(out, SET, pairs);
    }
    queries
}

/// Appends one unnamed statement, executed once with each of these parameters, and a sync.
fn put_calls<'p>(out: &mut Vec<u8>, sql: &[u8], calls: impl Iterator<Item = Vec<&'p [u8]>>) {
    frame::put(out, b'P', |out| {
        out.push(0);
        frame::put_text(out, sql);
        out.extend_from_slice(&[0, 0]);
    });
    for parameters in calls {
        frame::put(out, b'B', |out| {
            // No portal name, no statement name, all parameters in text.
            out.extend_from_slice(&[0, 0, 0, 0]);
            let count = u16::try_from(parameters.len()).expect("one or two");
            out.extend_from_slice(&count.to_be_bytes());
            for parameter in parameters {
                let length = i32::try_from(parameter.len()).expect("settings are short");
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(parameter);
            }
            out.extend_from_slice(&[0, 0]);
        });
        frame::put(out, b'E', |out| out.extend_from_slice(&[0, 0, 0, 0, 0]));
    }
    frame::put_bare(out, b'S');
}

fn same(one: Option<&Rc<Settings>>, other: Option<&Rc<Settings>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Rc::ptr_eq(one, other),
        _ => false,
    }
}

impl Session {
    /// The server was taken: what it has set becomes what this session has set.
    pub(super) fn make_settings_ours(&mut self) {
        let Some(Bound { server, .. }) = &mut self.bound else { return };
        if same(server.settings.as_ref(), self.settings.as_ref()) {
            return;
        }
        let queries =
            put_change(&mut self.to_server, server.settings.as_ref(), self.settings.as_ref());
        self.expected.extend((0..queries).map(|_| Expect::HiddenQuery));
        if self.settings.is_some() {
            self.expected.push_back(Expect::HiddenBatch);
        }
        server.unnamed = None;
        server.settings.clone_from(&self.settings);
    }

    /// Under which settings a statement that is parsed now is read.
    pub(super) fn reading(&self) -> Reading {
        // What waits for the transaction's server has not changed the one that is only asked.
        let changes = if self.deferred.is_empty() { self.changes } else { 0 };
        Reading { settings: self.settings.clone(), changes }
    }

    /// Where several sources are told apart by keys, a key is what its bytes mean to a server. They are read as UTF-8 here, so bytes outside
    /// of ASCII are no key of a session that writes otherwise, or may since it set `client_encoding` in a transaction under way.
    /// # Errors
    /// HF3211: these bytes may mean something else to a server.
    pub(super) fn means_the_same_here(&self, bytes: &[u8]) -> Result<(), Refusal> {
        const NAME: &str = "client_encoding";
        if self.worker.sources().len() < 2 || bytes.is_ascii() {
            return Ok(());
        }
        let pairs = self.settings.as_ref().map(|settings| settings.pairs.as_slice());
        let said =
            pairs.unwrap_or_default().iter().find(|(name, _)| name.eq_ignore_ascii_case(NAME));
        let encoding = match said {
            _ if self.pinned == Some(TOO_MANY) => "not known among so many settings",
            _ if self.touched.iter().any(|name| name == NAME) => "what this transaction has set",
            Some((_, encoding)) => encoding.as_str(),
            None => return Ok(()),
        };
        let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
        if ["UTF8", "UNICODE", "SQLASCII"].iter().any(|known| plain.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        let cause = format!(
            "client_encoding is {encoding}, and a statement or value outside of ASCII is told apart by its bytes in UTF-8 where there are several sources"
        );
        Err(Refusal::new("HF3211", "0A000", cause, "SET client_encoding TO 'UTF8', and write so"))
    }

    /// The server's settings are about to be others than the session's: these, or some for this transaction alone.
    pub(super) fn touch(&mut self, names: &[String]) {
        for name in names {
            if self.touched.contains(name) {
                continue;
            }
            if self.touched.len() == SETTINGS_MAX {
                self.pinned = Some(TOO_MANY);
                break;
            }
            self.touched.push(name.clone());
        }
        self.changes = self.worker.next_change();
        if let Some(bound) = &mut self.bound {
            bound.server.unnamed = None;
        }
    }

    /// `RESET ALL`: whatever the session has set. It may be rolled back, so the server is asked for each afterwards.
    pub(super) fn touch_all(&mut self) {
        let set = self.settings.as_ref().map(|settings| settings.pairs.clone()).unwrap_or_default();
        let names: Vec<String> =
            set.into_iter().chain(self.identity.settings.clone()).map(|(name, _)| name).collect();
        self.touch(&names);
    }

    /// Behind a `RESET`, which puts a server back to what it began with: what this session began with. `only`: these; all otherwise.
    pub(super) fn begin_again(&mut self, only: Option<&[String]>) {
        let identity = Rc::clone(&self.identity);
        let meant = |name: &str| {
            only.is_none_or(|only| only.iter().any(|one| one.eq_ignore_ascii_case(name)))
        };
        let pairs: Vec<_> = identity
            .settings
            .iter()
            .filter(|(name, _)| meant(name))
            .map(|(name, value)| vec![name.as_bytes(), value.as_bytes()])
            .collect();
        if pairs.is_empty() || self.status == FAILED {
            return;
        }
        put_calls(&mut self.to_server, SET, pairs.into_iter());
        self.expected.push_back(Expect::HiddenBatch);
    }

    /// The session may have changed settings on its server: asks for them before the server is released.
    pub(super) fn begin_read_back(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        // What is parsed until they are told is read under settings that nobody knows.
        self.touch(&[]);
        put_calls(&mut self.to_server, GET, touched.iter().map(|name| vec![name.as_bytes()]));
        self.expected.push_back(Expect::ReadBack);
        self.read_back = Some(Vec::with_capacity(touched.len()));
    }

    /// One row: name and value.
    pub(super) fn take_read_back(&mut self, body: &[u8]) {
        let mut body = Body(body);
        let _two_columns = body.int16();
        let mut text = || {
            let length = usize::try_from(body.int32()?).ok()?;
            Some(String::from_utf8_lossy(body.bytes(length)?).into_owned())
        };
        if let (Some(name), value) = (text(), text())
            && let Some(read) = &mut self.read_back
        {
            read.push((name, value.unwrap_or_default()));
        }
    }

    /// All were told: they are the session's from now on, and the server has them already.
    pub(super) fn end_read_back(&mut self, server: &mut Server) {
        self.expected.pop_front();
        let read = self.read_back.take().unwrap_or_default();
        self.adopt(read);
        server.settings.clone_from(&self.settings);
    }

    /// What was read of a server is this session's from now on.
    pub(super) fn adopt(&mut self, read: Vec<(String, String)>) {
        let mut pairs = self.settings.as_ref().map(|s| s.pairs.clone()).unwrap_or_default();
        for (name, value) in read {
            pairs.retain(|(known, _)| *known != name);
            if pairs.len() < SETTINGS_MAX {
                pairs.push((name, value));
            } else {
                // One too many to carry from server to server: this one is kept.
                self.pinned = Some(TOO_MANY);
            }
        }
        pairs.sort();
        self.settings = self.worker.intern(pairs);
        self.age_max = age_max(self.settings.as_ref());
        if self.touched.is_empty() {
            self.changes = 0;
        }
    }

    /// `RESET ALL` and `DISCARD ALL`: back to what the session began with.
    pub(super) fn reset_settings(&mut self) {
        self.settings = self.worker.intern(self.identity.settings.clone());
        self.age_max = age_max(self.settings.as_ref());
        self.touched.clear();
        self.changes = 0;
    }

    /// What a server with this session's settings says of itself; asked once for all sessions that begin alike.
    pub(super) async fn learn_statuses(&mut self) -> Result<Statuses, Refusal> {
        let pool = self.pool(0);
        if let Some(known) = pool.statuses_of(self.settings.as_ref()) {
            return Ok(known);
        }
        let mut server = pool.take().await?;
        let learned = self.ask_statuses(&mut server).await;
        server.broken |= !matches!(learned, Ok(Ok(_)));
        let endpoint = server.endpoint.to_string();
        let result = match learned {
            Ok(Ok(())) => Ok(pool.remember_statuses(self.settings.clone(), &server)),
            Ok(Err(refusal)) => Err(refusal),
            Err(error) => {
                let cause = format!("source {} at {endpoint}: {error}", pool.source.name());
                Err(Refusal::new("HF3205", "08001", cause, "Check the server, then connect again"))
            }
        };
        pool.give_back(server);
        result
    }

    /// Makes this session's settings those of a server that is used beside the session's own.
    /// # Errors
    /// The server is gone, or does not take a setting.
    pub(super) async fn fit_settings(&self, server: &mut Server) -> io::Result<()> {
        match self.ask_statuses(server).await? {
            Ok(()) => Ok(()),
            Err(refusal) => Err(io::Error::other(refusal.to_string())),
        }
    }

    async fn ask_statuses(&self, server: &mut Server) -> io::Result<Result<(), Refusal>> {
        if same(server.settings.as_ref(), self.settings.as_ref()) {
            return Ok(Ok(()));
        }
        let mut out = Vec::new();
        let queries = put_change(&mut out, server.settings.as_ref(), self.settings.as_ref());
        server.unnamed = None;
        server.wire.write_all(&out).await?;
        let mut ends = queries + usize::from(self.settings.is_some());
        let mut refused = None;
        while ends > 0 {
            let (tag, body) = server.wire.read_frame(1 << 20).await?;
            match tag {
                b'Z' => ends -= 1,
                b'S' => {
                    let mut body = Body(&body);
                    if let (Some(name), Some(value)) = (body.text(), body.text()) {
                        server.statuses.retain(|(known, _)| known != name);
                        server.statuses.push((name.to_vec(), value.to_vec()));
                    }
                }
                b'E' if refused.is_none() => {
                    let words =
                        String::from_utf8_lossy(refusal::field(&body, b'M').unwrap_or_default())
                            .into_owned();
                    let cause = format!(
                        "a setting of the start-up message is refused by the server: {words}"
                    );
                    refused = Some(Refusal::new(
                        "HF3209",
                        "22023",
                        cause,
                        "Correct the driver's start-up parameters",
                    ));
                }
                _ => {}
            }
        }
        server.settings.clone_from(&self.settings);
        Ok(refused.map_or(Ok(()), Err))
    }
}
