//! `--secret NAME=…`: where values come from. Never from the command line itself, which every user of this machine sees,
//! and which a shell writes down.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use message::Secrets;
use message::secret::SECRET_BYTES_MAX;
use zeroize::Zeroizing;

use crate::exit::Usage;

/// What is sealed to each node for its program.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SecretArgs {
    /// A file that only the program on the node can read, as $STEWARD_SECRETS/NAME; NAME=- for standard input, NAME=env:VAR
    /// for a variable (repeatable)
    #[arg(long = "secret", value_name = "NAME=@FILE")]
    given: Vec<String>,
}

impl SecretArgs {
    /// Reads the values.
    pub(crate) fn read(&self) -> anyhow::Result<Secrets> {
        let mut secrets = Secrets::default();
        for given in &self.given {
            let (name, value) = read_one(given)?;
            secrets.add(&name, value).map_err(|error| Usage::new(error.to_string()))?;
        }
        Ok(secrets)
    }

    /// Whether one of them is on standard input, and nothing else can be.
    pub(crate) fn uses_stdin(&self) -> bool {
        self.given.iter().any(|given| given.ends_with("=-"))
    }
}

fn read_one(given: &str) -> anyhow::Result<(String, Zeroizing<Vec<u8>>)> {
    // What stands there may be a value: it is not repeated.
    let Some((name, from)) = given.split_once('=') else {
        return Err(Usage::new("a secret is written --secret NAME=@FILE, NAME=- or NAME=env:VAR").into());
    };
    let value = if let Some(path) = from.strip_prefix('@') {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read the secret {name} from {path}"))?;
        read_bounded(file, name, &Path::new(path).display().to_string())?
    } else if from == "-" {
        read_bounded(std::io::stdin().lock(), name, "standard input")?
    } else if let Some(variable) = from.strip_prefix("env:") {
        let value = std::env::var_os(variable)
            .with_context(|| format!("the secret {name} is to come from the variable {variable}, which is not set"))?;
        Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
    } else {
        return Err(Usage::new(format!(
            "the secret {name} does not belong on a command line, which others can see: write it to a file and give \
             --secret {name}=@FILE, or {name}=- for standard input, or {name}=env:VAR for a variable"
        ))
        .into());
    };
    Ok((name.to_owned(), value))
}

fn read_bounded(from: impl std::io::Read, name: &str, place: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // With all its room at once: a vector that grows leaves copies behind.
    let mut value = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 2));
    from.take(SECRET_BYTES_MAX as u64 + 1)
        .read_to_end(&mut value)
        .with_context(|| format!("cannot read the secret {name} from {place}"))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Secrets, String> {
        let given = given.iter().map(|&text| text.to_owned()).collect();
        SecretArgs { given }.read().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_secret_comes_from_a_file_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"hunter2\n").unwrap();
        let secrets = read(&[&format!("A=@{}", path.display())]).unwrap();
        assert_eq!(secrets.iter().collect::<Vec<_>>(), [("A", b"hunter2\n".as_slice())]);
        std::fs::write(&path, vec![b'x'; SECRET_BYTES_MAX + 1]).unwrap();
        assert!(read(&[&format!("A=@{}", path.display())]).unwrap_err().contains("at most"));
    }

    #[test]
    fn what_is_written_on_the_command_line_is_refused_and_not_repeated() {
        for given in [&["PASSWORD=hunter2"][..], &["hunter2"], &["A=env:NO_SUCH_hunter", "A=hunter2"]] {
            let error = read(given).unwrap_err();
            assert!(!error.contains("hunter2") && error.contains("secret"), "{error}");
        }
    }
}
