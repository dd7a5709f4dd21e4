//! The examples of the page, as the README has them, run word for word by the clients they are written for.

use std::path::Path;
use std::process::{Command, Output};

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Database, Service, Site, json_request, on_both_stores, request, setting};

on_both_stores!(
    the_shell_example_works_word_for_word,
    the_javascript_example_works_word_for_word_in_node,
    the_javascript_example_works_word_for_word_in_a_browser_on_another_origin,
    the_python_example_works_word_for_word,
);

const KEYS: &str = "/v1/api-keys";
const README: &str = include_str!("../../README.md");
/// The page's host, and what stands for it in the README.
const PAGES_HOST: &str = "https://api.momail.io";
const README_HOST: &str = "http://127.0.0.1:8080";

/// The page's examples as they were handed down: most of their line breaks are lost.
const PAGE_SHELL: &str = r#"# List API keyscurl https://api.momail.io/v1/api-keys \ -H "X-API-Key: your_key"
# Create API keycurl -X POST https://api.momail.io/v1/api-keys \ -H "X-API-Key: your_key" \ -H "Content-Type: application/json" \ -d '{ "name": "Production API", "expirationDays": 365 }'
# Delete API keycurl -X DELETE https://api.momail.io/v1/api-keys/key_abc123 \ -H "X-API-Key: your_key""#;
const PAGE_JAVASCRIPT: &str = r"// List API keysconst keys = await fetch('https://api.momail.io/v1/api-keys', { headers: { 'X-API-Key': 'your_key' }}).then(r => r.json());
// Create API keyconst newKey = await fetch('https://api.momail.io/v1/api-keys', { method: 'POST', headers: { 'X-API-Key': 'your_key', 'Content-Type': 'application/json' }, body: JSON.stringify({ name: 'Production API', expirationDays: 365 })}).then(r => r.json());
// IMPORTANT: Save the key immediatelyconst apiKey = newKey.data.apiKey;localStorage.setItem('momail_api_key', apiKey);
// Delete API keyawait fetch('https://api.momail.io/v1/api-keys/key_abc123', { method: 'DELETE', headers: { 'X-API-Key': 'your_key' }});";
const PAGE_PYTHON: &str = r#"import osimport requests
headers = {'X-API-Key': os.getenv('MOMAIL_API_KEY')}
# List API keysresponse = requests.get('https://api.momail.io/v1/api-keys', headers=headers)keys = response.json()['data']
# Create API keyresponse = requests.post( 'https://api.momail.io/v1/api-keys', headers=headers, json={ 'name': 'Production API', 'expirationDays': 365 })result = response.json()
# IMPORTANT: Save the key immediatelyapi_key = result['data']['apiKey']print(f"Save this key: {api_key}")
# Delete API keyrequests.delete( 'https://api.momail.io/v1/api-keys/key_abc123', headers=headers)"#;

/// Node.js has no storage of a browser's kind.
const NODE_RUNNER: &str = r"
const entries = new Map();
const storage = { setItem: (name, value) => entries.set(name, String(value)), getItem: name => entries.get(name) ?? null };
Object.defineProperty(globalThis, 'localStorage', { value: storage });
await import('./example.mjs');
console.log(localStorage.getItem('momail_api_key'));
";

/// The README's block in this language, under this heading.
fn block(heading: &str, language: &str) -> &'static str {
    let (_, section) = README.split_once(&format!("\n{heading}\n")).expect("the README has the heading");
    let (_, block) = section.split_once(&format!("\n```{language}\n")).expect("the README has the block");
    block.split_once("\n```\n").expect("the block ends").0
}

#[test]
fn the_readmes_examples_are_the_pages_but_for_the_host() {
    let without_whitespace = |text: &str| text.split_whitespace().collect::<String>();
    for (language, page) in [("sh", PAGE_SHELL), ("js", PAGE_JAVASCRIPT), ("python", PAGE_PYTHON)] {
        let ours = block("## Examples", language);
        assert!(!ours.contains(PAGES_HOST), "{language}: the page's own host would be asked");
        let expected = page.replace(PAGES_HOST, README_HOST);
        assert_eq!(without_whitespace(ours), without_whitespace(&expected), "{language}");
    }
}

/// A running service with an account, its key, and a key to be revoked.
struct Stage {
    service: Service,
    key: String,
    doomed: Value,
}

impl Stage {
    async fn set(database: &Database) -> Self {
        let key = Service::create_account(&database.url, "pro");
        let service = Service::start(&[("DATABASE_URL", &database.url)]);
        let body = json!({ "name": "doomed" }).to_string();
        let mut made = service.send(json_request(Method::POST, KEYS, &key, body)).await;
        assert_eq!(made.status, 201);
        Self { service, key, doomed: made.body["data"].take() }
    }

