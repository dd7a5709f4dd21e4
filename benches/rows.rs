//! What is measured row by row, what each row is compared with, and what is asked of it.

use super::baseline;

/// One kind of request to one server.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) server: Server,
    pub(crate) work: Work,
    /// Where; the id of a key follows if the work is to revoke one.
    pub(crate) path: &'static str,
    pub(crate) status: u16,
    pub(crate) against: &'static [Against],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Bare,
    Service(Setup),
}

/// How the service is run; its defaults are [`Setup::USUAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) replicas: usize,
    pub(crate) on_sqlite: bool,
    pub(crate) memory: Memory,
    /// Whether Redis counts for all replicas.
    pub(crate) shares_limits: bool,
    /// Whether clients are believed to be proxies, so that one machine can be many.
    pub(crate) behind_proxy: bool,
}

/// Keys in memory at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Usual,
    None,
    AtMost(usize),
}

impl Setup {
    pub(crate) const USUAL: Self =
        Self { replicas: 1, on_sqlite: false, memory: Memory::Usual, shares_limits: false, behind_proxy: false };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// GET with so many keys in turn, or as many as there are. All are asked for before, so that the server knows them.
    Get { keys: usize },
    /// GET with keys that were not asked for before.
    First,
    /// DELETE of the path itself with so many keys in turn.
    Delete { keys: usize },
    /// POST of a new key.
    Create,
    /// DELETE of a live key.
    Revoke,
}

/// What a row is compared with.
#[derive(Debug)]
pub(crate) struct Against {
    pub(crate) row: &'static str,
    /// What the ratios should be; `None` where it is only good to know.
    pub(crate) cpu_at_most: Option<f64>,
    pub(crate) database_at_most: Option<f64>,
    pub(crate) rate_at_least: Option<f64>,
}

impl Row {
    /// Whether PostgreSQL may have a part in it.
    pub(crate) fn asks_postgres(&self) -> bool {
        match self.server {
            Server::Bare => !baseline::CONSTANTS.contains(&self.path),
            Server::Service(setup) => !setup.on_sqlite,
        }
    }

    pub(crate) fn asks_redis(&self) -> bool {
        self.path == baseline::LIMIT || matches!(self.server, Server::Service(setup) if setup.shares_limits)
    }

    /// Whether it is asked on the address that is for gateways.
    pub(crate) fn is_internal(&self) -> bool {
        self.path == FORWARD_AUTH
    }
}

const HELLO: &str = "axum: hello";
const KEY: &str = "axum: JSON of a key";
const NOT_FOUND: &str = "axum: constant 404";
const CONSTANT_LIST: &str = "axum: constant list";
const LOOK_UP: &str = "sqlx without test: look up a key";
const UNASKED_LOOK_UP: &str = "sqlx unasked: look up a key";
const LIMIT: &str = "redis: one EVALSHA";
const LIST_ALONE: &str = "sqlx without test: list alone";
const UNASKED_LIST_ALONE: &str = "sqlx unasked: list alone";
const INSERT: &str = "sqlx without test: insert alone";
const UNASKED_INSERT: &str = "sqlx unasked: insert alone";
const UPDATE: &str = "sqlx without test: update alone";
const UNASKED_UPDATE: &str = "sqlx unasked: update alone";
const USUAL_LIST: &str = "sqlx: look up and list";
const LOOK_UP_AND_LIST: &str = "sqlx without test: look up and list";
const UNASKED_LOOK_UP_AND_LIST: &str = "sqlx unasked: look up and list";
const ONE_KEY: &str = "service: forward auth";
const TEN_THOUSAND_KEYS: &str = "service: forward auth, 10,000 keys";
const LIST: &str = "service: list";
const CREATE: &str = "service: create";

/// What is measured besides rows, by the names that `--only` knows.
pub(crate) const STARTS: &str = "starts";
pub(crate) const REVOCATIONS: &str = "revocations";
pub(crate) const MEMORY: &str = "memory of a key";
pub(crate) const INSTRUCTIONS: &str = "instructions";
pub(crate) const BESIDES: [&str; 4] = [STARTS, REVOCATIONS, MEMORY, INSTRUCTIONS];

