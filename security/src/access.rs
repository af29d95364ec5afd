//! The access file: what callers may do beside what their certificates say, and the tokens. Strict, bounded, re-read while running.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use toml::Spanned;

use crate::{
    Caller, Name, Participants, Role, Subject,
    name::WORD_MAX,
    token::{Token, TokenHash, is_id},
};

/// Bytes of an access file.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Callers of a file, and tokens of a file.
pub const ENTRIES_MAX: usize = 10_000;
/// Participants of one entry.
pub const PARTICIPANTS_MAX: usize = 1_000;
/// Mistakes told of one file.
const MISTAKES_MAX: usize = 16;

/// Why a file cannot be used: every mistake, each with its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HF1404 {}: {}", path.display(), mistakes.join("; "))]
pub struct BadAccess {
    path: PathBuf,
    mistakes: Vec<String>,
}

/// Who is not let in, and why; the words tell a caller nothing about anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The token is no token, not known, or its time is over: one answer for all, so that nobody learns which tokens exist.
    #[error("the token is not valid here. Ask for a new one")]
    BadToken,
    /// The certificate is of another cluster.
    #[error("the certificate names another cluster. Use one of this cluster")]
    OtherCluster,
}

/// What one reading of a file said.
#[derive(Debug, Default)]
struct Directory {
    callers: BTreeMap<String, Grant>,
    tokens: BTreeMap<String, (TokenHash, Caller)>,
}

#[derive(Clone, Debug)]
struct Grant {
    roles: Option<Vec<Role>>,
    tenant: Option<String>,
    participants: Participants,
}

/// The directory of callers of one node. A handle: clones are the same directory.
#[derive(Clone, Debug, Default)]
pub struct Access {
    path: Option<PathBuf>,
    current: Arc<RwLock<Arc<Directory>>>,
}

/// Who the holder of one certificate was by the reading of the file that was asked last.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Option<(Arc<Directory>, Arc<Caller>)>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    caller: Vec<CallerEntry>,
    #[serde(default)]
    token: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerEntry {
    name: Spanned<String>,
    roles: Option<Vec<Spanned<String>>>,
    tenant: Option<Spanned<String>>,
    #[serde(default)]
    participants: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: Spanned<String>,
    id: Spanned<String>,
    sha256: Spanned<String>,
    roles: Vec<Spanned<String>>,
    tenant: Option<Spanned<String>>,
    #[serde(default)]
    participants: Vec<Spanned<String>>,
    expires_at: Spanned<String>,
}

impl Access {
    /// A directory without entries: certificates say all.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads `path`.
    /// # Errors
    /// [`BadAccess`] with every mistake.
    pub fn open(path: &Path) -> Result<Self, BadAccess> {
        let access = Self { path: Some(path.to_owned()), current: Arc::default() };
        access.reload()?;
        Ok(access)
    }

    /// Reads the file again; a file with mistakes changes nothing. Streams that are open are judged by the new one from now on.
    /// # Errors
    /// [`BadAccess`] with every mistake.
    pub fn reload(&self) -> Result<(), BadAccess> {
        let Some(path) = &self.path else { return Ok(()) };
        let read = read(path).map_err(|mistakes| BadAccess { path: path.clone(), mistakes })?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        Ok(())
    }

    /// The file, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    fn now(&self) -> Arc<Directory> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who the holder of a certificate with `name` is.
    #[must_use]
    pub fn named(&self, name: &Name) -> Caller {
        self.now().named(name)
    }

    /// As [`Self::named`], for whoever asks about the same name again and again, as an open stream does for each of its messages: it is
    /// worked out anew only when the file was read again.
    #[must_use]
    pub fn named_again(&self, name: &Name, remembered: &Remembered) -> Arc<Caller> {
        let directory = self.now();
        let mut last = remembered.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, caller)) = &*last
            && Arc::ptr_eq(of, &directory)
        {
            return Arc::clone(caller);
        }
        let caller = Arc::new(directory.named(name));
        *last = Some((directory, Arc::clone(&caller)));
        caller
    }

    /// Who the bearer of `token` is.
    /// # Errors
    /// [`Denied::BadToken`]: no token, not known, or over.
    pub fn bearer(&self, token: &str) -> Result<Caller, Denied> {
        let token = Token::parse(token).map_err(|_| Denied::BadToken)?;
        self.hashed(token.id(), &token.hash())
    }

    /// As [`Self::bearer`], by what is kept of a token while its stream is open.
    /// # Errors
    /// [`Denied::BadToken`].
    pub fn hashed(&self, id: &str, hash: &TokenHash) -> Result<Caller, Denied> {
        let directory = self.now();
        // One comparison either way, so that time does not tell which ids exist.
        let nobody = TokenHash::parse(&"0".repeat(64)).expect("64 digits");
        let entry = directory.tokens.get(id);
        let same = entry.map_or(&nobody, |(kept, _)| kept).matches(hash);
        match entry {
            Some((_, caller)) if same && caller.expires_at_ms.is_none_or(|end| now_ms() < end) => {
                Ok(caller.clone())
            }
            _ => Err(Denied::BadToken),
        }
    }

    /// How many tokens there are.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.now().tokens.len()
    }
}

