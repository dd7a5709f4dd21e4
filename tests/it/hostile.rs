//! Requests made to break a parser or a database: they are refused, and cost neither an error of ours nor memory.

use axum::http::{Method, Request};
use serde_json::json;

use momail_api_keys::account::Plan;

use crate::support::{Database, Service, TestApp, is_long, json_request, on_both_stores, request, with_wrong_checksum};

on_both_stores!(
    a_nul_is_refused_wherever_a_text_may_stand,
    no_query_however_it_is_broken_is_more_than_refused,
    whatever_metrics_count_has_no_series_of_its_own,
);

const KEYS: &str = "/v1/api-keys";
const MB: u64 = 1 << 20;

async fn a_nul_is_refused_wherever_a_text_may_stand(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let made = app.create(&key, json!({ "name": "a" })).await;
    let item = format!("{KEYS}/{}", made["keyId"].as_str().unwrap());
    let rotate = format!("{item}/rotate");
    let bodies = [
        (Method::POST, KEYS, r#"{"name":"\u0000"}"#),
        (Method::POST, KEYS, r#"{"name":"a\u0000b"}"#),
        (Method::POST, KEYS, r#"{"name":"a","\u0000":1}"#),
        (Method::POST, KEYS, r#"{"name":"a","permissions":["\u0000"]}"#),
        (Method::POST, KEYS, r#"{"name":"a","expirationDays":"\u0000"}"#),
        (Method::PATCH, &item, r#"{"name":"a\u0000"}"#),
        (Method::PATCH, &item, r#"{"permissions":["domains:read\u0000"]}"#),
        (Method::POST, &rotate, r#"{"gracePeriodHours":"\u0000"}"#),
        (Method::POST, &rotate, r#"{"\u0000":1}"#),
    ];
    for (method, path, body) in bodies {
        let reply = app.send(json_request(method, path, &key, body)).await;
        assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{path} {body}");
    }
    for parameter in ["q", "sort", "status", "limit", "offset"] {
        for value in ["%00", "a%00b"] {
            let reply = app.get(&format!("{KEYS}?{parameter}={value}"), &key).await;
            assert_eq!((reply.status.as_u16(), reply.code()), (400, "VALIDATION_ERROR"), "{parameter}={value}");
        }
    }
    for query in ["/events?before=%00", "/events?limit=1%00", "/events?%00=1", "?%00=1"] {
        assert_eq!(app.get(&format!("{KEYS}{query}"), &key).await.status, 400, "{query}");
    }
    assert_eq!(app.get(&format!("{item}/usage?days=%00"), &key).await.status, 400);
    for path in ["/%00", "/v1/api-keys/%00", "/v1/api-keys/%00/rotate", "/v1/api-keys%00"] {
        assert_eq!(app.get(path, &key).await.status, if path.ends_with("rotate") { 405 } else { 404 }, "{path}");
    }
    let text = String::from_utf8(app.internal_get("/metrics").await.bytes).unwrap();
    assert!(!text.contains("status=\"500\""), "{text}");
}

async fn no_query_however_it_is_broken_is_more_than_refused(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    for name in ["a", "b", "c", "d", "e"] {
        app.create(&key, json!({ "name": name })).await;
    }
    let newest = app.get(&format!("{KEYS}/events"), &key).await.body["data"][0]["eventId"].to_string();
    let (pages, events) =
        ("?limit=3&offset=1&sort=name:asc&status=active".to_owned(), format!("/events?limit=3&before={newest}"));
    let (mut pages_shown, mut refused) = (0, 0);
    for n in 0..if is_long() { 1_000 } else { 250 } {
        let mut query = if n % 2 == 0 { pages.clone() } else { events.clone() }.into_bytes();
        let at = rand::random_range(query.iter().position(|byte| *byte == b'?').unwrap() + 1..query.len());
        query[at] ^= 1 << rand::random_range(0..8);
        // What no client can put into a request's line is none of ours.
        let Ok(query) = String::from_utf8(query) else { continue };
        let Ok(asked) = Request::builder()
            .uri(format!("{KEYS}{query}"))
            .header("host", "a")
            .header("x-api-key", &key)
            .body("".into())
        else {
            continue;
        };
        let reply = app.send(asked).await;
        match reply.status.as_u16() {
            200 => {
                let shown = reply.body["data"].as_array().unwrap().len();
                assert!(shown <= 100, "{query}: {shown} items");
                pages_shown += 1;
            }
            400 => refused += 1,
            status => panic!("{query}: {status}"),
        }
    }
    assert!(pages_shown > 0 && refused > 50, "{pages_shown} pages and {refused} refusals");
}

async fn whatever_metrics_count_has_no_series_of_its_own(database: Database) {
    let app = TestApp::on(&database).await;
    let key = app.key().await;
    let use_many = async |number: u32| {
        let mut keys = Vec::new();
        for n in 0..number {
            if n % 500 == 0 {
                keys.push(app.account(Plan::Enterprise).await.1);
            }
            let made = app.create(keys.last().unwrap(), json!({ "name": format!("series {n}") })).await;
            assert_eq!(app.get("/v1/api-keys/current", made["apiKey"].as_str().unwrap()).await.status, 200);
            app.get(&format!("/no/such/path/{n}"), &key).await;
            app.get(&format!("{KEYS}/{n}"), &key).await;
            app.get(KEYS, &with_wrong_checksum(&key)).await;
        }
        let text = String::from_utf8(app.internal_get("/metrics").await.bytes).unwrap();
        for secret in ["mk_", &key[3..11], "series", "no/such"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    // Whoever asks for the metrics is in them from the second time on.
    use_many(1).await;
    let before = use_many(5).await;
    assert_eq!(use_many(if is_long() { 20_000 } else { 300 }).await, before);
}

/// Bodies whose meaning is many times as large as they are.
fn bodies() -> Vec<String> {
    const SIZE: usize = 65_000;
    let nested = "{\"a\":".repeat(SIZE / 5);
    let members = (0..SIZE / 10).map(|n| format!("\"{n}\":1")).collect::<Vec<_>>().join(",");
    let numbers = "1,".repeat(SIZE / 2 - 10);
    vec![
        "[".repeat(SIZE),
        nested,
        format!("{{{}}}", &members[..SIZE.min(members.len())]),
        format!("{{\"name\":[{numbers}1]}}"),
        format!("{{\"name\":\"{}\"}}", "\\u0041".repeat(SIZE / 6)),
        format!("{{\"name\":[{}[]]}}", "[],".repeat(SIZE / 3 - 10)),
        format!("{{\"permissions\":[{}\"\"]}}", "\"\",".repeat(SIZE / 3 - 10)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_says_much_in_few_bytes_costs_no_more_memory_than_others() {
    let service = Service::unlimited(&[]);
    let key = service.first_key();
    let ask = async |body: &str| {
        let reply = service.send(json_request(Method::POST, KEYS, &key, body.to_owned())).await;
        assert!([400, 413].contains(&reply.status.as_u16()), "{} {}", reply.status, &body[..40]);
    };
    let mut usual = String::from("{\"name\":5");
    usual.push_str(&" ".repeat(65_000));
    for _ in 0..50 {
        ask(&format!("{usual}}}")).await;
    }
    let before = service.resident_memory();
    for body in bodies() {
        for _ in 0..20 {
            ask(&body).await;
        }
    }
    // Larger than any body may be.
    ask(&"[".repeat(1_000_000)).await;
    ask(&"[".repeat(70_000)).await;
    let grown = service.resident_memory().saturating_sub(before);
    eprintln!("{grown} bytes more after bodies that expand");
    assert!(grown < 16 * MB, "{grown} bytes");
    assert_eq!(service.send(request(Method::GET, KEYS, &key)).await.status, 200);
}
