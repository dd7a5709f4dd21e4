//! Crowds of slow clients, one kind at a time, that come back whenever they are cut off; and what honest ones notice of them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::http::Method;
use futures_util::future::join_all;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::{Connection, Service, is_long, json_request, request};

const KEYS: &str = "/v1/api-keys";
const MB: u64 = 1 << 20;
/// Beside the service's limits, for a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One byte of a head at a time.
    SlowHead,
    Silent,
    /// One byte of a body at a time.
    SlowBody,
    /// Asks for long lists, and reads nothing.
    Deaf,
}

/// How large an attack is, and how long the service bears with one of its clients.
struct Size {
    clients: u32,
    lasts: Duration,
    limit: Duration,
    /// Between two bytes of a client.
    pace: Duration,
    slack: Duration,
}

impl Size {
    /// In the long run, the service has its own limits and the attack the size of the row that it is for.
    fn of(kind: Kind) -> Self {
        if !is_long() {
            let limit = Duration::from_secs(1);
            // Long lists are work, and a machine that does other work as well shall not be kept from its honest clients by that.
            let clients = if kind == Kind::Deaf { 50 } else { 250 };
            return Self { clients, lasts: limit * 3, limit, pace: limit / 4, slack: SLACK };
        }
        let (limit, pace) = match kind {
            Kind::SlowHead => (10, 5),
            Kind::Silent | Kind::SlowBody => (10, 1),
            Kind::Deaf => (30, 1),
        };
        let [limit, pace] = [limit, pace].map(Duration::from_secs);
        // A list may have to wait for its turn before nobody reads it.
        let slack = if kind == Kind::Deaf { SLACK } else { Duration::from_secs(2) };
        Self { clients: 1_000, lasts: Duration::from_secs(60), limit, pace, slack }
    }

    fn service(&self) -> Service {
        let millis = self.limit.as_millis().to_string();
        let limits = ["HEADER", "BODY", "WRITE"].map(|what| format!("MOMAIL_SERVER__{what}_TIMEOUT_MS"));
        let mut settings: Vec<_> = limits.iter().map(|name| (&**name, &*millis)).collect();
        settings.push(("MOMAIL_LOG__FILTER", "off"));
        Service::unlimited(&settings)
    }
}

/// Honest clients, on a thread of their own: nobody but the service makes them wait.
struct Honest {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Honest {
    fn ask(service: &Service) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (until, address, key) = (Arc::clone(&is_over), service.public.clone(), service.first_key());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = Connection::open(&address).await.unwrap();
                let mut answers = Vec::new();
                while !until.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let reply = connection.send(request(Method::GET, "/v1/api-keys/current", &key)).await.unwrap();
                    answers.push(began.elapsed());
                    assert_eq!(reply.status, 200);
                    sleep(Duration::from_millis(2)).await;
                }
                answers
            })
        });
        Self { is_over, thread }
    }

    /// How many answers there were, and what 99 of 100 took at the most.
    fn end(self) -> (usize, Duration) {
        self.is_over.store(true, Ordering::SeqCst);
        let mut answers = self.thread.join().unwrap();
        answers.sort();
        (answers.len(), answers[answers.len() * 99 / 100])
    }
}

/// One client of a crowd: it comes back until the attack is over. How long each of its connections lasted.
async fn come_again(kind: Kind, address: String, key: String, size: &Size, over: Instant) -> Vec<Duration> {
    let mut lasted = Vec::new();
    while Instant::now() < over {
        let mut stream = open(&address).await;
        let opened = Instant::now();
        let _ = stream.write_all(beginning(kind, &key).as_bytes()).await;
        while opened.elapsed() < size.limit + SLACK * 2 && is_open(kind, &mut stream, size.pace).await {
            // A client that may not write without waiting is as slow as it wants to be.
            let _ = if kind == Kind::Silent { Ok(0) } else { stream.try_write(b"a") };
        }
        lasted.push(opened.elapsed());
    }
    lasted
}

