//! Requests at random, valid and invalid, as data: each can be played again, to another store or without those before it.

use std::fmt;

use axum::body::Body;
use axum::http::{Method, Request};
use form_urlencoded::byte_serialize;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde_json::{Value, json};

use super::{json_request, request};

const KEYS: &str = "/v1/api-keys";

/// What of a request depends on the answers before it: how far back to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picks {
    pub(crate) account: usize,
    pub(crate) key: usize,
    pub(crate) id: usize,
    pub(crate) event: usize,
}

/// One request, and how long nothing happens before it.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) after_millis: u64,
    /// Whether last uses and counts are written before it.
    pub(crate) writes_uses: bool,
    pub(crate) picks: Picks,
    method: &'static str,
    /// With `{id}` and `{event}` where the answers before it say more.
    path: String,
    body: Option<Vec<u8>>,
    idempotency_key: Option<u8>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after_millis, picks, method, path, body, .. } = self;
        let body = body.as_ref().map(|body| String::from_utf8_lossy(body));
        let extras = (self.writes_uses.then_some("uses are written"), self.idempotency_key);
        write!(f, "after {after_millis} ms {method} {path} {body:?} {extras:?} {picks:?}")
    }
}

impl Step {
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        let at = |random: &mut StdRng| random.random_range(0..1_000);
        let picks = Picks { account: at(random), key: at(random), id: at(random), event: at(random) };
        let (method, path, body) = draw_request(random);
        let may_repeat = method == "POST" && random.random_ratio(1, 4);
        Self {
            after_millis: *[0, 1, 10, 1_500, 20_000, 3_600_000].choose(random).unwrap(),
            writes_uses: random.random_ratio(1, 10),
            picks,
            method,
            path,
            body,
            idempotency_key: may_repeat.then(|| random.random_range(0..6)),
        }
    }

    /// Whether the key that asks opens nothing afterwards.
    pub(crate) fn spends_its_key(&self) -> bool {
        self.method == "DELETE" && self.path.ends_with("/current")
    }

    /// The request, with the number of its step as its id.
    pub(crate) fn request(&self, number: usize, key: &str, id: &str, event: &str) -> Request<Body> {
        let path = self.path.replace("{id}", id).replace("{event}", event);
        let method: Method = self.method.parse().unwrap();
        let mut request = match &self.body {
            Some(body) => json_request(method, &path, key, body.clone()),
            None => request(method, &path, key),
        };
        let headers = request.headers_mut();
        headers.insert("x-request-id", number.to_string().parse().unwrap());
        if let Some(name) = self.idempotency_key {
            headers.insert("idempotency-key", name.to_string().parse().unwrap());
        }
        request
    }
}

fn draw_request(random: &mut StdRng) -> (&'static str, String, Option<Vec<u8>>) {
    let item = || format!("{KEYS}/{{id}}");
    match random.random_range(0..100) {
        0..26 => ("POST", KEYS.to_owned(), Some(any_body(random, valid_creation))),
        26..48 => ("GET", format!("{KEYS}{}", list_query(random)), None),
        48..54 => ("GET", item(), None),
        54..68 => ("PATCH", item(), Some(any_body(random, valid_edit))),
        68..76 => ("POST", format!("{}/rotate", item()), rotation(random)),
        76..83 => ("DELETE", item(), None),
        83..88 => ("GET", format!("{}/usage{}", item(), number_query(random, "days")), None),
        88..94 => ("GET", format!("{KEYS}/events{}", events_query(random)), None),
        94..97 => ("GET", format!("{KEYS}/current"), None),
        97 => ("DELETE", format!("{KEYS}/current"), None),
        98 => (["PUT", "TRACE", "get"].choose(random).unwrap(), item(), None),
        _ => (
            "GET",
            format!("{KEYS}/{}", ["%00", "x", "key_0", "key_0/rotate", "events/"].choose(random).unwrap()),
            None,
        ),
    }
}

