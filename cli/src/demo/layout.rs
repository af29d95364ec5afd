//! What a cluster on this machine is started with: its Raft groups, whether it may be drilled, whether it is guarded.

use std::path::Path;

use super::{cluster::COORDINATORS, guard::Guard, processes::Supervised};

/// A person who plays every part of a demo, and may do what each of them may.
const PERSON: &str = "user/demo?role=app&role=dba&role=sre";
/// The banks' deposit modules, and a router that answers for its sources.
const SERVICES: [&str; 2] = ["deposit", "source"];
const ACCESS: &str = "\
[[caller]]
name = \"user/demo\"
participants = [\"deposit\"]

[[caller]]
name = \"service/source\"
roles = [\"app\", \"participant\"]
participants = [\"source\"]
";

/// How a cluster is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Raft groups.
    pub(crate) groups: u32,
    pub(crate) doors: Doors,
    /// Mutual TLS between all roles; else nothing is encrypted.
    pub(crate) tls: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { groups: 1, doors: Doors::Closed, tls: false }
    }
}

impl Layout {
    pub(super) fn guard(self, folder: &Path) -> anyhow::Result<Option<Guard>> {
        let made = self.tls.then(|| Guard::make(folder, COORDINATORS, &SERVICES, PERSON, ACCESS));
        made.transpose()
    }
}

/// Whether the roles consent to drills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doors {
    /// They do not.
    Closed,
    /// Each has a door of its own.
    Open,
}

impl Doors {
    pub(super) fn open(self, process: &mut Supervised) -> anyhow::Result<Option<String>> {
        if self == Self::Closed {
            return Ok(None);
        }
        let door = format!("127.0.0.1:{}", super::ports::free(1)?[0]);
        process.set("HOLDFAST_DRILL_ALLOWED", "true");
        process.set("HOLDFAST_DRILL_BIND", &door);
        Ok(Some(door))
    }
}