/// The smallest segments and buffers there are: as little of an answer as possible leaves the service for the system.
async fn open(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    SockRef::from(&socket).set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

fn beginning(kind: Kind, key: &str) -> String {
    let head = format!("HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\n");
    match kind {
        Kind::SlowHead => format!("GET {KEYS} {head}X-Slow: "),
        Kind::Silent => String::new(),
        Kind::SlowBody => format!("POST {KEYS} {head}Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n"),
        Kind::Deaf => format!("GET {KEYS} {head}\r\n").repeat(3),
    }
}

/// Whether the connection still stands after a pause.
async fn is_open(kind: Kind, stream: &mut TcpStream, pause: Duration) -> bool {
    if kind == Kind::Deaf {
        sleep(pause).await;
        // Only a write tells who does not read, and only the second: the first is what the reset answers.
        return SockRef::from(&*stream).take_error().unwrap().is_none() && stream.try_write(b"\r\n").is_ok_or_full();
    }
    let mut rest = [0; 1024];
    let ended = async { while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    timeout(pause, ended).await.is_err()
}

trait Written {
    fn is_ok_or_full(&self) -> bool;
}

impl Written for std::io::Result<usize> {
    fn is_ok_or_full(&self) -> bool {
        self.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::WouldBlock, |_| true)
    }
}

/// Sockets: SQLite may meanwhile have opened its file once more.
fn descriptors(service: &Service) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().flatten();
    let is_socket = |to: std::path::PathBuf| to.to_string_lossy().starts_with("socket:");
    open.filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(is_socket)).count()
}

/// The most memory there was until the flag is set.
async fn most_memory(service: &Service, is_over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !is_over.load(Ordering::SeqCst) {
        most = most.max(service.resident_memory());
        sleep(Duration::from_millis(50)).await;
    }
    most
}

async fn withstand(kind: Kind) {
    let size = Size::of(kind);
    let service = size.service();
    let key = service.first_key();
    let mut owner = Connection::open(&service.public).await.unwrap();
    for _ in 0..60 {
        let body = json!({ "name": "n".repeat(100) }).to_string();
        assert_eq!(owner.send(json_request(Method::POST, KEYS, &key, body)).await.unwrap().status, 201);
    }
    // The database's connections are opened when they are first needed, and stay.
    join_all((0..50).map(async |_| assert_eq!(service.get(KEYS, &key).await.status, 200))).await;
    drop(owner);

    let honest = Honest::ask(&service);
    sleep(size.lasts / 3).await;
    let (_, baseline) = honest.end();
    sleep(Duration::from_millis(200)).await;
    let (memory, open_before) = (service.resident_memory(), descriptors(&service));

    let honest = Honest::ask(&service);
    let (over, is_over) = (Instant::now() + size.lasts, AtomicBool::new(false));
    let crowd = (0..size.clients).map(async |n| {
        // Not all at the same instant, neither now nor when they come again.
        sleep(size.limit * n / size.clients).await;
        come_again(kind, service.public.clone(), key.clone(), &size, over).await
    });
    let crowd = async {
        let lasted = join_all(crowd).await;
        is_over.store(true, Ordering::SeqCst);
        lasted.concat()
    };
    let (lasted, most) = tokio::join!(crowd, most_memory(&service, &is_over));
    let (served, slowest) = honest.end();

    let grown = most.saturating_sub(memory);
    let (shortest, longest) = (lasted.iter().min().unwrap(), lasted.iter().max().unwrap());
    let figures = format!(
        "{kind:?}: {} connections of {} clients lasted {shortest:?} to {longest:?}; of {served} honest answers 99 in 100 took \
         {slowest:?} at the most, and {baseline:?} before; memory grew by {} KB",
        lasted.len(),
        size.clients,
        grown / 1024,
    );
    eprintln!("{figures}");
    assert!(*shortest >= size.limit.mul_f64(0.5) && *longest < size.limit + size.slack, "{figures}");
    // For each who reads nothing there is a whole answer to keep, and to make: work that is a key's limits' to bound.
    let is_work = kind == Kind::Deaf;
    assert!(grown < if is_work { 150 * MB } else { 50 * MB }, "{figures}");
    let most_patient = if is_long() && !is_work { baseline * 2 } else { Duration::from_secs(5) };
    assert!(served > 20 && slowest < most_patient, "{figures}");
    let deadline = Instant::now() + SLACK;
    while descriptors(&service) > open_before {
        assert!(Instant::now() < deadline, "{} descriptors are open, and {open_before} were", descriptors(&service));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_whose_heads_never_end_is_cut_off_and_nobody_else_notices() {
    withstand(Kind::SlowHead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_says_nothing_is_cut_off_and_nobody_else_notices() {
    withstand(Kind::Silent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_whose_bodies_never_end_is_cut_off_and_nobody_else_notices() {
    withstand(Kind::SlowBody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_reads_no_answers_is_cut_off_and_nobody_else_notices() {
    withstand(Kind::Deaf).await;
}
