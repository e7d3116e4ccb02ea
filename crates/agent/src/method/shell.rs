//! `shellcommand`: a program, a shell line, or a script that travels with the order.

use std::ffi::OsString;

use bytes::Bytes;
use data_encoding::BASE64;
use keeper::{Program, Script};
use message::method::ShellCommand;

use super::{Ended, Execution, laid_out, order_environment, run_program};

pub(super) async fn execute(execution: Execution<'_>) -> Option<Ended> {
    let order = execution.order;
    let args: ShellCommand = match serde_json::from_value(order.args.clone()) {
        Ok(args) => args,
        Err(error) => return Some(Ended::failed(format!("the arguments are not those of shellcommand: {error}"))),
    };
    let (argv, script) = match command_line(&args) {
        Ok(command) => command,
        Err(reason) => return Some(Ended::failed(reason)),
    };
    let stdin = match args.stdin_base64.as_ref().map(|text| BASE64.decode(text.as_bytes())).transpose() {
        Ok(stdin) => stdin.map(Bytes::from),
        Err(_) => return Some(Ended::failed("stdin_base64 is not base64")),
    };
    // The keeper may have been started elsewhere than this run of the agent.
    let cwd = match args.cwd.as_ref().map(std::path::absolute).transpose() {
        Ok(cwd) => cwd,
        Err(error) => return Some(Ended::failed(format!("the working directory is not usable: {error}"))),
    };
    let mut env = order_environment(order);
    env.extend(args.env.iter().map(|(name, value)| (name.into(), value.into())));
    let program = Program {
        argv,
        script,
        env,
        cwd,
        user: execution.user.clone(),
        stdin,
        timeout: order.timeout(),
        max_output: order.max_output_bytes,
        answer_max: 0,
        secrets: laid_out(&execution.secrets),
    };
    run_program(&program, execution).await
}

/// What is to be executed; the path of a script's file is added by whoever stores it.
fn command_line(args: &ShellCommand) -> Result<(Vec<OsString>, Option<Script>), String> {
    match (&args.argv, &args.line, &args.script) {
        (Some(argv), None, None) => Ok((argv.iter().map(Into::into).collect(), None)),
        (None, Some(line), None) => Ok((vec!["/bin/sh".into(), "-c".into(), line.into()], None)),
        (None, None, Some(text)) => {
            let script = Script { text: text.clone(), args: args.script_args.clone() };
            Ok((interpreter(text), Some(script)))
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
