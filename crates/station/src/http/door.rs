//! Who is asking: the holder of a token, the browser of one, anyone where that is enough, or nobody.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, header};
use data_encoding::BASE64URL_NOPAD;
use message::Timestamp;

use crate::access::{Role, TokenEntry, Tokens, digest};

/// The name of the cookie.
const COOKIE: &str = "steward_session";
/// How long a browser stays logged in.
pub(super) const SESSION_MAX: Duration = Duration::from_secs(12 * 3600);
/// So many browsers are logged in at a time; the oldest is logged out for a newer one.
const SESSIONS_MAX: usize = 1000;
/// So often it is looked whether the tokens have changed.
const LOOK: Duration = Duration::from_secs(1);

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// It is not asked: on loopback, as long as there are no tokens.
    Anyone,
    /// Who has shown a token, or whose browser has.
    Holder { name: String, role: Role, by_cookie: bool },
    /// Nobody: why, as a sentence.
    Nobody(&'static str),
}

impl Who {
    /// What it may see.
    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::Anyone => Some(Role::Read),
            Self::Holder { role, .. } => Some(*role),
            Self::Nobody(_) => None,
        }
    }
}

/// Knows who is who.
pub(crate) struct Door {
    tokens: Tokens,
    /// Whether nobody is let in without a token, also when there are none.
    strict: bool,
    known: Mutex<Known>,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Default)]
struct Known {
    looked: Option<Instant>,
    /// The file's inode too: two changes within a tick of the clock may leave its time and its length as they were.
    stamp: Option<(u64, SystemTime, u64)>,
    /// `None`: the file cannot be read, and nobody is let in.
    entries: Option<Vec<TokenEntry>>,
}

#[derive(Clone)]
struct Session {
    token: String,
    until: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is made in one step, also when somebody else has panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    pub(crate) fn new(tokens: Tokens, strict: bool) -> Self {
        Self { tokens, strict, known: Mutex::default(), sessions: Mutex::default() }
    }

    /// Who sends these headers.
    pub(crate) fn who(&self, headers: &HeaderMap, at: Instant, now: Timestamp) -> Who {
        let known = self.look(at);
        let Some(entries) = &known.entries else {
            return Who::Nobody("the tokens of this station cannot be read; its log says why");
        };
        if entries.is_empty() && !self.strict {
            return Who::Anyone;
        }
        let valid = |sha256: &str| {
            entries.iter().find(|entry| entry.sha256 == sha256 && entry.expires.is_none_or(|end| now < end))
        };
        let holder =
            |entry: &TokenEntry, by_cookie| Who::Holder { name: entry.name.clone(), role: entry.role, by_cookie };
        if let Some(shown) = bearer(headers) {
            let entry = valid(&digest(shown));
            return entry.map_or(Who::Nobody("this token is not known, or has ended"), |entry| holder(entry, false));
        }
        if let Some(session) = cookie(headers) {
            let session = locked(&self.sessions).get(&digest(session)).filter(|session| at < session.until).cloned();
            let entry = session.and_then(|session| valid(&session.token));
            return entry.map_or(Who::Nobody("the log-in has ended"), |entry| holder(entry, true));
        }
        Who::Nobody("a token is needed (`steward station token add NAME` makes one)")
    }

    /// Logs a browser in: what its cookie is to be, if the token is valid.
    pub(crate) fn log_in(&self, secret: &str, at: Instant, now: Timestamp) -> Option<String> {
        let token = digest(secret.trim());
        let known = self.look(at);
        known
            .entries
            .as_ref()?
            .iter()
            .find(|entry| entry.sha256 == token && entry.expires.is_none_or(|end| now < end))?;
        drop(known);
        let mut bits = [0; 32];
        getrandom::fill(&mut bits).ok()?;
        let session = BASE64URL_NOPAD.encode(&bits);
        let mut sessions = locked(&self.sessions);
        sessions.retain(|_, session| at < session.until);
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.until).map(|(key, _)| key.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(digest(&session), Session { token, until: at + SESSION_MAX });
        Some(session)
    }

    /// Logs a browser out.
    pub(crate) fn log_out(&self, headers: &HeaderMap) {
        if let Some(session) = cookie(headers) {
            locked(&self.sessions).remove(&digest(session));
        }
    }

