//! A cluster with mutual TLS at its doors, and whoever comes to them, for tests of what is let in.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::time::Duration;

use holdfast_client::{Client, ClientError, ClientOptions, Submission};
use holdfast_coordinator::config::Security;
use holdfast_proto::v1::{self, participants_client::ParticipantsClient};
use holdfast_security::{Access, Authority, ClientAuth, Credentials, Files, Name, dial};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::doors::{self, Cluster, Heard};

pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const ENTRIES: &str = "\
[[caller]]
name = \"user/alice\"
tenant = \"retail\"
participants = [\"deposit\"]

[[caller]]
name = \"user/bob\"
tenant = \"treasury\"
participants = [\"loyalty\"]
";

/// A cluster with mutual TLS, and the authority of all its certificates.
pub(crate) struct House {
    pub(crate) cluster: Cluster,
    pub(crate) authority: Authority,
    /// The directories of callers of the nodes.
    access: Vec<Access>,
    pub(crate) dir: TempDir,
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(&format!("holdfast://{text}")).expect(text)
}

impl House {
    pub(crate) async fn of(size: u64) -> Self {
        let dir = TempDir::new().expect("a directory");
        let authority = Authority::in_dir(&dir.path().join("certs")).expect("an authority");
        let file = dir.path().join("access.toml");
        std::fs::write(&file, ENTRIES).expect("it is written");
        let mut nodes = Vec::new();
        let mut access = Vec::new();
        for node in 1..=size {
            let own = name(&format!("doors/node/{node}"));
            nodes.push(authority.credentials(&own).expect("a certificate"));
            access.push(Access::open(&file).expect("it is sound"));
        }
        let guarded = access.clone();
        let cluster = Cluster::with(size, move |config| {
            let at = usize::try_from(config.node.id - 1).expect("a small number");
            config.security = Security::MutualTls {
                credentials: nodes[at].clone(),
                access: guarded[at].clone(),
                callers: ClientAuth::Optional,
            };
        })
        .await;
        Self { cluster, authority, access, dir }
    }

    /// The credentials of `who`, made when they are first asked for.
    pub(crate) fn credentials(&self, who: &str) -> Credentials {
        let name = name(&format!("doors/{who}"));
        let files = self.authority.files_of(&name);
        let there = files.identity.as_ref().is_some_and(|(cert, _)| cert.exists());
        let files = if there { files } else { self.authority.issue(&name, 7).expect("it signs") };
        Credentials::open(files).expect("they are sound")
    }

    /// Without a certificate.
    pub(crate) fn nobody(&self) -> Credentials {
        let ca = self.dir.path().join("certs/ca.pem");
        Credentials::open(Files { ca, identity: None }).expect("an authority")
    }

    pub(crate) fn options(&self, who: &str) -> ClientOptions {
        let credentials = Some(self.credentials(who));
        ClientOptions { credentials, patience_ms: 30_000, ..ClientOptions::default() }
    }

    pub(crate) async fn client(&self, who: &str) -> Client {
        Client::connect(self.cluster.addresses(), self.options(who)).await.expect("it is let in")
    }

    pub(crate) async fn channel(&self, address: &str, credentials: &Credentials) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        dial(&endpoint, Some(credentials)).await.expect("it is let in")
    }

    /// Writes the access file anew and has every node read it.
    pub(crate) fn rewrite(&self, text: &str) {
        std::fs::write(self.dir.path().join("access.toml"), text).expect("it is written");
        self.access.iter().for_each(|access| access.reload().expect("it is sound"));
    }

    /// An agent of `service` at every node, with the certificate of `who`; it does whatever it is asked.
    pub(crate) async fn serve(&self, who: &str, service: &str) {
        self.serve_answering(who, service, doors::done).await;
    }

    /// As [`Self::serve`], with answers of its own.
    pub(crate) async fn serve_answering(&self, who: &str, service: &str, answer: Answering) {
        for node in &self.cluster.nodes {
            let channel = self.channel(&node.grpc, &self.credentials(who)).await;
            session(channel, service, answer).await.expect("it is welcomed");
        }
    }

    pub(crate) async fn http(
        &self,
        credentials: &Credentials,
        method: &str,
        path: &str,
        header: &str,
    ) -> Heard {
        let at = self.cluster.nodes[0].http.to_string();
        let mut stream =
            credentials.connector(None).open(&at, b"http/1.1").await.expect("it is let in");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n{header}content-length: 0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("it is open");
        // A stream of events does not end: its head and what came soon is enough.
        let mut heard = Vec::new();
        let _goes_on = timeout(Duration::from_secs(5), stream.read_to_end(&mut heard)).await;
        let text = String::from_utf8(heard).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        Heard { status, head: head.to_owned(), body: body.to_owned() }
    }
}

/// What an agent says to a call.
pub(crate) type Answering = fn(&v1::Call) -> Option<v1::Answer>;

/// Opens a session and answers every call, until the node ends it.
pub(crate) async fn session(
    channel: Channel,
    service: &str,
    answer: Answering,
) -> Result<(), Status> {
    let (sender, outward) = mpsc::channel(64);
    let say = |message| v1::AgentMessage { message: Some(message) };
    let hello = v1::Hello {
        service: service.to_owned(),
        instance: "one".to_owned(),
        credit: 64,
        ..v1::Hello::default()
    };
    let hello = say(v1::agent_message::Message::Hello(hello));
    sender.send(hello).await.expect("it is open");
    let mut client = ParticipantsClient::new(channel);
    let mut inward = client.session(ReceiverStream::new(outward)).await?.into_inner();
    timeout(SOON, inward.message()).await.expect("in time")?.expect("a welcome");
    tokio::spawn(async move {
        let mut beats = tokio::time::interval(Duration::from_secs(1));
        loop {
            let heard = tokio::select! {
                heard = inward.message() => heard,
                _ = beats.tick() => {
                    let beat = v1::agent_message::Message::Beat(v1::Beat {});
                    if sender.send(say(beat)).await.is_err() { return; }
                    continue;
                }
            };
            let Ok(Some(message)) = heard else { return };
            if let Some(v1::coordinator_message::Message::Calls(calls)) = message.message {
                let calls = v1::Calls::read(calls).expect("calls");
                let answers = calls.iter().filter_map(answer).collect();
                let answers = v1::agent_message::Message::Answers(v1::Answers { answers });
                if sender.send(say(answers)).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(())
}

pub(crate) fn transfer(gid: &str, participant: &str) -> Submission {
    Submission::tcc().gid(gid).branch(participant, "{}")
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    }
}
