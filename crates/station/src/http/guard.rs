//! What every request must be, and what every answer carries.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Site;

/// Only files of this site, and nobody may frame it.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every answer carries.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Lets reading requests for this host through.
pub(super) async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let refusal = if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        Some((StatusCode::METHOD_NOT_ALLOWED, allow, "this site is for reading: GET or HEAD\n").into_response())
    } else if !is_meant_for_us(request.uri(), request.headers()) {
        let text =
            "this station answers to localhost, 127.0.0.1 and [::1] only: its address was reached by another name\n";
        Some((StatusCode::FORBIDDEN, text).into_response())
    } else {
        None
    };
    let counts = &site.counts;
    let mut response = match refusal {
        Some(refusal) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            refusal
        }
        None => {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            next.run(request).await
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A foreign site whose name was made to point at this address (DNS rebinding) sends its own name as the host.
fn is_meant_for_us(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_local) && uri.authority().is_none_or(|authority| is_local(authority.as_str()))
}

/// `localhost`, `127.0.0.1` or `[::1]`, with or without a port.
fn is_local(host: &str) -> bool {
    let bracket = host.find(']').map_or(0, |end| end + 1);
    let (name, port) = match host.get(bracket..).and_then(|rest| rest.find(':')) {
        Some(colon) => host.split_at(bracket + colon),
        None => (host, ""),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok());
    port_ok && (name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("localhost", true)]
    #[case("LocalHost:8080", true)]
    #[case("127.0.0.1:1", true)]
    #[case("[::1]", true)]
    #[case("[::1]:65535", true)]
    #[case("", false)]
    #[case("evil.example", false)]
    #[case("evil.example:8080", false)]
    #[case("localhost.evil.example", false)]
    #[case("localhost:8080.evil.example", false)]
    #[case("localhost:", false)]
    #[case("localhost:99999", false)]
    #[case("127.0.0.2", false)]
    #[case("127.0.0.1@evil.example", false)]
    #[case("[::2]", false)]
    #[case("[::1]evil", false)]
    #[case("]", false)]
    fn only_this_host_s_own_names_pass(#[case] host: &str, #[case] passes: bool) {
        assert_eq!(is_local(host), passes);
    }

    #[test]
    fn a_request_names_its_host_once_and_everywhere_the_same() {
        let with = |hosts: &[&'static str], uri: &'static str| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            is_meant_for_us(&Uri::from_static(uri), &headers)
        };
        assert!(with(&["localhost:1"], "/"));
        assert!(!with(&[], "/"));
        assert!(!with(&["localhost", "evil.example"], "/"));
        assert!(!with(&["localhost"], "http://evil.example/"));
    }
}
