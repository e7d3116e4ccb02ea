//! Handing something to others, for receivers of events and for alerts: what may come of it, and how HTTP says that.

use std::io;
use std::time::Duration;

/// How long somebody may take to answer, where nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How much of an answer that says no is told.
const ANSWER_CHARS_MAX: usize = 300;

/// Why something did not arrive.
#[derive(Debug)]
pub enum Refusal {
    /// It may work later: a sentence.
    Later(String),
    /// It will never be taken: a sentence.
    Never(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Later(error.to_string())
    }
}

/// Who speaks HTTP.
pub fn client() -> Result<reqwest::Client, String> {
    // Another part of the program may have installed it already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().user_agent(concat!("steward/", env!("CARGO_PKG_VERSION")));
    builder.timeout(PATIENCE).build().map_err(|error| error.to_string())
}

/// Sends a request to `url` with these further headers; it has arrived when that is answered with success.
pub async fn send(
    mut request: reqwest::RequestBuilder,
    url: &str,
    headers: &[(String, String)],
) -> Result<(), Refusal> {
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = request.send().await.map_err(|error| Refusal::Later(format!("{url}: {error}")))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = answer.text().await.unwrap_or_default();
    let told = format!("{url} answers {status}: {}", said.chars().take(ANSWER_CHARS_MAX).collect::<String>());
    Err(match status.as_u16() {
        400 | 413 | 422 => Refusal::Never(told),
        _ => Refusal::Later(told),
    })
}