impl Directory {
    fn named(&self, name: &Name) -> Caller {
        let short = name.subject.short();
        let grant = self.callers.get(&short);
        let (roles, serves): (Vec<Role>, _) = match &name.subject {
            Subject::Node(_) => (vec![Role::Node], None),
            Subject::Service(service) => (vec![Role::Participant], Some(service.clone())),
            Subject::User { roles, .. } => (roles.iter().copied().collect(), None),
        };
        let roles = grant.and_then(|grant| grant.roles.clone()).unwrap_or(roles);
        let tenant = grant.and_then(|grant| grant.tenant.clone()).unwrap_or_else(|| short.clone());
        Caller {
            name: short,
            roles: roles.into_iter().collect(),
            tenant: Some(tenant),
            participants: grant.map(|grant| grant.participants.clone()).unwrap_or_default(),
            serves,
            expires_at_ms: None,
        }
    }
}

/// The wall clock, ms since epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn read(path: &Path) -> Result<Directory, Vec<String>> {
    use std::io::Read as _;
    let mut text = String::new();
    let file =
        std::fs::File::open(path).map_err(|error| vec![format!("cannot be read: {error}")])?;
    let bytes = file
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| vec![format!("cannot be read: {error}")])?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(vec![format!("is larger than {FILE_BYTES_MAX} bytes")]);
    }
    parse(&text)
}

/// Checks a text as an access file.
fn parse(text: &str) -> Result<Directory, Vec<String>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        // The message alone: the whole error shows the line, and a line may hold a hash.
        vec![format!("line {line}: {}", error.message())]
    })?;
    let mut findings = Findings { text, mistakes: Vec::new() };
    for (what, count) in [("callers", file.caller.len()), ("tokens", file.token.len())] {
        if count > ENTRIES_MAX {
            findings.mistakes.push(format!("{count} {what}; at most {ENTRIES_MAX} are allowed"));
        }
    }
    let mut directory = Directory::default();
    for entry in &file.caller {
        findings.caller(entry, &mut directory);
    }
    for entry in &file.token {
        findings.token(entry, &mut directory);
    }
    match findings.mistakes {
        mistakes if mistakes.is_empty() => Ok(directory),
        mut mistakes => {
            mistakes.truncate(MISTAKES_MAX);
            Err(mistakes)
        }
    }
}

struct Findings<'a> {
    text: &'a str,
    mistakes: Vec<String>,
}