fn any_body(random: &mut StdRng, valid: impl Fn(&mut StdRng) -> Value) -> Vec<u8> {
    if random.random_ratio(1, 4) { invalid_body(random) } else { valid(random).to_string().into_bytes() }
}

/// Names that databases with rules of their own would sort, fold, compare or cut in other ways.
const NAMES: [&str; 42] = [
    "zebra",
    "Zebra",
    "apple",
    "Apple",
    "Äpfel",
    "äpfel",
    "A\u{308}pfel",
    "éclair",
    "e\u{301}clair",
    "ß",
    "ẞ",
    "SS",
    "İ",
    "i\u{307}",
    "ı",
    "I",
    "ſ",
    "K",
    "\u{212a}",
    "Σ",
    "σ",
    "ς",
    "Ǆ",
    "ǆ",
    "10",
    "9",
    "٣",
    "a b",
    "a_b",
    "a%b",
    "a!b",
    "a\\b",
    "'; drop table api_keys --",
    "\u{202e}abc",
    "\u{feff}",
    "\u{ffff}",
    "\u{10ffff}",
    "👩\u{200d}💻",
    "한",
    "ไทย",
    "\u{a0}x\u{3000}",
    "null",
];

/// What a name may have, for those that are made at random.
const CHARACTERS: &str =
    "aAzZ09 _%!\\'\"{}[]<>:;,./?@#$^&*()-+=|~`äÄßİıſσΣ\u{301}\u{200b}\u{202e}\u{feff}\u{fffd}\u{e000}日本🔑𝄞\u{10ffff}";

pub(crate) fn name(random: &mut StdRng) -> String {
    if random.random_ratio(1, 2) {
        return (*NAMES.choose(random).unwrap()).to_owned();
    }
    let characters: Vec<char> = CHARACTERS.chars().collect();
    let length = *[1, 2, 3, 8, 99, 100].choose(random).unwrap();
    let mut name: String = (0..length).map(|_| *characters.choose(random).unwrap()).collect();
    // One that is not blank.
    name.replace_range(..name.chars().next().unwrap().len_utf8(), "n");
    name
}

pub(crate) fn valid_creation(random: &mut StdRng) -> Value {
    let mut body = json!({ "name": name(random) });
    if random.random_ratio(1, 3) {
        body["expirationDays"] =
            [json!(1), json!(365), json!(null), json!(random.random_range(1..366))].choose(random).unwrap().clone();
    }
    if random.random_ratio(1, 3) {
        body["permissions"] = permissions(random);
    }
    body
}

fn permissions(random: &mut StdRng) -> Value {
    let lists = [
        json!(null),
        json!([]),
        json!(["domains:read"]),
        json!(["emails:read", "api-keys:read", "emails:read"]),
        json!(["api-keys:read", "api-keys:write", "domains:read", "domains:write", "emails:read"]),
    ];
    lists.choose(random).unwrap().clone()
}

fn valid_edit(random: &mut StdRng) -> Value {
    let mut body = json!({});
    let given = random.random_range(1u8..32);
    let mut set = |bit: u8, member: &str, value: Value| {
        if given >> bit & 1 == 1 {
            body[member] = value;
        }
    };
    set(0, "name", json!(name(random)));
    set(1, "permissions", permissions(random));
    set(2, "expirationDays", [json!(1), json!(30), json!(null)].choose(random).unwrap().clone());
    set(3, "enabled", json!(random.random_ratio(3, 4)));
    set(4, "retireNow", json!(random.random_ratio(1, 2)));
    body
}

