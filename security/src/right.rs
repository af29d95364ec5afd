//! The rights: who may do what, how far it reaches, and which right each RPC and each HTTP route needs.
//!
//! The door looks the exact RPC or the matched route up here, never a part of a path. What has no row is refused to everybody,
//! so a door that is added without a row stays shut.

use crate::Role;

/// What can be done: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Ask whether a node lives and is ready.
    Probe,
    /// Read which services and messages there are.
    Reflect,
    /// Open a stream of requests, each of which needs its own right.
    Exchange,
    /// Begin transactions and take them to their end.
    Transact,
    /// Ask a transaction to roll back.
    RollBack,
    /// See transactions.
    Read,
    /// Search what is finished, and watch what happens, of every tenant.
    Search,
    /// Decide what needs people: retry, resolve, abandon, approve.
    Operate,
    /// Open a session as an agent of a service.
    Serve,
    /// See nodes, members, sessions and metrics.
    Observe,
    /// Change members, leadership, participants' settings; take backups.
    Administer,
    /// See and verify the audit records.
    Audit,
    /// Ask where a key lives.
    Locate,
    /// Change the shard rules.
    Rule,
    /// Speak as a member of the cluster.
    Replicate,
}

/// How far a right reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Not at all.
    None,
    /// The caller's own tenant, its own participants, its own service.
    Own,
    /// Everything.
    All,
}

impl Right {
    /// Every right, in the order of the table.
    pub const ALL: [Self; 15] = [
        Self::Probe,
        Self::Reflect,
        Self::Exchange,
        Self::Transact,
        Self::RollBack,
        Self::Read,
        Self::Search,
        Self::Operate,
        Self::Serve,
        Self::Observe,
        Self::Administer,
        Self::Audit,
        Self::Locate,
        Self::Rule,
        Self::Replicate,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Reflect => "reflect",
            Self::Exchange => "exchange",
            Self::Transact => "transact",
            Self::RollBack => "roll-back",
            Self::Read => "read",
            Self::Search => "search",
            Self::Operate => "operate",
            Self::Serve => "serve",
            Self::Observe => "observe",
            Self::Administer => "administer",
            Self::Audit => "audit",
            Self::Locate => "locate",
            Self::Rule => "rule",
            Self::Replicate => "replicate",
        }
    }
}

/// How far `right` reaches for `role`.
#[must_use]
pub const fn scope(role: Role, right: Right) -> Scope {
    match (right, role) {
        (Right::Probe | Right::Reflect, _)
        | (Right::Exchange | Right::Locate | Right::Observe | Right::Administer, Role::Node)
        // A member hands on what a person with the right asked it for, with that person's name.
        | (Right::Replicate | Right::Rule, Role::Node)
        | (Right::Exchange, Role::App | Role::Sre | Role::Auditor)
        | (Right::Read | Right::Search, Role::Sre | Role::Auditor)
        | (Right::RollBack | Right::Operate | Right::Administer, Role::Sre)
        | (Right::Observe | Right::Audit, Role::Sre | Role::Auditor)
        | (Right::Observe | Right::Rule, Role::Dba)
        | (Right::Locate, Role::App | Role::Participant | Role::Dba | Role::Sre | Role::Auditor) => {
            Scope::All
        }
        (Right::Transact | Right::RollBack | Right::Read, Role::App)
        | (Right::Serve, Role::Participant) => Scope::Own,
        _ => Scope::None,
    }
}

/// How far it reaches for whoever has shown nothing: probes alone.
#[must_use]
pub const fn for_anybody(right: Right) -> Scope {
    match right {
        Right::Probe => Scope::All,
        _ => Scope::None,
    }
}

