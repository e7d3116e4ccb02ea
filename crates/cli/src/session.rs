//! What a verb works with: the global flags, the way out, and the fleet that they lead to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use fleet::{Context, Fleet, Home, NatsContext};
use message::Complaint;
use tokio::sync::mpsc::Receiver;

use crate::args::Global;
use crate::exit::Usage;
use crate::out::Out;

/// The home below a person's own.
const HOME_NAME: &str = ".steward";

/// One run of the program.
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) out: Out,
    /// What this program warns of, if it is a service.
    pub(crate) complaints: Option<Receiver<Complaint>>,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        let out = Out::new(&global);
        Self { global, out, complaints: None }
    }

    /// Where keys and contexts live.
    pub(crate) fn home(&self) -> anyhow::Result<Home> {
        let dir = match &self.global.home {
            Some(dir) => dir.clone(),
            None => default_home().ok_or_else(|| {
                Usage::new("HOME is not set: say where keys and contexts live with --home DIR or STEWARD_HOME")
            })?,
        };
        let dir = std::path::absolute(&dir).with_context(|| format!("cannot make {} absolute", dir.display()))?;
        Ok(Home::new(dir))
    }

    /// The context in use, with what the flags override.
    pub(crate) fn context(&self) -> anyhow::Result<Context> {
        let mut context = Context::load(&self.home()?, self.global.context.as_deref())?;
        if let Some(name) = &self.global.nats_context {
            let nats = NatsContext::load(&nats_config()?, name)?;
            context.server = nats.server.unwrap_or(context.server);
            (context.creds, context.key_command) = (nats.creds, None);
        }
        if let Some(ca) = &self.global.ca {
            context.ca = Some(ca.clone());
        }
        // What was said for this one command goes before what was said for all.
        let said = self.global.nats_context.is_none();
        if let Some(server) = self.global.server.as_ref().filter(|url| said || !is_variable("NATS_URL", Path::new(url)))
        {
            context.server.clone_from(server);
        }
        if let Some(creds) = self.global.creds.as_ref().filter(|path| said || !is_variable("NATS_CREDS", path)) {
            context.creds.clone_from(creds);
            context.key_command = None;
        }
        Ok(context)
    }

    /// The fleet of the context in use.
    pub(crate) async fn connect(&self) -> anyhow::Result<Fleet> {
        // Boxed: it is the largest part of every verb.
        Ok(Box::pin(Fleet::connect(&self.context()?)).await?)
    }

    /// How long one execution may take.
    pub(crate) fn execution_timeout(&self) -> Duration {
        self.global.timeout.unwrap_or(Duration::from_secs(60))
    }

    /// Refuses flags that say where the fleet is, for verbs that decide it themselves. Variables may be set for
    /// other programs, and are passed over.
    pub(crate) fn refuse_server_flags(&self, verb: &str) -> anyhow::Result<()> {
        let server = self.global.server.as_ref().is_some_and(|url| !is_variable("NATS_URL", Path::new(url)));
        let creds = self.global.creds.as_ref().is_some_and(|path| !is_variable("NATS_CREDS", path));
        let flags = [(server, "--server"), (creds, "--creds"), (self.global.nats_context.is_some(), "--nats-context")];
        if let Some((_, flag)) = flags.iter().find(|(said, _)| *said) {
            return Err(Usage::new(format!(
                "`steward {verb}` has no use for {flag}: it works on its own home's broker"
            ))
            .into());
        }
        Ok(())
    }

    /// The flags that a further command needs to reach the same fleet, with a space before each.
    pub(crate) fn flags_again(&self) -> String {
        let mut flags = String::new();
        let variable = std::env::var_os("STEWARD_HOME").map(PathBuf::from);
        if let Some(home) = self.global.home.as_ref().filter(|home| Some(*home) != variable.as_ref()) {
            let known =
                default_home().is_some_and(|default| std::path::absolute(home).is_ok_and(|home| home == default));
            if !known {
                flags.push_str(&format!(" --home {}", shell_word(&home.to_string_lossy())));
            }
        }
        if let Some(context) = &self.global.context {
            flags.push_str(&format!(" --context {}", shell_word(context)));
        }
        if let Some(context) = &self.global.nats_context {
            flags.push_str(&format!(" --nats-context {}", shell_word(context)));
        }
        flags
    }
}

/// Whether a value is what a variable says, which may be set for other programs.
fn is_variable(variable: &str, value: &Path) -> bool {
    std::env::var_os(variable).is_some_and(|set| set == *value)
}

/// Where the `nats` command line keeps what it knows.
fn nats_config() -> anyhow::Result<PathBuf> {
    let set = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let config = config.ok_or_else(|| Usage::new("HOME is not set, so that there is no context of `nats`"))?;
    Ok(config.join("nats"))
}

fn default_home() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(HOME_NAME))
}

/// `text` as a shell takes it for one word.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_only_where_a_shell_would_trip() {
        assert_eq!(shell_word("/tmp/a-b"), "/tmp/a-b");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
