//! Cancel requests: the key that a client holds leads to the server that works for it at this moment, or nowhere.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_security::ServerTls;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;

use crate::{
    backend::{self, Server},
    config::Endpoint,
};

/// The keys of all sessions.
#[derive(Debug, Default)]
pub(crate) struct Cancels {
    sessions: Mutex<HashMap<Key, Arc<Mutex<Pointer>>>>,
}

/// Process id and secret, as the client was told them.
type Key = (i32, i32);

/// Where a cancel request goes, how it is encrypted, and its key there.
type Target = (Endpoint, Option<ServerTls>, i32, i32);

#[derive(Debug, Default)]
struct Pointer {
    /// One, or those of a statement over several sources.
    servers: Vec<Target>,
    /// A cancel is on its way to that server.
    under_way: bool,
    /// The session waits in the router, and is told here.
    waits: Option<Arc<Notify>>,
}

/// A session's entry; gone when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    cancels: Arc<Cancels>,
    key: Key,
    pointer: Arc<Mutex<Pointer>>,
}

impl Cancels {
    /// A key that nobody else has and nobody can guess.
    pub(crate) fn ticket(self: &Arc<Self>) -> Ticket {
        let random = SystemRandom::new();
        let pointer = Arc::new(Mutex::new(Pointer::default()));
        loop {
            let mut bytes = [0; 8];
            random.fill(&mut bytes).expect("the system has randomness");
            let number = u64::from_ne_bytes(bytes);
            let key = ((number >> 33) as i32, number as i32);
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            if key.0 > 0 && !sessions.contains_key(&key) {
                sessions.insert(key, Arc::clone(&pointer));
                return Ticket { cancels: Arc::clone(self), key, pointer };
            }
        }
    }

    /// Passes a cancel request on to the server that works for its session. Anything else is ignored, as PostgreSQL does.
    pub(crate) async fn cancel(&self, pid: i32, secret: i32) {
        let found = {
            let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.get(&(pid, secret)).cloned()
        };
        let Some(pointer) = found else { return };
        let targets = {
            let mut pointer = pointer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(waits) = &pointer.waits {
                waits.notify_one();
                return;
            }
            pointer.under_way |= !pointer.servers.is_empty();
            pointer.servers.clone()
        };
        for (endpoint, tls, pid, secret) in targets {
            if let Err(error) = backend::cancel(&endpoint, tls.as_ref(), pid, secret).await {
                tracing::info!(%endpoint, %error, "a cancel request could not be passed on");
            }
        }
    }
}

impl Ticket {
    /// What the client is told.
    pub(crate) fn key(&self) -> (i32, i32) {
        self.key
    }

    /// This server works for the session now.
    pub(crate) fn points_to(&self, server: &Server) {
        let mut pointer = self.lock();
        pointer.servers.clear();
        pointer.servers.push(target(server));
    }

    /// These servers work for it, all at once.
    pub(crate) fn points_to_all<'s>(&self, servers: impl Iterator<Item = &'s Server>) {
        self.lock().servers = servers.map(target).collect();
    }

    /// From here on a cancel is for what waits in the router, until [`Self::waits_no_more`]: told once, also if it comes before anybody listens.
    pub(crate) fn waits(&self) -> Arc<Notify> {
        Arc::clone(self.lock().waits.insert(Arc::default()))
    }

    /// Cancels are for servers again.
    pub(crate) fn waits_no_more(&self) {
        self.lock().waits = None;
    }

    /// No server works for it any more. `true` if a cancel was sent to the one that did: it may arrive late.
    pub(crate) fn points_nowhere(&self) -> bool {
        let mut pointer = self.lock();
        pointer.servers.clear();
        std::mem::take(&mut pointer.under_way)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pointer> {
        self.pointer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn target(server: &Server) -> Target {
    (server.endpoint.clone(), server.tls.clone(), server.pid, server.secret)
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
