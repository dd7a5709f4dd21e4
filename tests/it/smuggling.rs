//! One request hidden behind another whose end is in doubt, sent straight to the service and through nginx and HAProxy: what runs
//! is told by the keys that exist afterwards, and front and back must have seen the same requests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::http::Method;
use tokio::time::sleep;

use crate::smuggling_cases::{BODY, CHUNKS, Case, ENCODINGS, LENGTHS, LINES, POST};
use crate::support::{Balancer, Connection, Nginx, RawConnection, Service, request};

const KEYS: &str = "/v1/api-keys";
/// How long a front waits for the rest of a request.
const FRONT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the service does.
const IMPATIENT: [(&str, &str); 3] = [
    ("MOMAIL_SERVER__HEADER_TIMEOUT_MS", "2000"),
    ("MOMAIL_SERVER__BODY_TIMEOUT_MS", "2000"),
    ("MOMAIL_SERVER__KEEP_ALIVE_MS", "2000"),
];
const PATIENCE: Duration = Duration::from_secs(20);

/// What stands between the client and the service.
enum Front {
    Nothing,
    Nginx(Nginx),
    Haproxy(Balancer),
}

impl Front {
    fn address<'a>(&'a self, service: &'a Service) -> &'a str {
        match self {
            Self::Nothing => &service.public,
            Self::Nginx(nginx) => &nginx.public,
            Self::Haproxy(balancer) => &balancer.address,
        }
    }

    /// A line for each request: which server it was passed on to, what that one answered, and the request's id.
    fn log(&self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Nginx(nginx) => nginx.access_log(),
            Self::Haproxy(balancer) => balancer.log(),
        }
    }

    /// How many requests it has passed on, and how many of these it has seen succeed.
    fn passed_on(&self) -> (usize, usize) {
        let log = self.log();
        let passed_on = log.lines().filter(|line| line.contains("upstream=127.") || line.contains("upstream=keys-"));
        let succeeded = passed_on.clone().filter(|line| line.contains(" status=20"));
        (passed_on.count(), succeeded.count())
    }
}

/// What the front and the service have counted.
#[derive(Clone, Copy, Debug)]
struct Counts {
    passed_on: usize,
    seen_to_succeed: usize,
    answered: usize,
    succeeded: usize,
}

struct Site {
    service: Service,
    front: Front,
    key: String,
}

impl Site {
    fn start() -> Self {
        let service = Service::unlimited(&IMPATIENT);
        let key = service.first_key();
        Self { service, front: Front::Nothing, key }
    }

    /// A request that makes a key of this name, up to the headers that say how long its body is.
    fn start_of(&self, line: &str) -> String {
        format!("{line}\r\nHost: keys.test\r\nX-API-Key: {}\r\nContent-Type: application/json\r\n", self.key)
    }

    fn bytes(&self, case: &Case, first: &str, second: &str) -> String {
        let body = BODY.replace("{name}", first);
        let second = BODY.replace("{name}", second);
        let framing = format!("Connection: close\r\nContent-Length: {}\r\n\r\n{second}", second.len());
        let second = self.start_of(POST) + &framing;
        let filled = |text: &str| {
            let whole = text.replace(BODY, &body).replace("{body}", &body).replace("{second}", &second);
            let whole =
                whole.replace("{chunk}", &format!("{:x}", body.len())).replace("{length}", &body.len().to_string());
            whole.replace("{second chunk}", &format!("{:x}", second.len()))
        };
        let sent = filled(case.body);
        let framing = filled(case.framing).replace("{all}", &sent.len().to_string());
        let behind = if case.body.contains("{second}") { "" } else { &*second };
        format!("{}{framing}\r\n\r\n{sent}{behind}", self.start_of(case.line))
    }

