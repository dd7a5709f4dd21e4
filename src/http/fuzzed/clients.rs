//! The address that a request comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

use crate::http::client::{X_FORWARDED_FOR, forwarded_for as client};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Lines of `X-Forwarded-For`, with a line break between them.
///
/// # Panics
/// If another address is found than the right-most that is none of our proxies'.
pub fn forwarded_for(bytes: &[u8]) {
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
    let mut headers = HeaderMap::new();
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').take(32) {
        let Ok(value) = HeaderValue::from_bytes(line) else { continue };
        entries.extend(line.split(|byte| *byte == b',').map(<[u8]>::to_vec));
        headers.append(X_FORWARDED_FOR, value);
    }
    assert_eq!(client(&headers, STRANGER, &trusted), STRANGER, "only proxies are believed");

    let is_ours = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut from_the_right = entries.iter().rev().map(|entry| address_of(entry));
    let expected = from_the_right.find(|found| !found.is_some_and(is_ours)).flatten().unwrap_or(PROXY);
    let found = client(&headers, PROXY, &trusted);
    assert_eq!(found, expected);
    assert!(found == PROXY || !is_ours(found));

    // What the client itself wrote stands further left, where nobody looks once an address is found.
    if found != PROXY {
        let mut forged = HeaderMap::new();
        forged.append(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.99, 10.9.9.9,, x"));
        for line in headers.get_all(X_FORWARDED_FOR) {
            forged.append(X_FORWARDED_FOR, line.clone());
        }
        assert_eq!(client(&forged, PROXY, &trusted), found);
    }
}

/// `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address_of(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.rsplit_once(']')?;
            match port.strip_prefix(':') {
                // A zone may stand there only beside a port, as in the texts of sockets.
                Some(port) => IpAddr::V6(without_zone(inner)?.parse::<Ipv6Addr>().ok().filter(|_| is_port(port))?),
                None if port.is_empty() => inner.parse().ok()?,
                None => return None,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => IpAddr::V4(host.parse().ok().filter(|_| is_port(port))?),
            _ => text.parse().ok()?,
        },
    };
    match address {
        IpAddr::V6(address) => Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)),
        IpAddr::V4(address) => Some(IpAddr::V4(address)),
    }
}

fn without_zone(text: &str) -> Option<&str> {
    match text.split_once('%') {
        Some((address, zone)) => is_number(zone, u32::MAX.into()).then_some(address),
        None => Some(text),
    }
}

fn is_port(text: &str) -> bool {
    is_number(text, u16::MAX.into())
}

fn is_number(text: &str, max: u64) -> bool {
    let significant = text.trim_start_matches('0');
    let is_decimal = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    is_decimal && significant.len() <= 10 && significant.parse().unwrap_or(0) <= max
}