impl Findings<'_> {
    fn add<T>(&mut self, at: &Spanned<T>, what: &str) {
        let line = line_of(self.text, at.span().start);
        self.mistakes.push(format!("line {line}: {what}"));
    }

    fn caller(&mut self, entry: &CallerEntry, directory: &mut Directory) {
        let name = entry.name.get_ref();
        if !is_short_name(name) {
            self.add(
                &entry.name,
                "name: write user/NAME or service/NAME, as the certificate says after the cluster",
            );
        }
        let roles = entry.roles.as_ref().map(|roles| self.roles(roles));
        let grant = Grant {
            roles,
            tenant: self.tenant(entry.tenant.as_ref()),
            participants: self.participants(&entry.participants),
        };
        if directory.callers.insert(name.clone(), grant).is_some() {
            self.add(&entry.name, "name: there is an entry for it already");
        }
    }

    fn token(&mut self, entry: &TokenEntry, directory: &mut Directory) {
        let name = entry.name.get_ref();
        if !is_word(name) {
            self.add(&entry.name, "name: give 1 to 64 characters of a-z, 0-9, '.' and '-'");
        }
        let id = entry.id.get_ref();
        if !is_id(id) {
            self.add(&entry.id, "id: give the 8 characters behind hft_");
        }
        let hash = TokenHash::parse(entry.sha256.get_ref());
        if hash.is_none() {
            self.add(&entry.sha256, "sha256: give 64 hexadecimal digits in lower case");
        }
        let expires = OffsetDateTime::parse(entry.expires_at.get_ref(), &Rfc3339).ok();
        let expires = expires.and_then(|at| u64::try_from(at.unix_timestamp()).ok());
        if expires.is_none() {
            self.add(&entry.expires_at, "expires_at: write it as \"2027-01-01T00:00:00Z\"");
        }
        let roles = self.roles(&entry.roles);
        if roles.is_empty() || roles.contains(&Role::Participant) {
            self.add(
                &entry.name,
                "roles: a token needs one of app, dba, sre, auditor; an agent needs a certificate",
            );
        }
        let short = format!("token/{name}");
        let caller = Caller {
            roles: roles.into_iter().collect(),
            tenant: Some(self.tenant(entry.tenant.as_ref()).unwrap_or_else(|| short.clone())),
            participants: self.participants(&entry.participants),
            serves: None,
            expires_at_ms: expires.map(|at| at.saturating_mul(1_000)),
            name: short,
        };
        let twice = directory.tokens.values().any(|(_, other)| other.name == caller.name);
        let Some(hash) = hash else { return };
        if directory.tokens.insert(id.clone(), (hash, caller)).is_some() || twice {
            self.add(&entry.name, "name or id: there is an entry for it already");
        }
    }

    fn roles(&mut self, words: &[Spanned<String>]) -> Vec<Role> {
        let mut roles = Vec::new();
        for word in words {
            match Role::parse(word.get_ref()).filter(|role| role.can_be_given()) {
                Some(role) => roles.push(role),
                None => self.add(word, &format!("roles: give some of {}", Role::given_words())),
            }
        }
        roles
    }

    fn tenant(&mut self, tenant: Option<&Spanned<String>>) -> Option<String> {
        let tenant = tenant?;
        if !is_word(tenant.get_ref()) {
            self.add(tenant, "tenant: give 1 to 64 characters of a-z, 0-9, '.' and '-'");
        }
        Some(tenant.get_ref().clone())
    }

    fn participants(&mut self, words: &[Spanned<String>]) -> Participants {
        if let Some(first) = words.first().filter(|_| words.len() > PARTICIPANTS_MAX) {
            self.add(first, &format!("participants: at most {PARTICIPANTS_MAX} are allowed"));
        }
        for word in words {
            let name = word.get_ref();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".@-".contains(c);
            let fits = (1..=WORD_MAX).contains(&name.len()) && name.chars().all(plain);
            if !fits && name != crate::caller::EVERYBODY {
                self.add(word, "participants: give names such as \"deposit\" or \"deposit@shard-1\", or \"*\" for all");
            }
        }
        let words: Vec<String> = words.iter().map(|word| word.get_ref().clone()).collect();
        Participants::of(&words)
    }
}

fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    (1..=WORD_MAX).contains(&text.len()) && text.chars().all(plain)
}