/// The right that each RPC needs, by its exact path.
pub const RPCS: &[(&str, Right)] = &[
    ("/grpc.health.v1.Health/Check", Right::Probe),
    ("/grpc.health.v1.Health/List", Right::Probe),
    ("/grpc.health.v1.Health/Watch", Right::Probe),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Right::Reflect),
    ("/holdfast.v1.Admin/AddMember", Right::Administer),
    ("/holdfast.v1.Admin/Backup", Right::Administer),
    ("/holdfast.v1.Admin/Hold", Right::Administer),
    ("/holdfast.v1.Admin/NodeStatus", Right::Observe),
    ("/holdfast.v1.Admin/PromoteMember", Right::Administer),
    ("/holdfast.v1.Admin/ReloadConfig", Right::Administer),
    ("/holdfast.v1.Admin/RemoveMember", Right::Administer),
    ("/holdfast.v1.Admin/SwapMember", Right::Administer),
    ("/holdfast.v1.Admin/TransferLeadership", Right::Administer),
    ("/holdfast.v1.Audit/ListRecords", Right::Audit),
    ("/holdfast.v1.Audit/Verify", Right::Audit),
    ("/holdfast.v1.History/Search", Right::Search),
    ("/holdfast.v1.History/Show", Right::Search),
    ("/holdfast.v1.Participants/Session", Right::Serve),
    ("/holdfast.v1.RaftPeer/AppendEntries", Right::Replicate),
    ("/holdfast.v1.RaftPeer/Hello", Right::Replicate),
    ("/holdfast.v1.RaftPeer/InstallSnapshot", Right::Replicate),
    ("/holdfast.v1.RaftPeer/TransferLeader", Right::Replicate),
    ("/holdfast.v1.RaftPeer/Vote", Right::Replicate),
    ("/holdfast.v1.Services/AdoptPolicies", Right::Replicate),
    ("/holdfast.v1.Services/ListServices", Right::Observe),
    ("/holdfast.v1.Services/SetCallerPolicy", Right::Administer),
    ("/holdfast.v1.Services/SetServicePolicy", Right::Administer),
    ("/holdfast.v1.Shards/Apply", Right::Rule),
    ("/holdfast.v1.Shards/Attend", Right::Locate),
    ("/holdfast.v1.Shards/ListRouters", Right::Locate),
    ("/holdfast.v1.Shards/ListVersions", Right::Locate),
    ("/holdfast.v1.Shards/Locate", Right::Locate),
    ("/holdfast.v1.Shards/Revert", Right::Rule),
    ("/holdfast.v1.Shards/Show", Right::Locate),
    ("/holdfast.v1.Shards/Watch", Right::Locate),
    ("/holdfast.v1.Transactions/AddBranch", Right::Transact),
    ("/holdfast.v1.Transactions/Begin", Right::Transact),
    ("/holdfast.v1.Transactions/Exchange", Right::Exchange),
    ("/holdfast.v1.Transactions/Finish", Right::Transact),
    ("/holdfast.v1.Transactions/Get", Right::Read),
    ("/holdfast.v1.Transactions/List", Right::Read),
    ("/holdfast.v1.Transactions/Operate", Right::Operate),
    ("/holdfast.v1.Transactions/Retry", Right::Operate),
    ("/holdfast.v1.Transactions/RetryMany", Right::Operate),
    ("/holdfast.v1.Transactions/RollBack", Right::RollBack),
    ("/holdfast.v1.Transactions/Submit", Right::Transact),
    ("/holdfast.v1.Transactions/SubmitBegun", Right::Transact),
    ("/holdfast.v1.Transactions/Wait", Right::Read),
];

