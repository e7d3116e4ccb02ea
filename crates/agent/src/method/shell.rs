//! `shellcommand`: a program, a shell line, or a script that travels with the order.

use std::ffi::OsString;
use std::io::Write as _;

use bytes::Bytes;
use data_encoding::BASE64;
use message::method::ShellCommand;
use tempfile::NamedTempFile;

use super::{Ended, Execution, order_environment, run_program};

pub(super) async fn execute(execution: Execution<'_>) -> Ended {
    let order = execution.order;
    let args: ShellCommand = match serde_json::from_value(order.args.clone()) {
        Ok(args) => args,
        Err(error) => return Ended::failed(format!("the arguments are not those of shellcommand: {error}")),
    };
    let (argv, script) = match command_line(&args) {
        Ok(command) => command,
        Err(reason) => return Ended::failed(reason),
    };
    let stdin = match args.stdin_base64.as_ref().map(|text| BASE64.decode(text.as_bytes())).transpose() {
        Ok(stdin) => stdin.map(Bytes::from),
        Err(_) => return Ended::failed("stdin_base64 is not base64"),
    };
    let mut program = exec::Program::new(argv);
    program.env = order_environment(order);
    program.env.extend(args.env.iter().map(|(name, value)| (name.into(), value.into())));
    program.cwd = args.cwd.map(Into::into);
    program.user = args.user;
    program.stdin = stdin;
    program.timeout = order.timeout();
    program.max_output = order.max_output_bytes;
    let ended = run_program(program, execution.output, execution.cancel).await;
    // The script's file has to live as long as the program.
    drop(script);
    ended
}

/// What is to be executed; a script lies in a file that is removed when it is dropped.
fn command_line(args: &ShellCommand) -> Result<(Vec<OsString>, Option<NamedTempFile>), String> {
    match (&args.argv, &args.line, &args.script) {
        (Some(argv), None, None) => Ok((argv.iter().map(Into::into).collect(), None)),
        (None, Some(line), None) => Ok((vec!["/bin/sh".into(), "-c".into(), line.into()], None)),
        (None, None, Some(text)) => {
            let file = store_script(text, args.user.as_deref())
                .map_err(|error| format!("the script could not be stored for execution: {error}"))?;
            let mut argv = interpreter(text);
            argv.push(file.path().into());
            argv.extend(args.script_args.iter().map(Into::into));
            Ok((argv, Some(file)))
        }
        _ => Err("shellcommand needs exactly one of argv, line and script".into()),
    }
}

/// The interpreter that the `#!` line names, with its one argument, as the kernel would; `/bin/sh` without one.
///
/// Executing the file itself could fail with "text file busy": another thread that starts a program at the same
/// moment holds the file open for writing until its own exec.
fn interpreter(script: &str) -> Vec<OsString> {
    let first = script.lines().next().unwrap_or_default();
    let Some(named) = first.strip_prefix("#!").map(str::trim).filter(|rest| !rest.is_empty()) else {
        return vec!["/bin/sh".into()];
    };
    match named.split_once([' ', '\t']) {
        Some((program, argument)) => vec![program.into(), argument.trim().into()],
        None => vec![named.into()],
    }
}

fn store_script(text: &str, user: Option<&str>) -> std::io::Result<NamedTempFile> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_line_is_read_as_the_kernel_reads_it() {
        assert_eq!(interpreter("echo a"), ["/bin/sh"]);
        assert_eq!(interpreter("#!/usr/bin/python3\n"), ["/usr/bin/python3"]);
        assert_eq!(interpreter("#! /usr/bin/env -S bash -e\n"), ["/usr/bin/env", "-S bash -e"]);
    }

    #[test]
    fn exactly_one_way_to_say_what_to_run() {
        assert!(command_line(&ShellCommand::default()).is_err());
        let both = ShellCommand { argv: Some(vec![]), line: Some(String::new()), ..ShellCommand::default() };
        assert!(command_line(&both).is_err());
    }
}