    /// Names of the keys there are.
    async fn made(&self) -> BTreeSet<String> {
        let list = self.service.get(KEYS, &self.key).await;
        list.body["data"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn counts(&self) -> Counts {
        let text = String::from_utf8(self.service.get_internal("/metrics").await.bytes).unwrap();
        let requests = text.lines().filter(|line| line.starts_with("http_requests_total{"));
        // What the test itself asks the service is not meant.
        let is_own = |line: &str| {
            let is_list = line.contains("method=\"GET\"") && line.contains("route=\"/v1/api-keys\"");
            is_list || line.contains("route=\"/metrics\"") || line.contains("route=\"/readyz\"")
        };
        let of_others: Vec<_> = requests.filter(|line| !is_own(line)).collect();
        let count = |status: &str| {
            let matching = of_others.iter().filter(|line| line.contains(status));
            matching.map(|line| line.rsplit_once(' ').unwrap().1.parse::<usize>().unwrap()).sum()
        };
        let (passed_on, seen_to_succeed) = self.front.passed_on();
        Counts { passed_on, seen_to_succeed, answered: count(""), succeeded: count("status=\"20") }
    }

    /// Sends one case, and holds what came of it against what its client was told.
    async fn try_case(&self, n: usize, case: &Case) -> Result<(), String> {
        let before = self.counts().await;
        let [first, second] = [format!("first-{n}"), format!("second-{n}")];
        let bytes = self.bytes(case, &first, &second);
        let answers = RawConnection::send(self.front.address(&self.service), bytes).await.answers().await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).filter(|status| *status != 100).collect();
        let created = statuses.iter().filter(|status| **status == 201).count();

        let made = self.made().await;
        let ran = usize::from(made.contains(&first)) + usize::from(made.contains(&second));
        let is_as_expected = match &self.front {
            Front::Nothing => statuses == case.alone,
            _ => case.may_be_passed_on || created == 0,
        };
        let has_failed = statuses.iter().any(|status| *status >= 500);
        if ran != created || !is_as_expected || has_failed {
            return Err(format!("{ran} ran, and the answers were {statuses:?}"));
        }
        self.others_get_their_own_answers(n).await?;
        self.front_and_back_agree(before).await
    }

    /// As many requests succeeded as the front knows of, and none was answered that it has not passed on.
    async fn front_and_back_agree(&self, before: Counts) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.counts().await;
            let is_unknown = now.answered - before.answered > now.passed_on - before.passed_on;
            let agree = now.succeeded - before.succeeded == now.seen_to_succeed - before.seen_to_succeed;
            if matches!(self.front, Front::Nothing) || (agree && !is_unknown) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("front and back counted otherwise: {before:?}, then {now:?}"));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// And with theirs the front's log has come so far.
    async fn others_get_their_own_answers(&self, n: usize) -> Result<(), String> {
        let id = format!("somebody-else-{n}");
        let mut honest = request(Method::GET, "/v1/api-keys/current", &self.key);
        honest.headers_mut().insert("x-request-id", id.parse().unwrap());
        let mut connection = Connection::open(self.front.address(&self.service)).await.unwrap();
        let reply = connection.send(honest).await.unwrap();
        if reply.status != 200 || reply.header("x-request-id") != id {
            return Err(format!("somebody else got {reply:?}"));
        }
        let deadline = Instant::now() + PATIENCE;
        while !matches!(self.front, Front::Nothing) && !self.front.log().contains(&format!(" id={id}\n")) {
            assert!(Instant::now() < deadline, "no line of {id} in {}", self.front.log());
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn try_all(&self) {
        let mut problems = Vec::new();
        for (n, case) in LENGTHS.iter().chain(&ENCODINGS).chain(&CHUNKS).chain(&LINES).enumerate() {
            if let Err(problem) = self.try_case(n, case).await {
                let Case { line, framing, body, .. } = case;
                problems.push(format!("{line:?} {framing:?} {body:?}: {problem}"));
            }
        }
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

#[tokio::test]
async fn a_request_behind_one_whose_end_is_in_doubt_never_runs() {
    Site::start().try_all().await;
}

#[tokio::test]
async fn nginx_and_the_service_agree_where_each_request_ends() {
    let mut site = Site::start();
    let impatient = |configuration: String| {
        let seconds = format!("{}s", FRONT_PATIENCE.as_secs());
        configuration
            .replace("_timeout 10s;", &format!("_timeout {seconds};"))
            .replace("keepalive_timeout 60s", &format!("keepalive_timeout {seconds}"))
    };
    site.front = Front::Nginx(Nginx::start_altered([&site.service.public; 2], impatient));
    site.try_all().await;
}

#[tokio::test]
async fn haproxy_and_the_service_agree_where_each_request_ends() {
    let mut site = Site::start();
    site.front = Front::Haproxy(Balancer::start(&[site.service.public.clone()], FRONT_PATIENCE).await);
    site.try_all().await;
}