/// The right that each HTTP route needs, by method and matched route.
pub const ROUTES: &[(&str, &str, Right)] = &[
    ("GET", "/livez", Right::Probe),
    ("GET", "/metrics", Right::Observe),
    ("GET", "/openapi.json", Right::Reflect),
    ("GET", "/readyz", Right::Probe),
    ("GET", "/v1/audit", Right::Audit),
    ("GET", "/v1/audit/verify", Right::Audit),
    ("GET", "/v1/callers", Right::Observe),
    ("GET", "/v1/events", Right::Search),
    ("GET", "/v1/history", Right::Search),
    ("GET", "/v1/services", Right::Observe),
    ("GET", "/v1/services/{service}", Right::Observe),
    ("GET", "/v1/shards/locate", Right::Locate),
    ("GET", "/v1/shards/routers", Right::Locate),
    ("GET", "/v1/shards/rules", Right::Locate),
    ("GET", "/v1/shards/rules/versions", Right::Locate),
    ("GET", "/v1/status", Right::Observe),
    ("GET", "/v1/transactions", Right::Read),
    ("GET", "/v1/transactions/{gid}", Right::Read),
    ("GET", "/v1/transactions/{gid}/events", Right::Search),
    ("GET", "/v1/transactions/{gid}/timeline", Right::Search),
    ("GET", "/v1/transactions/{gid}/wait", Right::Read),
    ("POST", "/v1/config/reload", Right::Administer),
    ("POST", "/v1/needs-attention/retry", Right::Operate),
    ("POST", "/v1/shards/rules/revert", Right::Rule),
    ("POST", "/v1/transactions", Right::Transact),
    ("POST", "/v1/transactions/{gid}/branches", Right::Transact),
    ("POST", "/v1/transactions/{gid}/finish", Right::Transact),
    ("POST", "/v1/transactions/{gid}/operate", Right::Operate),
    ("POST", "/v1/transactions/{gid}/retry", Right::Operate),
    ("POST", "/v1/transactions/{gid}/rollback", Right::RollBack),
    ("POST", "/v1/transactions/{gid}/submit", Right::Transact),
    ("PUT", "/v1/callers/{caller}/policy", Right::Administer),
    ("PUT", "/v1/services/{service}/policy", Right::Administer),
    ("PUT", "/v1/shards/rules", Right::Rule),
];

/// The right that the RPC at exactly this path needs; `None`: nobody may.
#[must_use]
pub fn of_rpc(path: &str) -> Option<Right> {
    RPCS.iter().find(|(known, _)| *known == path).map(|(_, right)| *right)
}

/// The right that this method on exactly this matched route needs; `None`: nobody may. `HEAD` is a `GET` without its body.
#[must_use]
pub fn of_route(method: &str, route: &str) -> Option<Right> {
    let method = if method == "HEAD" { "GET" } else { method };
    let row = ROUTES.iter().find(|(known, path, _)| *known == method && *path == route);
    row.map(|(_, _, right)| *right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exact_path_has_a_right() {
        assert_eq!(of_rpc("/holdfast.v1.Transactions/Submit"), Some(Right::Transact));
        for path in [
            "/holdfast.v1.Transactions/Submit/",
            "/holdfast.v1.Transactions/submit",
            "//holdfast.v1.Transactions/Submit",
            "/holdfast.v1.Transactions/Nothing",
            "/x/grpc.health.v1.Health/Check",
            "",
        ] {
            assert_eq!(of_rpc(path), None, "{path:?}");
        }
        assert_eq!(of_route("HEAD", "/livez"), Some(Right::Probe));
        assert_eq!(of_route("POST", "/livez"), None);
        assert_eq!(of_route("GET", "/v1/transactions/livez"), None);
    }

    #[test]
    fn no_row_stands_twice() {
        for (n, (path, _)) in RPCS.iter().enumerate() {
            assert!(RPCS[..n].iter().all(|(other, _)| other != path), "{path}");
        }
        for (n, (method, path, _)) in ROUTES.iter().enumerate() {
            let same = |row: &&(&str, &str, Right)| row.0 == *method && row.1 == *path;
            assert!(!ROUTES[..n].iter().any(|row| same(&row)), "{method} {path}");
        }
    }

    #[test]
    fn an_auditor_changes_nothing_and_a_participant_only_serves() {
        let changes = [
            Right::Transact,
            Right::RollBack,
            Right::Operate,
            Right::Serve,
            Right::Administer,
            Right::Rule,
            Right::Replicate,
        ];
        for right in changes {
            assert_eq!(scope(Role::Auditor, right), Scope::None, "{right:?}");
        }
        for right in Right::ALL {
            let free =
                matches!(right, Right::Probe | Right::Reflect | Right::Locate | Right::Serve);
            assert_eq!(scope(Role::Participant, right) != Scope::None, free, "{right:?}");
            assert!(scope(Role::Node, right) == Scope::None || right != Right::Transact);
        }
        assert!(Role::ALL.iter().all(|role| (scope(*role, Right::Replicate) == Scope::All) == (*role == Role::Node)));
    }
}
