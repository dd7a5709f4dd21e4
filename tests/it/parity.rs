//! The same script of requests on SQLite and on PostgreSQL: the same statuses, bodies, headers and order.

use std::collections::HashMap;
use std::time::Duration;

use momail_api_keys::account::Plan;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::support::{Database, Options, Reply, Step, TestApp, is_long};

const STEPS: usize = 500;
const SCRIPTS: u64 = 4;
const SCRIPTS_LONG: u64 = 40;
/// How often a script that shows a difference is played again, to find a shorter one.
const SHORTER_MAX: usize = 80;

/// What a script has been told so far.
#[derive(Default)]
struct Known {
    /// For each account, the texts of its keys.
    keys: Vec<Vec<String>>,
    ids: Vec<String>,
    events: Vec<String>,
    /// What chance makes, by its first appearance.
    places: HashMap<String, usize>,
}

/// Two accounts and what their clients saw, with what chance made replaced by its place in the story.
async fn play(database: &Database, script: &[Step], options: Options) -> Vec<String> {
    let mut app = TestApp::with(database, options).await;
    let mut known = Known::default();
    for plan in [Plan::Free, Plan::Enterprise] {
        known.keys.push(vec![app.account(plan).await.1]);
    }
    let mut told = Vec::new();
    for (number, step) in script.iter().enumerate() {
        app.clock.advance(Duration::from_millis(step.after_millis));
        if step.writes_uses {
            app.write_last_used();
            app.flush_last_used().await;
        }
        let reply = app.send(step.request(number, known.key(step), known.id(step), known.event(step))).await;
        told.push(known.tell(step, &reply));
    }
    told
}

impl Known {
    /// The first key of an account oftener than all others together: it may do everything, and lives to the end.
    fn key(&self, step: &Step) -> &str {
        let keys = &self.keys[step.picks.account % self.keys.len()];
        if step.spends_its_key() {
            return keys[1..].last().map_or("", String::as_str);
        }
        let other = keys[1..].iter().rev().nth(step.picks.key % 16).filter(|_| step.picks.key.is_multiple_of(3));
        other.unwrap_or(&keys[0])
    }

    fn id(&self, step: &Step) -> &str {
        let id = self.ids.iter().rev().nth(step.picks.id % 16);
        id.map_or("key_00000000000000000000000000", String::as_str)
    }

    fn event(&self, step: &Step) -> &str {
        self.events.iter().rev().nth(step.picks.event % 64).map_or("1", String::as_str)
    }

    fn tell(&mut self, step: &Step, reply: &Reply) -> String {
        let data = &reply.body["data"];
        if let Some(text) = data["apiKey"].as_str() {
            let account = step.picks.account % self.keys.len();
            self.keys[account].push(text.to_owned());
            self.ids.push(data["keyId"].as_str().unwrap().to_owned());
        }
        let events = data.as_array().into_iter().flatten().filter(|event| event["eventId"].is_i64());
        self.events.extend(events.map(|event| event["eventId"].to_string()));
        let mut body = reply.body.clone();
        self.replace(&mut body);
        let limits = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after", "ratelimit"];
        let location = if reply.header("location").is_empty() { "" } else { "located" };
        format!("{} {:?} {location} {body}", reply.status, limits.map(|name| reply.header(name).to_owned()))
    }

    /// Puts its place in the story where chance made a text.
    fn replace(&mut self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match name.as_str() {
                        // Three characters, which two keys may have in common.
                        "keyPrefix" => *member = Value::Null,
                        "apiKey" | "keyId" | "byKeyId" | "accountId" | "eventId" if !member.is_null() => {
                            let next = self.places.len();
                            *member = (*self.places.entry(member.to_string()).or_insert(next)).into();
                        }
                        _ => self.replace(member),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item)),
            _ => (),
        }
    }
}

/// Half of the scripts meet limits, the others never do.
fn options(seed: u64) -> Options {
    if seed.is_multiple_of(2) { Options::default() } else { Options::published() }
}

/// The first step at which the stores part, and what each of them says.
async fn difference(script: &[Step], seed: u64) -> (Option<(usize, String, String)>, Vec<String>) {
    let (sqlite, postgres) = (Database::sqlite(), Database::postgres().await);
    let (on_sqlite, on_postgres) =
        tokio::join!(Box::pin(play(&sqlite, script, options(seed))), Box::pin(play(&postgres, script, options(seed))),);
    let pairs = on_sqlite.iter().zip(on_postgres);
    let found = pairs.enumerate().find(|(_, (one, other))| *one != other);
    (found.map(|(step, (one, other))| (step, one.clone(), other)), on_sqlite)
}

/// Leaves out whatever is not needed for a difference, as long as there are attempts left.
async fn shortest(mut script: Vec<Step>, seed: u64) -> (Vec<Step>, (usize, String, String)) {
    let mut shown = difference(&script, seed).await.0.expect("the stores part every time");
    script.truncate(shown.0 + 1);
    let mut attempts = SHORTER_MAX;
    let mut chunk = script.len() / 2;
    while chunk > 0 {
        let mut start = 0;
        while start < script.len() && attempts > 0 {
            attempts -= 1;
            let mut shorter = script.clone();
            shorter.drain(start..(start + chunk).min(script.len()));
            match difference(&shorter, seed).await.0 {
                Some(still) => {
                    shorter.truncate(still.0 + 1);
                    (script, shown) = (shorter, still);
                }
                None => start += chunk,
            }
        }
        chunk /= 2;
    }
    (script, shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_tell_the_same_story() {
    let first = if is_long() { rand::random::<u32>().into() } else { 0 };
    for seed in first..first + if is_long() { SCRIPTS_LONG } else { SCRIPTS } {
        let mut random = StdRng::seed_from_u64(seed);
        let script: Vec<_> = (0..STEPS).map(|_| Step::draw(&mut random)).collect();
        let (found, told) = difference(&script, seed).await;
        if found.is_some() {
            let (script, (step, one, other)) = shortest(script, seed).await;
            panic!("seed {seed}: after {script:#?}\nat its step {step} SQLite says\n{one}\nand PostgreSQL\n{other}");
        }
        let of = |status: &str| told.iter().filter(|line| line.starts_with(status)).count();
        let statuses =
            ["200", "201", "400", "401", "403", "404", "405", "409", "429"].map(|status| (status, of(status)));
        let is_rich = of("200") > 100 && of("201") > 15 && of("400") > 15 && of("404") > 2;
        assert!(is_rich, "the story of seed {seed} is a poor one: {statuses:?}");
        eprintln!("seed {seed}: {statuses:?}");
    }
}
