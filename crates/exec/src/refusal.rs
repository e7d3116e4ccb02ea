//! Why a program cannot be started, in a sentence that names what was tried, what was found and what to do.
//!
//! Checks what can be known before, finds the program, and explains what the kernel refused. Starts nothing.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::program::Program;
use crate::user::{PATH, Stage};

/// Where a program is looked for if there is no `PATH` at all, as `execvp` does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Checks what no program may contain; gives back its name.
pub(crate) fn check(program: &Program) -> Result<&OsStr, String> {
    let Some(name) = program.argv.first().filter(|name| !name.is_empty()) else {
        return Err("no program is given: the first argument names it".to_owned());
    };
    let nul = |text: &OsStr| text.as_bytes().contains(&0);
    if let Some(at) = program.argv.iter().position(|argument| nul(argument)) {
        return Err(format!(
            "argument {at} contains a NUL byte, which no program can be given: pass such data by stdin"
        ));
    }
    for (name, value) in &program.env {
        if name.is_empty() || nul(name) || name.as_bytes().contains(&b'=') {
            return Err(format!("{name:?} cannot be the name of an environment variable: use letters, digits and `_`"));
        }
        if nul(value) {
            return Err(format!("the environment variable {name:?} contains a NUL byte: pass such data by stdin"));
        }
    }
    match &program.cwd {
        Some(cwd) if nul(cwd.as_os_str()) => Err("the working directory contains a NUL byte".to_owned()),
        _ => Ok(name),
    }
}

/// Finds what to execute: always a path with `/` in it, relative ones counting from the child's working directory.
pub(crate) fn find(program: &Program, name: &OsStr, somebody_else: bool) -> Result<PathBuf, String> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = search_path(program, somebody_else);
    let mut unusable = None;
    for folder in std::env::split_paths(&path) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        let candidate = folder.join(name);
        let seen = from_cwd(program, &candidate);
        let Ok(found) = fs::metadata(&seen) else { continue };
        if found.is_file() && access(&seen, AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        }
        unusable.get_or_insert(seen);
    }
    if let Some(reason) = cwd_trouble(program) {
        return Err(reason);
    }
    Err(match unusable {
        Some(found) => not_executable(&found, None),
        None => format!(
            "there is no program {name:?} in the PATH of the child ({}): install it, give its full path, or set PATH",
            path.display()
        ),
    })
}

/// Explains what came back from trying to start `path`.
pub(crate) fn explain(program: &Program, path: &Path, error: &io::Error) -> String {
    let (stage, error) = Stage::of(error);
    let user = program.user.as_deref();
    match (stage, &program.cwd) {
        (Some(Stage::Become), _) => {
            let user = user.unwrap_or_default();
            return format!("cannot become the user {user:?}: {error}; this process needs CAP_SETUID and CAP_SETGID");
        }
        (Some(Stage::Enter), Some(cwd)) => {
            return cwd_trouble(program).unwrap_or_else(|| cannot_enter(cwd, user, &error));
        }
        _ => {}
    }
    if let Some(reason) = cwd_trouble(program) {
        return reason;
    }
    let seen = from_cwd(program, path);
    let shown = seen.display();
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::ENOENT => not_found(&seen),
        Errno::EACCES | Errno::EPERM => not_executable(&seen, user),
        Errno::ENOTDIR => format!("a part of the path {shown} is not a directory: check the path"),
        Errno::ENOEXEC => format!(
            "{shown} is neither a script with a `#!` line nor a program for this kind of machine ({}): add a first line such as \
             `#!/bin/sh`, or install the right build",
            std::env::consts::ARCH
        ),
        Errno::E2BIG => format!(
            "the arguments and added environment of {shown} take {} bytes, more than this system allows (128 KiB for a single one): \
             pass the data by stdin or in a file",
            bytes_passed(program)
        ),
        Errno::ETXTBSY => format!("{shown} is being written by somebody: try again when that is finished"),
        Errno::EAGAIN => format!(
            "no more processes may be started here, so {shown} was not: end some, or raise `ulimit -u` or pids.max"
        ),
        Errno::ENOMEM => format!("there is not enough memory to start {shown}: free some, and try again"),
        Errno::EMFILE | Errno::ENFILE => no_descriptors(&error),
        _ => format!("{shown} cannot be started: {error}"),
    }
}