/// No creation, edit or rotation.
pub(crate) fn invalid_body(random: &mut StdRng) -> Vec<u8> {
    const TEXTS: [&str; 33] = [
        "",
        "{",
        "null",
        "[]",
        "\"name\"",
        "1",
        "{}x",
        "{\"name\":\"a\"}{",
        "{\"name\":\"a\",}",
        "{\"name\":\"a\",\"name\":\"b\"}",
        "{\"name\":1}",
        "{\"name\":null}",
        "{\"name\":[\"a\"]}",
        "{\"name\":\"\"}",
        "{\"name\":\"\\u3000 \"}",
        "{\"name\":\"a\\u0000b\"}",
        "{\"name\":\"a\\n\"}",
        "{\"name\":\"\\u0085\"}",
        "{\"name\":\"\\ud800\"}",
        "{\"nam\":\"a\"}",
        "{\"name\":\"a\",\"plan\":\"enterprise\"}",
        "{\"name\":\"a\",\"expirationDays\":0}",
        "{\"name\":\"a\",\"expirationDays\":366}",
        "{\"name\":\"a\",\"expirationDays\":1.0}",
        "{\"name\":\"a\",\"expirationDays\":1e400}",
        "{\"name\":\"a\",\"expirationDays\":\"5\"}",
        "{\"name\":\"a\",\"expirationDays\":9223372036854775808}",
        "{\"name\":\"a\",\"permissions\":\"domains:read\"}",
        "{\"name\":\"a\",\"permissions\":[null]}",
        "{\"name\":\"a\",\"permissions\":[\"no:such\"]}",
        "{\"name\":\"a\",\"permissions\":{}}",
        "{\"gracePeriodHours\":169}",
        "{\"enabled\":1}",
    ];
    match random.random_range(0..10) {
        0 => b"{\"name\":\"\xff\"}".to_vec(),
        1 => b"\xef\xbb\xbf{\"name\":\"a\"}".to_vec(),
        2 => json!({ "name": "n".repeat(101) }).to_string().into_bytes(),
        3 => json!({ "name": "𝄞".repeat(random.random_range(101..2_000)) }).to_string().into_bytes(),
        4 => {
            let mut noise = vec![0; random.random_range(1..64)];
            random.fill_bytes(&mut noise);
            // No text begins like this.
            noise[0] = 0xc0;
            noise
        }
        _ => TEXTS.choose(random).unwrap().as_bytes().to_vec(),
    }
}

fn rotation(random: &mut StdRng) -> Option<Vec<u8>> {
    let valid = |random: &mut StdRng| json!({ "gracePeriodHours": *[0, 1, 24, 168].choose(random).unwrap() });
    random.random_ratio(3, 4).then(|| any_body(random, valid))
}

fn list_query(random: &mut StdRng) -> String {
    let mut parameters = Vec::new();
    let mut add = |random: &mut StdRng, chance: u32, name: &str, values: &[&str]| {
        if random.random_ratio(chance, 20) {
            parameters.push(format!("{name}={}", values.choose(random).unwrap()));
        }
    };
    add(
        random,
        8,
        "limit",
        &["1", "2", "5", "99", "100", "0", "101", "-1", "abc", "2147483648", "9223372036854775808", ""],
    );
    add(random, 6, "offset", &["0", "1", "3", "10", "1000000", "1000001", "-1", "x"]);
    let by = ["createdAt", "lastUsed", "name", "expirationTs"].choose(random).unwrap();
    let sort = format!("{by}{}", ["", ":asc", ":desc", "%3Adesc", ":up"].choose(random).unwrap());
    add(random, 12, "sort", &[&sort]);
    add(random, 5, "status", &["active", "expired", "disabled", "revoked"]);
    let name = name(random);
    let part: String =
        name.chars().skip(usize::from(random.random_ratio(1, 2))).take(random.random_range(1..4)).collect();
    let part: String = byte_serialize(part.as_bytes()).collect();
    add(random, 8, "q", &[&part]);
    add(random, 1, "page", &["1"]);
    if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) }
}

fn number_query(random: &mut StdRng, name: &str) -> String {
    let numbers = ["", "1", "2", "30", "100", "365", "366", "0", "-1", "x"];
    let number = numbers.choose(random).unwrap();
    if number.is_empty() { String::new() } else { format!("?{name}={number}") }
}

fn events_query(random: &mut StdRng) -> String {
    match random.random_range(0..4) {
        0 => String::new(),
        1 => "?before={event}&limit=3".to_owned(),
        2 => number_query(random, "before"),
        _ => number_query(random, "limit"),
    }
}
