//! Who speaks HTTP for an agent: one client for the method `httpget` and for sources of events.

use std::sync::OnceLock;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{RequestBuilder, Url};

/// A request for `url`.
///
/// # Errors
/// A sentence, when it is no address, or a header is none.
pub(crate) fn get<'a>(
    url: &str,
    headers: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<RequestBuilder, String> {
    let mut checked = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header's name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("the value of header {name} is not allowed"))?;
        checked.insert(name, value);
    }
    let parsed = Url::parse(url).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(format!("{url:?} is neither http:// nor https://"));
    }
    Ok(client()?.get(parsed).headers(checked))
}

fn client() -> Result<&'static reqwest::Client, String> {
    static CLIENT: OnceLock<Result<reqwest::Client, String>> = OnceLock::new();
    CLIENT
        .get_or_init(|| {
            // Another part of the program may have installed it already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::builder()
                .user_agent(concat!("steward/", env!("CARGO_PKG_VERSION")))
                .pool_max_idle_per_host(0)
                .build()
                .map_err(|error| chain(&error))
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// reqwest's own message names neither cause nor remedy: the chain of causes does.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