    fn look(&self, at: Instant) -> MutexGuard<'_, Known> {
        let mut known = locked(&self.known);
        if known.looked.is_some_and(|looked| at.saturating_duration_since(looked) < LOOK) {
            return known;
        }
        known.looked = Some(at);
        let stamp = std::fs::metadata(self.tokens.path())
            .ok()
            .and_then(|meta| Some((meta.ino(), meta.modified().ok()?, meta.len())));
        if known.entries.is_none() || known.stamp != stamp || stamp.is_none() {
            known.stamp = stamp;
            known.entries = match self.tokens.list() {
                Ok(entries) => Some(entries),
                Err(error) => {
                    tracing::error!(%error, "nobody is let in");
                    None
                }
            };
        }
        known
    }
}

/// The cookie of a session; an empty one ends it.
pub(super) fn set_cookie(session: &str, secure: bool) -> String {
    let age = if session.is_empty() { 0 } else { SESSION_MAX.as_secs() };
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={session}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn without_tokens_anyone_looks_on_loopback_and_nobody_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("tokens.json"));
        let ask = |door: &Door| door.who(&HeaderMap::new(), Instant::now(), Timestamp::default());
        assert_eq!(ask(&Door::new(tokens.clone(), false)), Who::Anyone);
        assert!(matches!(ask(&Door::new(tokens.clone(), true)), Who::Nobody(why) if why.contains("token add")));
        // A file that cannot be understood lets nobody in.
        std::fs::write(tokens.path(), "{").unwrap();
        assert!(matches!(ask(&Door::new(tokens, false)), Who::Nobody(why) if why.contains("cannot be read")));
    }

    #[test]
    fn a_token_is_good_until_it_ends_or_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("tokens.json"));
        let at = Timestamp::from_ms;
        let secret = tokens.add("anna", Role::Watch, at(0), Some(at(1000))).unwrap();
        let door = Door::new(tokens.clone(), false);
        let (begun, by) = (Instant::now(), headers(header::AUTHORIZATION, &format!("bearer {secret}")));
        let anna = Who::Holder { name: "anna".into(), role: Role::Watch, by_cookie: false };
        assert_eq!(door.who(&by, begun, at(999)), anna);
        assert!(matches!(door.who(&by, begun, at(1000)), Who::Nobody(_)));
        let wrong = headers(header::AUTHORIZATION, &format!("Bearer {secret}x"));
        assert!(matches!(door.who(&wrong, begun, at(0)), Who::Nobody(_)));
        assert!(matches!(door.who(&HeaderMap::new(), begun, at(0)), Who::Nobody(_)));
        tokens.add("other", Role::Read, at(0), None).unwrap();
        tokens.remove("anna").unwrap();
        assert!(matches!(door.who(&by, begun + LOOK, at(0)), Who::Nobody(_)), "within a second");
    }

    #[test]
    fn a_browser_is_logged_in_for_as_long_as_its_token_holds() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(dir.path().join("tokens.json"));
        let (begun, now) = (Instant::now(), Timestamp::from_ms(0));
        let secret = tokens.add("anna", Role::Read, now, None).unwrap();
        let door = Door::new(tokens.clone(), false);
        assert_eq!(door.log_in("wrong", begun, now), None);
        let session = door.log_in(&format!(" {secret}\n"), begun, now).unwrap();
        let by = headers(header::COOKIE, &format!("a=b; {COOKIE}={session}"));
        let anna = Who::Holder { name: "anna".into(), role: Role::Read, by_cookie: true };
        assert_eq!(door.who(&by, begun, now), anna);
        let other = door.log_in(&secret, begun, now).unwrap();
        door.log_out(&by);
        assert!(matches!(door.who(&by, begun, now), Who::Nobody(_)));
        let by = headers(header::COOKIE, &format!("{COOKIE}={other}"));
        assert_eq!(door.who(&by, begun, now), anna);
        tokens.add("last", Role::Read, now, None).unwrap();
        tokens.remove("anna").unwrap();
        assert!(matches!(door.who(&by, begun + LOOK, now), Who::Nobody(_)));
        let session = door.log_in(&tokens.add("bert", Role::Read, now, None).unwrap(), begun + 2 * LOOK, now).unwrap();
        let by = headers(header::COOKIE, &format!("{COOKIE}={session}"));
        assert!(matches!(door.who(&by, begun + SESSION_MAX, now), Who::Holder { .. }));
        let over = door.who(&by, begun + 2 * LOOK + SESSION_MAX, now);
        assert!(matches!(over, Who::Nobody(why) if why.contains("ended")));
    }

    #[test]
    fn a_cookie_is_for_this_site_and_for_no_script() {
        let cookie = set_cookie("x", true);
        for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Secure"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        assert!(!set_cookie("x", false).contains("Secure") && set_cookie("", false).contains("Max-Age=0"));
    }
}