/// What to say when pipes cannot be made.
pub(crate) fn no_descriptors(error: &io::Error) -> String {
    format!(
        "this process has no file descriptors left for another program ({error}): raise `ulimit -n`, or run fewer at a time"
    )
}

/// What is wrong with the working directory, if anything is.
fn cwd_trouble(program: &Program) -> Option<String> {
    let cwd = program.cwd.as_ref()?;
    let shown = cwd.display();
    match fs::metadata(cwd) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("the working directory {shown} does not exist: create it, or give another"))
        }
        Err(error) => Some(cannot_enter(cwd, None, &error)),
        Ok(found) if !found.is_dir() => Some(format!("the working directory {shown} is not a directory: give another")),
        Ok(_) => {
            let error = access(cwd, AccessFlags::X_OK).err()?;
            Some(cannot_enter(cwd, None, &error.into()))
        }
    }
}

fn cannot_enter(cwd: &Path, user: Option<&str>, error: &io::Error) -> String {
    let who = user.map(|user| format!(" by the user {user:?}")).unwrap_or_default();
    format!(
        "the working directory {} cannot be entered{who}: {error}; mend its permissions, or give another",
        cwd.display()
    )
}

/// Why the kernel says that something does not exist.
fn not_found(path: &Path) -> String {
    let shown = path.display();
    if fs::symlink_metadata(path).is_err() {
        return format!(
            "there is no program {shown}: check the path, or give only the name to have it looked up in PATH"
        );
    }
    if fs::metadata(path).is_err() {
        return format!("{shown} is a symbolic link to nowhere: mend the link");
    }
    match interpreter(path) {
        Some(name) if name.as_bytes().ends_with(b"\r") => {
            format!("the first line of {shown} ends with a carriage return: save the script with Unix line ends")
        }
        Some(name) => format!(
            "the interpreter {} that the first line of {shown} asks for does not exist: install it, or mend that line",
            name.display()
        ),
        None => format!(
            "the loader (dynamic linker) that {shown} asks for does not exist: it was built for another system; install a build \
             for this one, or a static one"
        ),
    }
}

/// Why something that is there may not be executed.
fn not_executable(path: &Path, user: Option<&str>) -> String {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return format!("{shown} is a directory, not a program: name a program in it"),
        Ok(found) if !found.is_file() => return format!("{shown} is not a regular file, so it cannot be executed"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            return format!("{shown} is not executable: `chmod +x {shown}`, or run it through its interpreter");
        }
        _ => {}
    }
    if let Some(name) = interpreter(path)
        && access(Path::new(&name), AccessFlags::X_OK).is_err()
    {
        let name = name.display();
        return format!(
            "the interpreter {name} of {shown} is not executable: mend its permissions, or the first line of the script"
        );
    }
    let who = user.map(|user| format!("the user {user:?}")).unwrap_or_else(|| "this process".to_owned());
    format!(
        "{who} may not execute {shown}: look at its permissions, those of the folders above it, and whether its file system is \
         mounted noexec"
    )
}

/// What the `#!` line of a script asks for.
fn interpreter(path: &Path) -> Option<OsString> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    words.find(|word| !word.is_empty()).map(|word| OsStr::from_bytes(word).to_owned())
}

/// A path as this process sees it that the child sees from its working directory.
fn from_cwd(program: &Program, path: &Path) -> PathBuf {
    program.cwd.as_ref().map_or_else(|| path.to_owned(), |cwd| cwd.join(path))
}

/// The `PATH` that the child gets.
fn search_path(program: &Program, somebody_else: bool) -> OsString {
    let given = program.env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
    if somebody_else && given.is_none() {
        return PATH.into();
    }
    given.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// How much the kernel has to copy, not counting what is inherited.
fn bytes_passed(program: &Program) -> usize {
    let arguments = program.argv.iter().map(|argument| argument.len() + 1);
    let variables = program.env.iter().map(|(name, value)| name.len() + value.len() + 2);
    arguments.chain(variables).sum()
}
