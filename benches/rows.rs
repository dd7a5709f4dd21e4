//! What is measured, and what each row is compared with.

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
    /// The names of the rows it is compared with.
    pub(crate) against: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Product,
    ProductOnSqlite,
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// GET, each account's key in turn.
    Get,
    /// DELETE of the path itself, each account's key in turn.
    Delete,
    /// POST of a new key.
    Create,
    /// DELETE of a live key.
    Revoke,
}

impl Row {
    /// Whether PostgreSQL has a part in it.
    pub(crate) fn asks_postgres(&self) -> bool {
        let is_constant = [baseline::HELLO, baseline::CONSTANT_LIST, baseline::CONSTANT_NOT_FOUND].contains(&self.path);
        self.server != Server::ProductOnSqlite && !is_constant
    }
}

const HELLO: &str = "axum: hello";
const CONSTANT_LIST: &str = "axum: constant list";
const CONSTANT_NOT_FOUND: &str = "axum: constant 404";
const SQLX_AUTH: &str = "sqlx: select the key";
const UNASKED_AUTH: &str = "sqlx unasked: select the key";
const SQLX_LIST: &str = "sqlx: list";
const WITHOUT_TEST_LIST: &str = "sqlx without test: list";
const UNASKED_LIST: &str = "sqlx unasked: list";
const SQLX_INSERT: &str = "sqlx: insert alone";
const SQLX_CREATE: &str = "sqlx: create";
const UNASKED_CREATE: &str = "sqlx unasked: create";
const SQLX_UPDATE: &str = "sqlx: update alone";
const SQLX_REVOKE: &str = "sqlx: revoke";
const UNASKED_REVOKE: &str = "sqlx unasked: revoke";
const AUTHENTICATE: &str = "service: authenticate";
const LIST: &str = "service: list";
const CREATE: &str = "service: create";
const REVOKE: &str = "service: revoke";
const LIST_ON_SQLITE: &str = "service on SQLite: list";
const CREATE_ON_SQLITE: &str = "service on SQLite: create";

/// What the names mean, for the reader of the table.
pub(crate) const LEGEND: [&str; 6] = [
    "`service` is the release binary with its defaults: JSON lines to a file, authentication, limits, metrics; on PostgreSQL \
     unless said.",
    "`service: authenticate` is DELETE of what is no id: the key is found, judged and counted, and nothing else is asked.",
    "`axum` answers a constant: `hello`, or the very bytes of the service's list of 10 keys or of its 404.",
    "`sqlx` is axum and sqlx with the service's statements and nothing around them: the select of the key, and then the list's, \
     the insert or the update, unless that is alone.",
    "`sqlx` has sqlx's own pool as it comes, `without test` the same with test_before_acquire(false), and `unasked` a pool that \
     never asks a connection for a sign of life: the least that any program with sqlx can cost.",
    "Ratios are of CPU time, medians of each round's own.",
];

const COLLECTION: &str = "/v1/api-keys";
/// What is no id is refused before the database is asked, but after the key was judged and counted: nothing but the way in.
const NO_ID: &str = "/v1/api-keys/none";

const ROWS: [Row; 20] = [
    bare(HELLO, Work::Get, baseline::HELLO, 200),
    bare(CONSTANT_NOT_FOUND, Work::Get, baseline::CONSTANT_NOT_FOUND, 404),
    bare(SQLX_AUTH, Work::Get, "/sqlx/authenticate", 404),
    bare(UNASKED_AUTH, Work::Get, "/unasked/authenticate", 404),
    service(AUTHENTICATE, Work::Delete, NO_ID, 404, &[SQLX_AUTH, UNASKED_AUTH, CONSTANT_NOT_FOUND]),
    bare(CONSTANT_LIST, Work::Get, baseline::CONSTANT_LIST, 200),
    bare(SQLX_LIST, Work::Get, "/sqlx/list", 200),
    bare(WITHOUT_TEST_LIST, Work::Get, "/without-test/list", 200),
    bare(UNASKED_LIST, Work::Get, "/unasked/list", 200),
    service(LIST, Work::Get, COLLECTION, 200, &[SQLX_LIST, WITHOUT_TEST_LIST, UNASKED_LIST, CONSTANT_LIST]),
    bare(SQLX_INSERT, Work::Create, "/sqlx/insert", 201),
    bare(SQLX_CREATE, Work::Create, "/sqlx/create", 201),
    bare(UNASKED_CREATE, Work::Create, "/unasked/create", 201),
    service(CREATE, Work::Create, COLLECTION, 201, &[SQLX_INSERT, SQLX_CREATE, UNASKED_CREATE]),
    bare(SQLX_UPDATE, Work::Revoke, "/sqlx/update", 200),
    bare(SQLX_REVOKE, Work::Revoke, "/sqlx/revoke", 200),
    bare(UNASKED_REVOKE, Work::Revoke, "/unasked/revoke", 200),
    service(REVOKE, Work::Revoke, COLLECTION, 200, &[SQLX_UPDATE, SQLX_REVOKE, UNASKED_REVOKE]),
    on_sqlite(LIST_ON_SQLITE, Work::Get, 200, &[CONSTANT_LIST, LIST]),
    on_sqlite(CREATE_ON_SQLITE, Work::Create, 201, &[HELLO, CREATE]),
];

const fn bare(name: &'static str, work: Work, path: &'static str, status: u16) -> Row {
    // A name is unique, so that it can be looked up; hello is compared with itself, which the report leaves out.
    Row { name, server: Server::Baseline, work, path, status, against: &[HELLO] }
}

const fn service(
    name: &'static str,
    work: Work,
    path: &'static str,
    status: u16,
    against: &'static [&'static str],
) -> Row {
    Row { name, server: Server::Product, work, path, status, against }
}

const fn on_sqlite(name: &'static str, work: Work, status: u16, against: &'static [&'static str]) -> Row {
    Row { name, server: Server::ProductOnSqlite, work, path: COLLECTION, status, against }
}

/// The rows whose names contain a text, and those they are compared with, in the order in which they are measured.
pub(crate) fn chosen(text: &str) -> Vec<&'static Row> {
    const ALL: &[Row] = &ROWS;
    let named = |row: &&Row| row.name.contains(text);
    let needed: Vec<&str> = ALL.iter().filter(named).flat_map(|row| row.against).copied().collect();
    ALL.iter().filter(|row| named(row) || needed.contains(&row.name)).collect()
}
