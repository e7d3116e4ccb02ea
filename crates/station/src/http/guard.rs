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
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// What every answer carries.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // Nobody else learns what was looked at; the site itself learns that a form was its own.
    (header::REFERRER_POLICY, "same-origin"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Lets requests for this host through: those that read, and from its own pages the two that log in and out.
pub(super) async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let changes = request.method() == Method::POST && matches!(request.uri().path(), "/login" | "/logout");
    let refusal = if !changes && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        Some((StatusCode::METHOD_NOT_ALLOWED, allow, "this site is for reading: GET or HEAD\n").into_response())
    } else if !is_meant_for_us(request.uri(), request.headers(), &site.names) {
        let text = "this station is reached by a name that is not its own: it answers to localhost, 127.0.0.1 and [::1], \
            and to those given with --http-name\n";
        Some((StatusCode::FORBIDDEN, text).into_response())
    } else if changes && !is_from_here(request.headers()) {
        Some((StatusCode::FORBIDDEN, "this comes from another site\n").into_response())
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
    if site.secure {
        let year = HeaderValue::from_static("max-age=31536000");
        response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    response
}

/// Whether a form was sent from a page of this site, as browsers tell; programs tell nothing.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key("sec-fetch-site") {
        return matches!(text("sec-fetch-site"), Some("same-origin" | "none"));
    }
    if !headers.contains_key("origin") {
        return true;
    }
    let origin = text("origin").and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text("host")
}

/// A foreign site whose name was made to point at this address (DNS rebinding) sends its own name as the host.
fn is_meant_for_us(uri: &Uri, headers: &HeaderMap, names: &[String]) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(|host| is_ours(host, names))
        && uri.authority().is_none_or(|authority| is_ours(authority.as_str(), names))
}

/// `localhost`, `127.0.0.1`, `[::1]` or one of `names`, with or without a port.
fn is_ours(host: &str, names: &[String]) -> bool {
    let bracket = host.find(']').map_or(0, |end| end + 1);
    let (name, port) = match host.get(bracket..).and_then(|rest| rest.find(':')) {
        Some(colon) => host.split_at(bracket + colon),
        None => (host, ""),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok());
    let local = name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]";
    port_ok && (local || names.iter().any(|own| own.eq_ignore_ascii_case(name)))
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
        assert_eq!(is_ours(host, &[]), passes);
        assert!(is_ours("Hub.example:8420", &["hub.example".to_owned()]));
    }

    #[test]
    fn a_request_names_its_host_once_and_everywhere_the_same() {
        let with = |hosts: &[&'static str], uri: &'static str| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            is_meant_for_us(&Uri::from_static(uri), &headers, &[])
        };
        assert!(with(&["localhost:1"], "/"));
        assert!(!with(&[], "/"));
        assert!(!with(&["localhost", "evil.example"], "/"));
        assert!(!with(&["localhost"], "http://evil.example/"));
    }

    #[test]
    fn a_form_of_another_site_is_told_from_one_s_own() {
        let with = |pairs: &[(&'static str, &'static str)]| {
            let pairs =
                pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_from_here(&pairs.collect())
        };
        assert!(with(&[]), "a program");
        assert!(with(&[("sec-fetch-site", "same-origin"), ("origin", "null")]));
        assert!(with(&[("origin", "http://localhost:1"), ("host", "localhost:1")]));
        for foreign in ["cross-site", "same-site", "x"] {
            assert!(!with(&[("sec-fetch-site", foreign)]));
        }
        for origin in ["null", "http://evil.example", "http://localhost:2"] {
            assert!(!with(&[("origin", origin), ("host", "localhost:1")]), "{origin}");
        }
    }
}
