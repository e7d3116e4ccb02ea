//! A program that cannot be started says why, and what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use exec::{End, Program, Stream};
use tempfile::TempDir;

use crate::support::{bytes, collect, sh};

/// The reason why it did not start, which must hold all these words.
async fn refused(program: Program, words: &[&str]) -> String {
    let (finished, chunks) = collect(program).await;
    let End::NotStarted(reason) = finished.end else {
        panic!("{:?} instead of a refusal with {words:?}", finished.end)
    };
    assert!(chunks.is_empty());
    for word in words {
        assert!(reason.contains(word), "{word:?} is missing in: {reason}");
    }
    reason
}

fn file(folder: &TempDir, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn program(path: &Path) -> Program {
    Program::new([path])
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named_with_the_path_that_was_searched() {
    let mut missing = Program::new(["no-such-program"]);
    refused(missing.clone(), &["\"no-such-program\"", "PATH", "/bin", "install"]).await;
    missing.env.push(("PATH".into(), "/nowhere".into()));
    refused(missing, &["(/nowhere)"]).await;
    refused(program(Path::new("/no/such/program")), &["there is no program /no/such/program"]).await;
}

#[tokio::test]
async fn the_path_of_the_child_decides() {
    let folder = TempDir::new().unwrap();
    file(&folder, "greet", b"#!/bin/sh\necho hei \"$0\"\n", 0o755);
    let mut greet = Program::new(["greet"]);
    greet.env.push(("PATH".into(), folder.path().into()));
    let (finished, chunks) = collect(greet).await;
    assert_eq!(finished.end, End::Exited(0));
    assert!(bytes(&chunks, Stream::Stdout).starts_with(b"hei "));
    // A relative path counts from the working directory of the child.
    let here = Program { cwd: Some(folder.path().into()), ..Program::new(["./greet"]) };
    assert_eq!(collect(here).await.0.end, End::Exited(0));
}

#[tokio::test]
async fn a_bad_working_directory_is_not_taken_for_a_missing_program() {
    let folder = TempDir::new().unwrap();
    let plain = file(&folder, "plain", b"", 0o644);
    let in_folder = |cwd: &Path| Program { cwd: Some(cwd.into()), ..Program::new(["true"]) };
    refused(in_folder(Path::new("/no/such/folder")), &["working directory /no/such/folder does not exist"]).await;
    refused(in_folder(&plain), &["working directory", "plain is not a directory"]).await;
    let both = Program { cwd: Some("/no/such/folder".into()), ..Program::new(["./x"]) };
    refused(both, &["working directory"]).await;
}

#[tokio::test]
async fn what_is_there_but_cannot_be_executed_is_told_apart() {
    let folder = TempDir::new().unwrap();
    refused(program(&file(&folder, "plain", b"#!/bin/sh\n", 0o644)), &["plain is not executable", "chmod +x"]).await;
    refused(program(folder.path()), &["is a directory"]).await;
    refused(program(&file(&folder, "text", b"just text\n", 0o755)), &["text", "`#!` line"]).await;
    let script = file(&folder, "script", b"#!/no/such/interpreter -x\n", 0o755);
    refused(program(&script), &["interpreter /no/such/interpreter", "script"]).await;
    refused(program(&file(&folder, "dos", b"#!/bin/sh\r\necho\r\n", 0o755)), &["carriage return"]).await;
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/no/such/target", &link).unwrap();
    refused(program(&link), &["symbolic link to nowhere"]).await;
    refused(program(&script.join("below")), &["not a directory"]).await;
}

#[tokio::test]
async fn a_file_in_the_path_without_the_right_to_execute_is_named() {
    let folder = TempDir::new().unwrap();
    file(&folder, "greet", b"#!/bin/sh\n", 0o644);
    let mut greet = Program::new(["greet"]);
    greet.env.push(("PATH".into(), folder.path().into()));
    refused(greet, &["greet is not executable"]).await;
}

#[tokio::test]
async fn what_no_program_can_be_given_is_refused() {
    refused(Program::default(), &["no program is given"]).await;
    refused(Program::new([""]), &["no program is given"]).await;
    refused(Program::new(["echo", "a\0b"]), &["argument 1", "NUL"]).await;
    let with = |name: &str, value: &str| Program { env: vec![(name.into(), value.into())], ..Program::new(["true"]) };
    refused(with("A", "x\0"), &["\"A\"", "NUL"]).await;
    refused(with("A=B", "x"), &["\"A=B\"", "name"]).await;
    refused(with("", "x"), &["name"]).await;
    refused(Program { cwd: Some("a\0b".into()), ..Program::new(["true"]) }, &["working directory", "NUL"]).await;
    refused(Program::new(["true".to_owned(), "x".repeat(3_000_000)]), &["3000006 bytes", "stdin"]).await;
}

#[tokio::test]
async fn an_unknown_user_is_named() {
    refused(Program { user: Some("no-such-user".into()), ..sh("true") }, &["no local user \"no-such-user\""]).await;
}

#[tokio::test]
async fn what_another_user_may_not_do_is_told_with_his_name() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let script = file(&folder, "script", b"#!/bin/sh\n", 0o755);
    let nobody = Program { user: Some("nobody".into()), ..program(&script) };
    refused(nobody.clone(), &["\"nobody\"", "may not execute", "script"]).await;
    let inside = Program { cwd: Some(folder.path().into()), ..nobody.clone() };
    refused(inside, &["working directory", "\"nobody\"", "cannot be entered"]).await;
    refused(Program { argv: vec!["/no/such".into()], ..nobody }, &["there is no program /no/such"]).await;
}

#[tokio::test]
async fn only_root_becomes_somebody_else() {
    if !nix::unistd::Uid::effective().is_root() {
        let user = if nix::unistd::Uid::effective().as_raw() == 65534 { "root" } else { "nobody" };
        refused(Program { user: Some(user.into()), ..sh("true") }, &["only root"]).await;
    }
}

#[tokio::test]
async fn a_file_that_is_being_written_is_waited_for_a_moment() {
    let folder = TempDir::new().unwrap();
    let script = file(&folder, "script", b"#!/bin/sh\nexit 4\n", 0o755);
    let writing = fs::File::options().append(true).open(&script).unwrap();
    refused(program(&script), &["being written"]).await;
    let running = tokio::spawn(collect(program(&script)));
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    drop(writing);
    assert_eq!(running.await.unwrap().0.end, End::Exited(4));
}
