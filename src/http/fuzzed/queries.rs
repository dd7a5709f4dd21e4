//! The query of a list.

use chrono::DateTime;

use super::{check_refusal, name_of};
use crate::http::keys::{Asked, Offset, read_search};
use crate::http::query::{Limit, Parameters};
use crate::key::Status;
use crate::store::{By, Order};

const ORDERS: [(&str, By); 4] =
    [("createdAt", By::CreatedAt), ("lastUsed", By::LastUsed), ("name", By::Name), ("expirationTs", By::Expiration)];

/// What a stranger writes after a question mark.
///
/// # Panics
/// If what is read differs from what the simpler reading says.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = Parameters::parse(text).and_then(|parameters| read_search(parameters, DateTime::UNIX_EPOCH));
    match (read, model(text)) {
        (Ok(Asked { search, page }), Some(expected)) => {
            let asked = page.map(|(Limit(limit), Offset(offset))| (limit, offset));
            let is_page = expected.limit.is_some() || expected.offset.is_some();
            let (limit, offset) = (expected.limit.unwrap_or(100), expected.offset.unwrap_or(0));
            assert_eq!(asked, is_page.then_some((limit, offset)));
            let span = if is_page { (limit, offset) } else { (u32::MAX, 0) };
            assert_eq!((search.limit, search.offset), span);
            assert_eq!(search.status.map(Status::as_str), expected.status.as_deref());
            assert_eq!(search.part_of_name, expected.part_of_name);
            assert_eq!(search.order, expected.order);
        }
        (Err(refusal), None) => check_refusal(&refusal),
        (Ok(_), None) => panic!("it was read, and should have been refused"),
        (Err(refusal), Some(_)) => panic!("it should have been read: {refusal:?}"),
    }
}

struct Expected {
    limit: Option<u32>,
    offset: Option<u32>,
    order: Order,
    status: Option<String>,
    part_of_name: Option<String>,
}

/// `None` if the query is to be refused.
fn model(text: &str) -> Option<Expected> {
    let mut expected = Expected {
        limit: None,
        offset: None,
        order: Order { by: By::CreatedAt, descending: true },
        status: None,
        part_of_name: None,
    };
    let mut known = Vec::new();
    for parameter in text.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let (name, value) = (decoded(name), decoded(value));
        if known.contains(&name) {
            return None;
        }
        match name.as_str() {
            "limit" => expected.limit = Some(number(&value, 1, 100)?),
            "offset" => expected.offset = Some(number(&value, 0, 1_000_000)?),
            "sort" => expected.order = order(&value)?,
            "status" if ["active", "expired", "disabled"].contains(&value.as_str()) => expected.status = Some(value),
            "q" => expected.part_of_name = Some(name_of(&value)?.to_owned()),
            _ => return None,
        }
        known.push(name);
    }
    Some(expected)
}

fn order(text: &str) -> Option<Order> {
    ORDERS.into_iter().find_map(|(name, by)| match text.strip_prefix(name)? {
        "" | ":asc" => Some(Order { by, descending: false }),
        ":desc" => Some(Order { by, descending: true }),
        _ => None,
    })
}

/// Digits, with zeros in front or without, and a minus before a zero.
fn number(text: &str, least: u32, most: u32) -> Option<u32> {
    let (minus, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    let number = if significant.is_empty() { 0 } else { significant.parse().ok()? };
    let is_negative = minus && number > 0;
    (!is_negative && (least..=most).contains(&number)).then_some(number)
}

/// `+` is a blank, `%` and two digits are a byte, and what is no UTF-8 is replaced.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let digit = |at: usize| others.get(at).and_then(|c| char::from(*c).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'+', ..) => bytes.push(b' '),
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = &others[2..];
                continue;
            }
            _ => bytes.push(*first),
        }
        rest = others;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
