//! Requests as plain clients send them.

use std::time::Duration;

use momail_api_keys::id::{AccountId, KeyId};
use momail_api_keys::secret::Secret;
use sqlx::PgConnection;

use super::accounts::{self, Account, Accounts};
use super::baseline::X_ACCOUNT;
use super::rows::{FORWARD_AUTH, Row, Work};

const NEW_KEY: &str = r#"{"name":"Production API"}"#;
/// More keys than any server here can revoke in a second; a window without any left ends early.
const REVOKED_PER_SECOND: f64 = 15_000.0;

/// The requests of a row. Those that revoke keys are enough for the given time; the keys are made for it.
pub(crate) async fn of_row(
    row: &Row,
    accounts: &Accounts,
    session: &mut PgConnection,
    time: Duration,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let in_turn = |method, count| in_turn(method, row.path, accounts, count);
    Ok(match row.work {
        Work::Get { keys } => in_turn("GET", keys),
        Work::First => in_turn("GET", usize::MAX),
        Work::Delete { keys } => in_turn("DELETE", keys),
        Work::Create => {
            let headers_of = |account: &Account| headers(account.id, &account.keys[0]);
            accounts.writers.iter().map(|writer| request("POST", row.path, &headers_of(writer), NEW_KEY)).collect()
        }
        Work::Revoke => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is a small positive number"
            )]
            let count = (time.as_secs_f64() * REVOKED_PER_SECOND) as usize;
            revocations(row.path, &accounts.writers, session, count).await?
        }
    })
}

/// The question of a gateway, with so many keys in turn.
pub(crate) fn forward_auth(accounts: &Accounts, count: usize) -> Vec<Vec<u8>> {
    in_turn("GET", FORWARD_AUTH, accounts, count)
}

/// The same of any path.
pub(crate) fn in_turn(method: &str, path: &str, accounts: &Accounts, count: usize) -> Vec<Vec<u8>> {
    let keys = accounts.keys().take(count);
    keys.map(|(account, key)| request(method, path, &headers(account, key), "")).collect()
}

/// So many keys are made, and as many requests to revoke them.
pub(crate) async fn revocations(
    path: &str,
    owners: &[Account],
    session: &mut PgConnection,
    count: usize,
) -> anyhow::Result<Vec<Vec<u8>>> {
    let ids = accounts::add_spare_keys(session, owners, count).await?;
    Ok(to_revoke(path, owners, ids))
}

/// Of keys that belong to these accounts in turn.
pub(crate) fn to_revoke(path: &str, owners: &[Account], ids: Vec<KeyId>) -> Vec<Vec<u8>> {
    let requests = owners.iter().cycle().zip(ids).map(|(owner, id)| {
        let headers = headers(owner.id, &owner.keys[0]);
        request("DELETE", &format!("{path}/{id}"), &headers, "")
    });
    requests.collect()
}

/// Every server is sent the same headers, whether it needs them or not.
fn headers(account: AccountId, key: &Secret) -> String {
    format!("{}\r\n{X_ACCOUNT}: {}", key.expose(), account.0)
}

pub(crate) fn request(method: &str, path: &str, key: &str, body: &str) -> Vec<u8> {
    let about_body = match body.len() {
        0 => String::new(),
        length => format!("content-type: application/json\r\ncontent-length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\n{about_body}\r\n{body}").into_bytes()
}