    /// An example with a real address, key and id in it.
    fn example(&self, language: &str) -> String {
        block("## Examples", language)
            .replace(README_HOST, &format!("http://{}", self.service.public))
            .replace("your_key", &self.key)
            .replace("key_abc123", self.doomed["keyId"].as_str().unwrap())
    }

    /// Looks whether the example has made the key it was shown, and revoked the other one.
    async fn check(&self, shown: &str) {
        let list = self.service.send(request(Method::GET, KEYS, &self.key)).await;
        assert_eq!(list.body["meta"]["total"], 2, "{list:?}");
        let made = &list.body["data"][0];
        assert_eq!(made["name"], "Production API");
        assert_eq!(made["keyPrefix"], format!("{}****", shown.get(..6).unwrap_or(shown)));
        assert_ne!(made["expirationTs"], Value::Null);
        assert_eq!(self.service.get(KEYS, shown).await.status, 200, "the new key opens");
        assert_eq!(self.service.get(KEYS, self.doomed["apiKey"].as_str().unwrap()).await.status, 401);
    }
}

/// Runs a client in a folder, without the proxies that this process may be told to use.
fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str], folder: &Path, variables: &[(&str, &str)]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")])
        .envs(variables.iter().copied())
        .output();
    let Output { status, stdout, stderr } = output.unwrap();
    assert!(status.success(), "{status}\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

async fn the_shell_example_works_word_for_word(database: Database) {
    let stage = Stage::set(&database).await;
    let folder = tempfile::tempdir().unwrap();
    let printed = run("/bin/sh", &["-euc", &stage.example("sh")], folder.path(), &[]);

    let answers: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&printed).into_iter().collect();
    let [list, made, deleted] = answers.unwrap().try_into().unwrap();
    assert_eq!(list["meta"]["total"], 2);
    assert_eq!(deleted, json!({ "success": true, "data": { "keyId": stage.doomed["keyId"], "revoked": true } }));
    assert_eq!(made["data"]["plan"], "pro");
    stage.check(made["data"]["apiKey"].as_str().unwrap()).await;
}

async fn the_javascript_example_works_word_for_word_in_node(database: Database) {
    let stage = Stage::set(&database).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("example.mjs"), stage.example("js")).unwrap();
    std::fs::write(folder.path().join("runner.mjs"), NODE_RUNNER).unwrap();
    let printed = run("node", &["runner.mjs"], folder.path(), &[]);
    stage.check(printed.trim()).await;
}

async fn the_javascript_example_works_word_for_word_in_a_browser_on_another_origin(database: Database) {
    let stage = Stage::set(&database).await;
    let report = Site::open().await.run(stage.example("js")).await;
    assert_eq!(report["failed"], Value::Null);
    stage.check(report["stored"]["momail_api_key"].as_str().unwrap()).await;

    // The browser asked first, as it does on another origin.
    let metrics = stage.service.get_internal("/metrics").await;
    let metrics = String::from_utf8(metrics.bytes).unwrap();
    for route in [KEYS, "/v1/api-keys/{id}"] {
        let asked = format!("http_requests_total{{route=\"{route}\",method=\"OPTIONS\",status=\"204\"}}");
        assert!(metrics.contains(&asked), "{asked}\n{metrics}");
    }
}

async fn the_python_example_works_word_for_word(database: Database) {
    let stage = Stage::set(&database).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("example.py"), stage.example("python")).unwrap();
    let key = [("MOMAIL_API_KEY", stage.key.as_str())];
    let printed = run(setting("TEST_PYTHON"), &["example.py"], folder.path(), &key);
    let shown = printed.strip_prefix("Save this key: ").unwrap();
    stage.check(shown.trim_end()).await;
}

#[tokio::test]
async fn the_readmes_leak_check_tells_a_real_key_from_a_likeness() {
    let database = Database::sqlite();
    let key = Service::create_account(&database.url, "free");
    let last = if key.ends_with('0') { '1' } else { '0' };
    let likeness = format!("{}{last}", &key[..43]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("check.py"), block("## The API", "python")).unwrap();
    std::fs::write(folder.path().join("text"), format!("x={key}; y={likeness} {key}0")).unwrap();
    let printed =
        run("/bin/sh", &["-euc", "\"$PYTHON\" check.py <text"], folder.path(), &[("PYTHON", &setting("TEST_PYTHON"))]);
    assert_eq!(printed, format!("{} is a real key\n", &key[..11]));
}
