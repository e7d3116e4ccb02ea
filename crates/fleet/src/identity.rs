//! As whom one connects: a `.creds` file that nobody else can read, a key that a command prints, or what the `nats` command
//! line knows.
//!
//! What is secret goes from where it is kept into memory, and nowhere else: it is never logged, printed or written.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bus::BusError;
use bus::claims::Creds;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::context::Context;
use crate::error::FleetError;
use crate::files;

/// How long a command may take to print a key: a person may have to touch something.
const KEY_COMMAND_MAX: Duration = Duration::from_secs(30);
/// What it may print at most.
const KEY_BYTES_MAX: u64 = 4096;

/// The credentials of a context.
pub(crate) async fn creds(context: &Context) -> Result<Creds, FleetError> {
    let path = &context.creds;
    let wrong = |reason: String| BusError::Credentials { path: path.display().to_string(), reason };
    let text = files::read(path)?.ok_or_else(|| wrong("there is no such file".into()))?;
    let Some(command) = &context.key_command else {
        files::check_secret(path)?;
        return Ok(Creds::parse(&text).map_err(|error| wrong(error.to_string()))?);
    };
    let seed = key_from_command(command).await?;
    // A token without its key is no secret.
    Ok(Creds::with_seed(&text, &seed)
        .map_err(|error| wrong(format!("with the key that `{}` gives: {error}", command[0])))?)
}

/// The seed that a command prints. It may ask the person at the terminal; what it prints otherwise is not shown.
///
/// # Errors
/// [`FleetError::Usage`] with what went wrong, but never with what it printed.
pub async fn key_from_command(command: &[String]) -> Result<String, FleetError> {
    let [program, arguments @ ..] = command else {
        return Err(FleetError::usage(
            "the key command is empty: name a program, like key_command = [\"pass\", \"show\", \"steward\"]",
        ));
    };
    let wrong = |reason: String| FleetError::usage(format!("the key command `{program}` gave no key: {reason}"));
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| wrong(format!("it cannot be started ({error})")))?;
    let stdout = child.stdout.take().ok_or_else(|| wrong("it has no output".into()))?;
    let read = async {
        let mut bytes = Vec::new();
        stdout.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 > KEY_BYTES_MAX {
            return Ok(Err(format!("it printed more than {KEY_BYTES_MAX} bytes")));
        }
        let status = child.wait().await?;
        if !status.success() {
            return Ok(Err(format!("it ended with {status}")));
        }
        Ok::<_, std::io::Error>(Ok(bytes))
    };
    let bytes = tokio::time::timeout(KEY_COMMAND_MAX, read)
        .await
        .map_err(|_| wrong(format!("it was not done within {} s", KEY_COMMAND_MAX.as_secs())))?
        .map_err(|error| wrong(error.to_string()))?
        .map_err(wrong)?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("what it printed is not text".into()))?;
    let seed = text.trim();
    match nkeys::KeyPair::from_seed(seed) {
        Ok(_) => Ok(seed.to_owned()),
        Err(_) => Err(wrong("what it printed is not an nkey seed (one line, SU…)".into())),
    }
}

/// What a context of the `nats` command line says of where and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsContext {
    /// Where the broker is, if it says so.
    pub server: Option<String>,
    /// The credentials.
    pub creds: PathBuf,
}

#[derive(Deserialize)]
struct NatsContextFile {
    #[serde(default)]
    url: String,
    #[serde(default)]
    creds: String,
    #[serde(default)]
    nkey: String,
    #[serde(default)]
    nsc: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    token: String,
}

impl NatsContext {
    /// Reads the context `name` below `config`, the directory `nats` of a person's configuration.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when there is none, [`FleetError::File`] when it does not name credentials.
    pub fn load(config: &Path, name: &str) -> Result<Self, FleetError> {
        let plain = |c: char| !matches!(c, '/' | '\\' | '\0');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(FleetError::usage(format!("{name:?} cannot be the name of a context of `nats`")));
        }
        let path = config.join("context").join(format!("{name}.json"));
        let text = files::read(&path)?.ok_or_else(|| {
            FleetError::usage(format!(
                "the `nats` command line has no context {name} ({} is not there); `nats context ls` lists them",
                path.display()
            ))
        })?;
        let wrong = |reason: &str| FleetError::File { path: path.clone(), reason: reason.to_owned() };
        let read: NatsContextFile = serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
        if read.creds.is_empty() {
            let has = [
                (&read.nkey, "an nkey"),
                (&read.nsc, "a user of nsc"),
                (&read.token, "a token"),
                (&read.user, "a user name"),
            ];
            let has = has.iter().find(|(value, _)| !value.is_empty()).map_or("nobody", |(_, what)| what);
            return Err(wrong(&format!(
                "it connects as {has}, and a fleet's broker lets in whoever has a .creds file: `nats context edit {name}` \
                 and set creds, or use --creds FILE"
            )));
        }
        let creds = PathBuf::from(&read.creds);
        let creds = match (read.creds.strip_prefix("~/"), config.parent().and_then(Path::parent)) {
            (Some(below), Some(home)) => home.join(below),
            _ => creds,
        };
        Ok(Self { server: Some(read.url).filter(|url| !url.is_empty()), creds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Vec<String> {
        ["sh", "-c", line].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_key_command_is_bounded_and_its_output_never_told() {
        let pair = nkeys::KeyPair::new_user();
        let seed = pair.seed().unwrap();
        assert_eq!(key_from_command(&command(&format!("echo {seed}"))).await.unwrap(), seed);
        for (line, why) in [
            ("echo secret-nonsense", "not an nkey seed"),
            ("echo secret; exit 3", "exit status: 3"),
            ("yes secret", "more than"),
            ("printf '\\377'", "not text"),
        ] {
            let error = key_from_command(&command(line)).await.unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{line}: {error}");
        }
        let error = key_from_command(&["/nowhere/at/all".to_owned()]).await.unwrap_err().to_string();
        assert!(error.contains("cannot be started"), "{error}");
        assert!(key_from_command(&[]).await.is_err());
    }

    #[test]
    fn contexts_of_the_nats_command_line_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join(".config/nats");
        std::fs::create_dir_all(config.join("context")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(config.join(format!("context/{name}.json")), text).unwrap();
        write("a", r#"{"description":"", "url":"nats://far:4222", "creds":"~/a.creds", "inbox_prefix":"x", "ca":""}"#);
        let read = NatsContext::load(&config, "a").unwrap();
        assert_eq!(read, NatsContext { server: Some("nats://far:4222".into()), creds: dir.path().join("a.creds") });
        write("b", r#"{"url":"", "creds":"/b.creds"}"#);
        assert_eq!(NatsContext::load(&config, "b").unwrap(), NatsContext { server: None, creds: "/b.creds".into() });
        write("c", r#"{"nkey":"/c.nk"}"#);
        assert!(NatsContext::load(&config, "c").unwrap_err().to_string().contains("an nkey"));
        for bad in ["", "..", "../a", "x/y", "missing"] {
            assert_eq!(NatsContext::load(&config, bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
