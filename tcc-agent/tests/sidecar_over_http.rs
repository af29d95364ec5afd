//! The sidecar against a real HTTP server on a real socket: what is sent, and which verdict each answer gets.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap is an assertion")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use holdfast_tcc_agent::{Answer, Call, Gid, Headers, Op, Sidecar, SidecarConfig, ask};

/// A request as it came over the wire.
#[derive(Clone, Debug, Default)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
            .collect()
    }
}

/// A server with an answer for each path; `None`: it never answers.
struct Service {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<Mutex<usize>>,
}

impl Service {
    fn answering(response: Option<Vec<u8>>) -> Self {
        Self::by_line(move |_| response.clone())
    }

    /// Answers `/inquire` with one status, and everything else with another.
    fn inquired(inquiry: &'static str, otherwise: &'static str) -> Self {
        Self::by_line(move |line| {
            let status = if line.contains("/inquire ") { inquiry } else { otherwise };
            Some(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes())
        })
    }

    fn by_line(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let service =
            Self { address, seen: Arc::clone(&seen), connections: Arc::clone(&connections) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                *connections.lock().unwrap() += 1;
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some(request) = read(&mut reader) {
                        let response = answer(&request.line);
                        seen.lock().unwrap().push(request);
                        let Some(response) = &response else {
                            // Until the other side gives up.
                            let _end = reader.read(&mut [0]);
                            return;
                        };
                        if (&stream).write_all(response).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        service
    }

    fn status(status: &str, body: &str) -> Self {
        let response = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        Self::answering(Some(response.into_bytes()))
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut seen = Seen::default();
    reader.read_line(&mut seen.line).ok().filter(|&read| read > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ")?;
        seen.headers.push((name.to_owned(), value.to_owned()));
    }
    let length: usize = seen.header("content-length").first()?.parse().ok()?;
    seen.body.resize(length, 0);
    reader.read_exact(&mut seen.body).ok()?;
    Some(seen)
}

fn sidecar(app: &str, call_timeout_ms: u64) -> Sidecar {
    sidecar_that(app, call_timeout_ms, false)
}

fn sidecar_that(app: &str, call_timeout_ms: u64, inquires: bool) -> Sidecar {
    let app = app.to_owned();
    Sidecar::new(&SidecarConfig { app, call_timeout_ms, concurrency: 4, inquires }).unwrap()
}

fn call(op: Op) -> Call {
    Call {
        gid: Gid::parse("g-1").unwrap(),
        branch: 7,
        op,
        payload: Bytes::from_static(b"{\"points\": 3}"),
        deadline_ms: 0,
        headers: Default::default(),
        attempt: 2,
        repeat: false,
        refusal_waits: false,
    }
}

fn unknown(answer: &Answer) -> bool {
    matches!(answer, Answer::Unknown { .. })
}

#[tokio::test]
async fn the_status_alone_is_the_verdict() {
    let refused =
        |code: &str, message: &str| Answer::Refused { code: code.into(), message: message.into() };
    let known = [
        ("200 OK", "", Answer::Done),
        ("201 Created", "{\"code\": \"failed\"}", Answer::Done),
        ("204 No Content", "", Answer::Done),
        ("425 Too Early", "done", Answer::Working),
        (
            "409 Conflict",
            "{\"code\": \"AM04\", \"message\": \"too little\"}",
            refused("AM04", "too little"),
        ),
        ("409 Conflict", "", refused("refused", "")),
        ("409 Conflict", "<html>", refused("refused", "")),
        ("409 Conflict", "{\"code\": 4}", refused("refused", "")),
    ];
    for (status, body, answer) in known {
        let service = Service::status(status, body);
        assert_eq!(
            ask(&sidecar(&service.address, 5_000), call(Op::Try)).await,
            answer,
            "{status} {body}"
        );
        assert_eq!(service.seen.lock().unwrap().len(), 1, "{status}");
    }
    for status in [
        "302 Found\r\nlocation: /done",
        "400 Bad Request",
        "404 Not Found",
        "408 Timeout",
        "429 Slow",
        "500 Oh",
        "503 Away",
    ] {
        let service = Service::status(status, "done");
        let answer = ask(&sidecar(&service.address, 5_000), call(Op::Try)).await;
        assert!(unknown(&answer), "{status}: {answer:?}");
        // Neither followed nor asked again.
        assert_eq!(service.seen.lock().unwrap().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_unknown() {
    for response in [
        &b"HTTP/1.1 "[..],
        b"SMTP hello\r\n\r\n",
        b"\x00\xff\x16\x03",
        b"HTTP/1.1 999999 OK\r\n\r\n",
    ] {
        // Garbage, and then silence: the sidecar gives up at the first byte that is wrong, or at its time-out.
        let service = Service::answering(Some(response.to_vec()));
        let answer = ask(&sidecar(&service.address, 300), call(Op::Confirm)).await;
        assert!(unknown(&answer), "{response:?}: {answer:?}");
    }
    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let answer = ask(&sidecar(&nobody, 5_000), call(Op::Try)).await;
    assert!(
        matches!(&answer, Answer::Unknown { message } if message.contains("cannot be reached")),
        "{answer:?}"
    );
    // A refusal with a body beyond all bounds stays a refusal; the body is not read to its end.
    let endless = format!(
        "HTTP/1.1 409 Conflict\r\ncontent-length: 99999999999\r\n\r\n{}",
        "x".repeat(1 << 17)
    );
    let service = Service::answering(Some(endless.into_bytes()));
    let answer = ask(&sidecar(&service.address, 2_000), call(Op::Try)).await;
    assert_eq!(answer, Answer::Refused { code: "refused".into(), message: String::new() });
    // Words longer than their bounds are cut.
    let long =
        format!("{{\"code\": \"{}\", \"message\": \"{}\"}}", "c".repeat(100), "m".repeat(2_000));
    let service = Service::status("409 Conflict", &long);
    let answer = ask(&sidecar(&service.address, 5_000), call(Op::Try)).await;
    assert_eq!(answer, Answer::Refused { code: "c".repeat(64), message: "m".repeat(1_024) });
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_unknown_in_time() {
    let service = Service::answering(None);
    let begun = Instant::now();
    assert!(unknown(&ask(&sidecar(&service.address, 200), call(Op::Confirm)).await));
    assert!(begun.elapsed() >= Duration::from_millis(200));

    // A try has no more time than its transaction; a deadline that is over changes nothing.
    let in_ms = |ms: i64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        (now + ms) as u64
    };
    let sidecar = sidecar(&service.address, 20_000);
    let begun = Instant::now();
    assert!(unknown(&ask(&sidecar, Call { deadline_ms: in_ms(300), ..call(Op::Try) }).await));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // Another limit counts from the next call on.
    sidecar.call_timeout_setter()(300);
    assert!(unknown(&ask(&sidecar, call(Op::Confirm)).await));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let over = Service::status("200 OK", "");
    let sidecar = self::sidecar(&over.address, 5_000);
    let answer = ask(&sidecar, Call { deadline_ms: in_ms(-1_000), ..call(Op::Try) }).await;
    assert_eq!(answer, Answer::Done);
    assert_eq!(over.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_words_of_a_refusal_are_read_up_to_their_limit_and_left_out_one_byte_past_it() {
    let words = r#"{"code": "AM04", "message": "too little"}"#;
    for (bytes, code) in [(64 << 10, "AM04"), ((64 << 10) + 1, "refused")] {
        let body = format!("{words}{}", " ".repeat(bytes - words.len()));
        let service = Service::status("409 Conflict", &body);
        let answer = ask(&sidecar(&service.address, 20_000), call(Op::Try)).await;
        assert!(
            matches!(&answer, Answer::Refused { code: told, .. } if told == code),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn what_may_have_come_before_is_inquired_of_and_carried_out_only_if_it_never_came() {
    let lines = |service: &Service| -> Vec<String> {
        let seen = service.seen.lock().unwrap();
        let path = |seen: &Seen| seen.line.split(' ').nth(1).unwrap_or_default().to_owned();
        seen.iter().map(path).collect()
    };
    let refused = Answer::Refused { code: "refused".into(), message: String::new() };
    for (inquiry, answer, paths) in [
        ("200 OK", Some(Answer::Done), vec!["/inquire"]),
        ("409 Conflict", Some(refused), vec!["/inquire"]),
        ("425 Too Early", Some(Answer::Working), vec!["/inquire"]),
        ("412 Precondition Failed", Some(Answer::Done), vec!["/inquire", "/action"]),
        // A service without the door: carrying it out on that word could do it twice.
        ("404 Not Found", None, vec!["/inquire"]),
        ("500 Internal Server Error", None, vec!["/inquire"]),
    ] {
        let service = Service::inquired(inquiry, "200 OK");
        let sidecar = sidecar_that(&service.address, 5_000, true);
        let asked = ask(&sidecar, Call { repeat: true, ..call(Op::Action) }).await;
        match answer {
            Some(answer) => assert_eq!(asked, answer, "{inquiry}"),
            None => assert!(unknown(&asked), "{inquiry}: {asked:?}"),
        }
        assert_eq!(lines(&service), paths, "{inquiry}");
        let seen = service.seen.lock().unwrap().clone();
        for seen in seen {
            assert_eq!(seen.header("holdfast-op"), ["action"]);
            assert_eq!(seen.header("holdfast-repeat"), ["possible"]);
            assert_eq!(seen.body, b"{\"points\": 3}");
        }
    }

    // A first call needs no inquiry, nor does TCC, nor a service that was not said to be inquired of; 412 to a call is no verdict.
    let service = Service::inquired("200 OK", "412 Precondition Failed");
    let sidecar = sidecar_that(&service.address, 5_000, true);
    assert!(unknown(&ask(&sidecar, call(Op::Action)).await));
    assert!(unknown(&ask(&sidecar, Call { repeat: true, ..call(Op::Try) }).await));
    assert_eq!(ask(&sidecar, Call { repeat: true, ..call(Op::Compensate) }).await, Answer::Done);
    let sidecar = sidecar_that(&service.address, 5_000, false);
    assert!(unknown(&ask(&sidecar, Call { repeat: true, ..call(Op::Action) }).await));
    assert_eq!(lines(&service), ["/action", "/try", "/inquire", "/action"]);
}

#[tokio::test]
async fn an_inquiry_and_its_call_take_no_longer_than_one_call_may() {
    let service = Service::by_line(|line| {
        let never_came = b"HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n";
        line.contains("/inquire ").then(|| never_came.to_vec())
    });
    let sidecar = sidecar_that(&service.address, 300, true);
    let begun = Instant::now();
    let call = Call { repeat: true, refusal_waits: true, ..call(Op::Action) };
    assert!(unknown(&ask(&sidecar, call).await));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let seen = service.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|seen| seen.header("holdfast-refusal") == ["waits"]), "{seen:?}");
}

#[tokio::test]
async fn the_service_is_told_what_it_needs_and_nobody_forges_it() {
    let service = Service::status("200 OK", "");
    let sidecar = sidecar(&format!("{}/points/", service.address), 5_000);
    let headers = [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("Holdfast-Gid", "forged"),
        ("HOLDFAST-anything", "forged"),
        ("host", "forged"),
        ("Content-Length", "0"),
        ("transfer-encoding", "chunked"),
        ("x-split", "a\r\nholdfast-gid: forged"),
        ("x-split\r\nholdfast-gid", "forged"),
        ("x-nul", "a\0b"),
        ("bank", "a"),
    ];
    let headers: Headers = headers.into_iter().collect();
    for op in Op::ALL {
        let call = Call { headers: headers.clone(), deadline_ms: 1_234, ..call(op) };
        assert_eq!(ask(&sidecar, call).await, Answer::Done);
    }
    let seen = service.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 5);
    for (seen, op) in seen.iter().zip(Op::ALL) {
        assert_eq!(seen.line, format!("POST /points/{op} HTTP/1.1\r\n"));
        assert_eq!(seen.body, b"{\"points\": 3}");
        for (name, value) in [
            ("holdfast-gid", "g-1"),
            ("holdfast-branch", "7"),
            ("holdfast-op", op.as_str()),
            ("holdfast-attempt", "2"),
            ("holdfast-deadline-ms", "1234"),
            ("content-type", "application/json"),
            ("content-length", "13"),
            ("bank", "a"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(seen.header(name), [value], "{name}");
        }
        assert_eq!(seen.header("host"), [service.address.trim_start_matches("http://")]);
        let strangers = ["holdfast-anything", "transfer-encoding", "x-split", "x-nul"];
        assert!(strangers.iter().all(|name| seen.header(name).is_empty()), "{seen:?}");
    }
    // One after the other, they went over one connection.
    assert_eq!(*service.connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn no_more_calls_at_once_than_allowed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (arrived, arrivals) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            arrived.send(stream.unwrap()).unwrap();
        }
    });
    let sidecar = Arc::new(sidecar(&address, 30_000));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let sidecar = Arc::clone(&sidecar);
        asking.spawn(async move { ask(&*sidecar, call(Op::Try)).await });
    }
    let serving = tokio::task::spawn_blocking(move || {
        let mut served = 0;
        while served < 12 {
            // Four come; a fifth does not come while none of them is answered.
            let four: Vec<TcpStream> =
                (0..4).map(|_| arrivals.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
            assert!(arrivals.recv_timeout(Duration::from_millis(100)).is_err(), "a fifth call");
            for stream in four {
                assert!(read(&mut BufReader::new(stream.try_clone().unwrap())).is_some());
                (&stream)
                    .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                    .unwrap();
                served += 1;
            }
        }
    });
    serving.await.unwrap();
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap(), Answer::Done);
    }
}

#[test]
fn a_wrong_configuration_is_told_at_once() {
    for app in ["", "127.0.0.1:8080", "https://h:1", "http://u:p@h:1", "http://h:1/?q=1", "ftp://h"]
    {
        let config = SidecarConfig {
            app: app.to_owned(),
            call_timeout_ms: 0,
            concurrency: 0,
            inquires: false,
        };
        let error = Sidecar::new(&config).unwrap_err().to_string();
        assert!(
            error.contains("app:")
                && error.contains("call_timeout_ms")
                && error.contains("concurrency"),
            "{error}"
        );
        assert!(!error.contains("u:p"), "{error}");
    }
}

/// The example, killed when the test ends.
struct Example(std::process::Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[tokio::test]
async fn the_example_in_python_is_a_participant() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/participant.py");
    let mut command = std::process::Command::new("python3");
    command.args([script, &port.to_string()]).stderr(std::process::Stdio::null());
    let _example = Example(command.spawn().unwrap());
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the example does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sidecar = sidecar(&format!("http://127.0.0.1:{port}"), 5_000);
    let points = async |gid: &str, op: Op, points: i32| {
        let payload = Bytes::from(format!("{{\"customer\": \"alice\", \"points\": {points}}}"));
        ask(&sidecar, Call { gid: Gid::parse(gid).unwrap(), payload, ..call(op) }).await
    };
    let refused = |answer: &Answer| matches!(answer, Answer::Refused { .. });
    // 500 points: 300 are held and confirmed, twice each; then 300 are too many, 200 are not.
    for op in [Op::Try, Op::Try, Op::Confirm, Op::Confirm] {
        assert_eq!(points("a", op, 300).await, Answer::Done, "{op}");
    }
    assert!(unknown(&points("a", Op::Cancel, 300).await));
    assert!(refused(&points("b", Op::Try, 300).await));
    assert_eq!(points("b", Op::Cancel, 300).await, Answer::Done);
    assert!(refused(&points("b", Op::Try, 1).await));
    // A cancel gives back once; a cancel that overtakes its try blocks it.
    for op in [Op::Try, Op::Cancel, Op::Cancel] {
        assert_eq!(points("c", op, 200).await, Answer::Done, "{op}");
    }
    assert!(unknown(&points("c", Op::Confirm, 200).await));
    assert_eq!(points("d", Op::Cancel, 200).await, Answer::Done);
    assert!(refused(&points("d", Op::Try, 200).await));
    assert!(unknown(&points("e", Op::Confirm, 200).await));
    assert!(unknown(&points("e", Op::Action, 200).await));
    assert_eq!(points("f", Op::Try, 200).await, Answer::Done);
    assert!(refused(&points("g", Op::Try, 1).await));
}
