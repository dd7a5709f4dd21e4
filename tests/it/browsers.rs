//! Scripts in a browser, on an origin that is not the service's: what they can read, and who may not call at all.

use serde_json::{Value, json};

use crate::support::{Database, Service, Site};

const KEYS: &str = "/v1/api-keys";

/// Every call that a script can make, with all that it can read of the answer.
const CALL: &str = r"
const READABLE = ['X-Request-Id', 'Location', 'Retry-After', 'X-RateLimit-Limit', 'X-RateLimit-Remaining',
  'X-RateLimit-Reset', 'RateLimit', 'RateLimit-Policy'];

async function call(method, path, key, body) {
  const headers = {};
  if (key) headers['X-API-Key'] = key;
  if (body) headers['Content-Type'] = 'application/json';
  const response = await fetch('http://SERVICE' + path, { method, headers, body });
  const readable = Object.fromEntries(READABLE.map(name => [name, response.headers.get(name)]));
  return { status: response.status, body: await response.json(), headers: readable };
}
";

const LIFE_OF_A_KEY: &str = r"
export default async () => {
  const create = name => call('POST', '/v1/api-keys', 'KEY', JSON.stringify({ name }));
  const made = await create('from a browser');
  const { apiKey, keyId } = made.body.data;
  const used = await call('GET', '/v1/api-keys', apiKey);
  const deleted = await call('DELETE', '/v1/api-keys/' + keyId, 'KEY');
  const refused = await call('GET', '/v1/api-keys', apiKey);
  const missing = await call('DELETE', '/v1/api-keys/' + keyId, 'KEY');

  const busy = (await create('busy')).body.data.apiKey;
  let limited;
  for (let n = 0; n < 100 && limited?.status !== 429; n++) {
    limited = await call('GET', '/v1/api-keys', busy);
  }
  return { made, used, deleted, refused, missing, limited };
};
";

const TOO_LARGE: &str = r"
export default async () => {
  const answers = [];
  for (const size of [70_000, 1_000_000]) {
    answers.push(await call('POST', '/v1/api-keys', 'KEY', 'x'.repeat(size)));
    answers.push(await call('POST', '/v1/api-keys', 'mk_wrong', 'x'.repeat(size)));
  }
  return answers;
};
";

const CALLS_THAT_MAY_BE_FORBIDDEN: &str = r"
export default async () => {
  const outcome = async promise => promise.then(answer => answer.status, error => error.name);
  return [
    await outcome(call('POST', '/v1/api-keys', 'KEY', JSON.stringify({ name: 'from elsewhere' }))),
    await outcome(call('GET', '/v1/api-keys', 'KEY')),
    await outcome(call('GET', '/v1/api-keys')),
    await outcome(call('GET', '/livez')),
  ];
};
";

struct Stage {
    service: Service,
    key: String,
    _database: Database,
}

impl Stage {
    fn set(settings: &[(&str, &str)]) -> Self {
        let database = Database::sqlite();
        let key = Service::create_account(&database.url, "free");
        let settings = [&[("DATABASE_URL", database.url.as_str())], settings].concat();
        Self { service: Service::start(&settings), key, _database: database }
    }

    async fn run(&self, site: Site, script: &str) -> Value {
        let script = format!("{CALL}{script}").replace("SERVICE", &self.service.public).replace("KEY", &self.key);
        let mut report = site.run(script).await;
        assert_eq!(report["failed"], Value::Null);
        report["returned"].take()
    }
}

#[tokio::test]
async fn a_script_on_another_origin_can_read_every_answer_and_its_headers() {
    let stage = Stage::set(&[("MOMAIL_PLANS__FREE__PER_MINUTE", "10")]);
    let answers = stage.run(Site::open().await, LIFE_OF_A_KEY).await;

    let statuses =
        ["made", "used", "deleted", "refused", "missing", "limited"].map(|name| answers[name]["status"].clone());
    assert_eq!(statuses, [201, 200, 200, 401, 404, 429]);
    let codes = ["refused", "missing", "limited"].map(|name| answers[name]["body"]["error"]["code"].clone());
    assert_eq!(codes, ["UNAUTHORIZED", "NOT_FOUND", "RATE_LIMIT_EXCEEDED"]);
    for answer in answers.as_object().unwrap().values() {
        assert_eq!(answer["headers"]["X-Request-Id"].as_str().map(str::len), Some(32), "{answer}");
    }
    let made = &answers["made"];
    let id = made["body"]["data"]["keyId"].as_str().unwrap();
    assert_eq!(made["headers"]["Location"], format!("{KEYS}/{id}"));
    assert_eq!(answers["deleted"]["body"]["data"], json!({ "keyId": id, "revoked": true }));

    let policy = "\"minute\";q=10;w=60, \"hour\";q=100;w=3600, \"day\";q=1000;w=86400";
    let used = &answers["used"]["headers"];
    assert_eq!((&used["X-RateLimit-Limit"], &used["X-RateLimit-Remaining"]), (&json!("10"), &json!("9")));
    assert_eq!(used["RateLimit-Policy"], policy);
    let limited = &answers["limited"]["headers"];
    assert_eq!((&limited["X-RateLimit-Limit"], &limited["X-RateLimit-Remaining"]), (&json!("10"), &json!("0")));
    assert_eq!(limited["RateLimit-Policy"], policy);
    assert!(limited["RateLimit"].as_str().unwrap().starts_with("\"minute\";r=0;t="), "{limited}");
    let retry_after: u64 = limited["Retry-After"].as_str().unwrap().parse().unwrap();
    assert!((1..=6).contains(&retry_after), "one of ten tokens takes six seconds, not {retry_after}");
    let reset: i64 = limited["X-RateLimit-Reset"].as_str().unwrap().parse().unwrap();
    assert!(reset > 1_700_000_000, "{reset} is a Unix time");
}

/// The refusal is sent while the browser still sends: it must arrive whole, and not as a broken connection.
#[tokio::test]
async fn a_script_on_another_origin_can_read_that_its_body_is_too_large() {
    let stage = Stage::set(&[]);
    let answers = stage.run(Site::open().await, TOO_LARGE).await;
    let outcomes: Vec<_> = answers.as_array().unwrap().iter().map(|answer| &answer["body"]["error"]["code"]).collect();
    assert_eq!(outcomes, ["PAYLOAD_TOO_LARGE", "UNAUTHORIZED"].repeat(2));
}

#[tokio::test]
async fn only_a_listed_origin_may_call() {
    let (listed, other) = (Site::open().await, Site::open().await);
    let stage = Stage::set(&[("MOMAIL_CORS__ALLOWED_ORIGINS", &listed.origin)]);
    let outcome = stage.run(other, CALLS_THAT_MAY_BE_FORBIDDEN).await;
    assert_eq!(outcome, json!(["TypeError", "TypeError", "TypeError", "TypeError"]));
    let list = stage.service.get(KEYS, &stage.key).await;
    assert_eq!(list.body["meta"]["total"], 1, "the forbidden call made nothing");

    let outcome = stage.run(listed, CALLS_THAT_MAY_BE_FORBIDDEN).await;
    assert_eq!(outcome, json!([201, 200, 401, 200]));
}