/// What the names mean, for the reader of the table.
pub(crate) const LEGEND: [&str; 7] = [
    "`service` is the release binary with its defaults: keys in memory, JSON lines to a file, authentication, limits, metrics; \
     on PostgreSQL unless said. `uncached` keeps no keys in memory.",
    "`forward auth` is the question of a gateway, answered by a head alone; with one key unless said, else with so many in turn, \
     all of them asked for before. `first look` asks for each key once.",
    "`authenticate` is DELETE of what is no id: the key is found, judged and counted, and nothing else is asked.",
    "`axum` answers a constant, or the JSON of one key: `hello`, or the very bytes of the service's list of 10 keys or of its 404.",
    "`sqlx` is axum and sqlx with the service's statements and nothing around them; `redis` is axum and a script like the \
     service's on one connection.",
    "`sqlx` has sqlx's own pool as it comes, `without test` the same with test_before_acquire(false), and `unasked` a pool that \
     never asks a connection for a sign of life: the least that any program with sqlx can cost.",
    "Ratios are of CPU time, medians of each round's own; that of replicas is the sum of their processes.",
];

pub(crate) const COLLECTION: &str = "/v1/api-keys";
/// What is no id is refused before the database is asked, but after the key was judged and counted: nothing but the way in.
const NO_ID: &str = "/v1/api-keys/none";
pub(crate) const FORWARD_AUTH: &str = "/forward-auth";

const ONE: Work = Work::Get { keys: 1 };
pub(crate) const THOUSAND: Work = Work::Get { keys: 1_000 };
const MOST_KEYS: Work = Work::Get { keys: 1_000_000 };
const USUAL: Server = Server::Service(Setup::USUAL);
const UNCACHED: Server = Server::Service(Setup { memory: Memory::None, ..Setup::USUAL });
const ON_SQLITE: Server = Server::Service(Setup { on_sqlite: true, ..Setup::USUAL });
const SHARING: Server = Server::Service(Setup { shares_limits: true, ..Setup::USUAL });
const THREE: Server = Server::Service(Setup { replicas: 3, ..Setup::USUAL });