/// A node has no entry: nothing can be taken from it or added to it but its certificate.
fn is_short_name(text: &str) -> bool {
    let at_sign = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".@-".contains(c);
    match text.split_once('/') {
        Some(("user", user)) => is_word(user),
        Some(("service", service)) => {
            (1..=WORD_MAX).contains(&service.len()) && service.chars().all(at_sign)
        }
        _ => false,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::right::{Right, Scope};

    fn opened(text: &str) -> Access {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        std::fs::write(&path, text).unwrap();
        Access::open(&path).unwrap()
    }

    fn with_token(token: &Token, expires_at: &str) -> String {
        format!(
            "[[token]]\nname = \"payroll\"\nid = \"{}\"\nsha256 = \"{}\"\nroles = [\"app\"]\ntenant = \"hr\"\n\
             participants = [\"deposit\"]\nexpires_at = \"{expires_at}\"\n",
            token.id(),
            token.hash()
        )
    }

    #[test]
    fn a_token_is_known_until_its_end_and_another_is_not() {
        let (token, other) = (Token::new().unwrap(), Token::new().unwrap());
        let access = opened(&with_token(&token, "2999-01-01T00:00:00Z"));
        let caller = access.bearer(token.reveal()).unwrap();
        assert_eq!((caller.name.as_str(), caller.tenant.as_deref()), ("token/payroll", Some("hr")));
        assert!(caller.may_call("deposit@shard-1") && !caller.may_call("loyalty"));
        assert_eq!(caller.scope(Right::Transact), Scope::Own);
        assert_eq!(access.bearer(other.reveal()), Err(Denied::BadToken));
        assert_eq!(access.bearer("nothing"), Err(Denied::BadToken));
        let over = opened(&with_token(&token, "2020-01-01T00:00:00Z"));
        assert_eq!(over.bearer(token.reveal()), Err(Denied::BadToken));
        // The same id with another secret.
        let forged = format!("hft_{}_{}", token.id(), "A".repeat(43));
        assert_eq!(access.bearer(&forged), Err(Denied::BadToken));
    }

    #[test]
    fn a_certificate_without_an_entry_has_its_own_tenant_and_no_participants() {
        let name = Name::parse("holdfast://bank/user/alice?role=app").unwrap();
        let caller = Access::empty().named(&name);
        assert_eq!(caller.tenant.as_deref(), Some("user/alice"));
        assert!(!caller.may_call("deposit"));
        let access = opened("[[caller]]\nname = \"user/alice\"\nroles = []\n");
        assert_eq!(
            access.named(&name).scope(Right::Transact),
            Scope::None,
            "an entry takes roles away"
        );
        let service = Name::parse("holdfast://bank/service/deposit").unwrap();
        let service = Access::empty().named(&service);
        assert!(service.may_serve("deposit@shard-1") && !service.may_serve("loyalty"));
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_without_its_text() {
        let text = "[[caller]]\nname = \"node/1\"\nroles = [\"node\"]\n[[token]]\nname = \"A\"\nid = \"x\"\n\
                    sha256 = \"canary\"\nroles = []\nexpires_at = \"soon\"\n";
        let mistakes = parse(text).unwrap_err();
        assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
        assert!(mistakes.iter().all(|one| one.starts_with("line ") && !one.contains("canary")));
        let unknown = parse("[[caller]]\nname = \"user/a\"\nrole = \"sre\"\n").unwrap_err();
        assert!(unknown[0].contains("line 3") && unknown[0].contains("role"), "{unknown:?}");
    }

    #[test]
    fn a_file_with_mistakes_changes_nothing_and_a_sound_one_takes_effect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let token = Token::new().unwrap();
        std::fs::write(&path, with_token(&token, "2999-01-01T00:00:00Z")).unwrap();
        let access = Access::open(&path).unwrap();
        std::fs::write(&path, "[[token]]\n").unwrap();
        assert!(access.reload().is_err());
        assert!(access.bearer(token.reveal()).is_ok());
        std::fs::write(&path, "").unwrap();
        access.reload().unwrap();
        assert_eq!(access.bearer(token.reveal()), Err(Denied::BadToken));
    }

    #[test]
    fn participants_are_taken_at_the_limit_and_refused_one_past_it() {
        let of = |n: usize| {
            let words: Vec<String> = (0..n).map(|n| format!("\"p{n}\"")).collect();
            parse(&format!("[[caller]]\nname = \"user/a\"\nparticipants = [{}]\n", words.join(",")))
        };
        assert!(of(PARTICIPANTS_MAX).is_ok());
        assert!(of(PARTICIPANTS_MAX + 1).is_err());
    }

    #[test]
    fn entries_and_bytes_are_taken_at_their_limits_and_refused_one_past_them() {
        let of = |n: usize| {
            let entries = (0..n).map(|n| format!("[[caller]]\nname = \"user/u{n}\"\n"));
            parse(&entries.collect::<String>())
        };
        assert!(of(ENTRIES_MAX).is_ok());
        let told = of(ENTRIES_MAX + 1).expect_err("one too many").join("\n");
        assert!(told.contains("10001") && told.contains("at most 10000 are allowed"), "{told}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let bytes = usize::try_from(FILE_BYTES_MAX).unwrap();
        std::fs::write(&path, "#".repeat(bytes)).unwrap();
        assert!(read(&path).is_ok());
        std::fs::write(&path, "#".repeat(bytes + 1)).unwrap();
        let told = read(&path).expect_err("one byte too many").join("\n");
        assert!(told.contains("larger than 4194304 bytes"), "{told}");
    }

    proptest! {
        #[test]
        fn no_text_brings_the_reader_down(text in "(\\[\\[(caller|token)\\]\\]\n)?([a-z_]{1,8} ?= ?(\"[^\"]{0,12}\"|\\[\\]|1)\n){0,6}") {
            let _any = parse(&text);
        }
    }

    #[test]
    fn who_asks_again_is_known_by_the_file_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.toml");
        let entry = |participant: &str| {
            let words =
                format!("[[caller]]\nname = \"user/alice\"\nparticipants = [\"{participant}\"]\n");
            std::fs::write(&path, words).unwrap();
        };
        entry("deposit");
        let access = Access::open(&path).unwrap();
        let name = Name::parse("holdfast://bank/user/alice?role=app").unwrap();
        let remembered = Remembered::default();
        let first = access.named_again(&name, &remembered);
        assert!(first.may_call("deposit") && *first == access.named(&name));
        assert!(Arc::ptr_eq(&first, &access.named_again(&name, &remembered)));
        entry("loyalty");
        access.reload().unwrap();
        let second = access.named_again(&name, &remembered);
        assert!(!second.may_call("deposit") && second.may_call("loyalty"));
    }
}
