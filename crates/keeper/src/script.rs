//! A script lies in a file for as long as it runs.

use std::ffi::OsString;
use std::io::Write as _;

use tempfile::NamedTempFile;

/// Stores a script for execution by `user`; it is gone when the file is dropped. An error is a sentence.
pub(crate) fn store(text: &str, user: Option<&str>) -> Result<(NamedTempFile, OsString), String> {
    let file = write(text, user).map_err(|error| format!("the script could not be stored for execution: {error}"))?;
    let path = file.path().into();
    Ok((file, path))
}

fn write(text: &str, user: Option<&str>) -> std::io::Result<NamedTempFile> {
    // Only its owner may read it: a script may hold secrets.
    let mut file = tempfile::Builder::new().prefix("steward-script-").tempfile()?;
    file.write_all(text.as_bytes())?;
    if let Some(name) = user
        && let Some(user) = nix::unistd::User::from_name(name).map_err(std::io::Error::from)?
    {
        nix::unistd::chown(file.path(), Some(user.uid), Some(user.gid)).map_err(std::io::Error::from)?;
    }
    Ok(file)
}