const ROWS: [Row; 36] = [
    bare(HELLO, ONE, baseline::HELLO, 200),
    bare(KEY, ONE, baseline::KEY, 200),
    forward_auth(ONE_KEY, USUAL, ONE, &[at_most(HELLO, 1.6), beside(KEY)]),
    forward_auth("service: forward auth, 1,000 keys", USUAL, THOUSAND, &[beside(HELLO), beside(ONE_KEY)]),
    forward_auth(
        TEN_THOUSAND_KEYS,
        USUAL,
        Work::Get { keys: 10_000 },
        &[at_most(HELLO, 1.8), beside(KEY), beside(ONE_KEY)],
    ),
    forward_auth(
        "service: forward auth, 100,000 keys",
        USUAL,
        Work::Get { keys: 100_000 },
        &[beside(HELLO), at_most(TEN_THOUSAND_KEYS, 1.3)],
    ),
    forward_auth(
        "service: forward auth, 1,000,000 keys",
        USUAL,
        MOST_KEYS,
        &[beside(HELLO), beside(TEN_THOUSAND_KEYS)],
    ),
    forward_auth("service on 3 replicas: forward auth", THREE, ONE, &[beside(HELLO), beside(ONE_KEY)]),
    bare(LOOK_UP, Work::First, "/without-test/look-up", 200),
    bare(UNASKED_LOOK_UP, Work::First, "/unasked/look-up", 200),
    forward_auth(
        "service: forward auth, first look",
        USUAL,
        Work::First,
        &[at_most(LOOK_UP, 1.25), beside(UNASKED_LOOK_UP)],
    ),
    bare(LIMIT, THOUSAND, baseline::LIMIT, 200),
    forward_auth("service: forward auth, shared limits", SHARING, THOUSAND, &[at_most(LIMIT, 1.3)]),
    bare(CONSTANT_LIST, THOUSAND, baseline::CONSTANT_LIST, 200),
    bare("sqlx: list alone", THOUSAND, "/sqlx/list", 200),
    bare(LIST_ALONE, THOUSAND, "/without-test/list", 200),
    bare(UNASKED_LIST_ALONE, THOUSAND, "/unasked/list", 200),
    service(
        (LIST, USUAL),
        THOUSAND,
        (COLLECTION, 200),
        &[
            Against { database_at_most: Some(1.1), ..at_most(LIST_ALONE, 1.15) },
            beside("sqlx: list alone"),
            beside(UNASKED_LIST_ALONE),
            beside(CONSTANT_LIST),
        ],
    ),
    bare("sqlx: insert alone", Work::Create, "/sqlx/insert", 201),
    bare(INSERT, Work::Create, "/without-test/insert", 201),
    bare(UNASKED_INSERT, Work::Create, "/unasked/insert", 201),
    service(
        (CREATE, USUAL),
        Work::Create,
        (COLLECTION, 201),
        &[
            Against { rate_at_least: Some(0.8), ..at_most(INSERT, 1.3) },
            beside("sqlx: insert alone"),
            beside(UNASKED_INSERT),
        ],
    ),
    bare(UPDATE, Work::Revoke, "/without-test/update", 200),
    bare(UNASKED_UPDATE, Work::Revoke, "/unasked/update", 200),
    service(("service: revoke", USUAL), Work::Revoke, (COLLECTION, 200), &[beside(UPDATE), beside(UNASKED_UPDATE)]),
    bare(NOT_FOUND, ONE, baseline::CONSTANT_NOT_FOUND, 404),
    service(
        ("service: authenticate", USUAL),
        Work::Delete { keys: 1_000 },
        (NO_ID, 404),
        &[beside(HELLO), beside(NOT_FOUND)],
    ),
    bare("sqlx: look up a key", THOUSAND, "/sqlx/look-up", 200),
    bare("sqlx without test: look up 1,000 keys", THOUSAND, "/without-test/look-up", 200),
    service(
        ("service uncached: authenticate", UNCACHED),
        Work::Delete { keys: 1_000 },
        (NO_ID, 404),
        &[beside("sqlx: look up a key"), beside("sqlx without test: look up 1,000 keys")],
    ),
    bare(USUAL_LIST, THOUSAND, "/sqlx/look-up-and-list", 200),
    bare(LOOK_UP_AND_LIST, THOUSAND, "/without-test/look-up-and-list", 200),
    bare(UNASKED_LOOK_UP_AND_LIST, THOUSAND, "/unasked/look-up-and-list", 200),
    service(
        ("service uncached: list", UNCACHED),
        THOUSAND,
        (COLLECTION, 200),
        &[beside(USUAL_LIST), beside(LOOK_UP_AND_LIST), beside(UNASKED_LOOK_UP_AND_LIST)],
    ),
    service(
        ("service on SQLite: list", ON_SQLITE),
        THOUSAND,
        (COLLECTION, 200),
        &[beside(CONSTANT_LIST), beside(LIST)],
    ),
    service(
        ("service on SQLite: create", ON_SQLITE),
        Work::Create,
        (COLLECTION, 201),
        &[beside(HELLO), beside(CREATE)],
    ),
];

const fn beside(row: &'static str) -> Against {
    Against { row, cpu_at_most: None, database_at_most: None, rate_at_least: None }
}

const fn at_most(row: &'static str, ratio: f64) -> Against {
    Against { cpu_at_most: Some(ratio), ..beside(row) }
}

const fn bare(name: &'static str, work: Work, path: &'static str, status: u16) -> Row {
    // Hello is compared with itself, which the report leaves out.
    const WITH_HELLO: &[Against] = &[beside(HELLO)];
    Row { name, server: Server::Bare, work, path, status, against: WITH_HELLO }
}

pub(crate) const fn forward_auth(name: &'static str, server: Server, work: Work, against: &'static [Against]) -> Row {
    Row { name, server, work, path: FORWARD_AUTH, status: 200, against }
}

pub(crate) const fn service(
    (name, server): (&'static str, Server),
    work: Work,
    (path, status): (&'static str, u16),
    against: &'static [Against],
) -> Row {
    Row { name, server, work, path, status, against }
}

/// The rows whose names contain a text, and those they are compared with, in the order in which they are measured. The
/// row of a million keys is left out where there are fewer.
pub(crate) fn chosen(text: &str, keys: usize) -> Vec<&'static Row> {
    const ALL: &[Row] = &ROWS;
    let is_possible = |row: &&Row| row.work != MOST_KEYS || keys >= 1_000_000;
    let named = |row: &&Row| row.name.contains(text) && is_possible(row);
    let needed: Vec<&str> = ALL.iter().filter(named).flat_map(|row| row.against).map(|against| against.row).collect();
    ALL.iter().filter(|row| named(row) || needed.contains(&row.name)).collect()
}
