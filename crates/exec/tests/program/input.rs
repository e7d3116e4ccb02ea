//! A program reads what it was given, or not, and runs as whom it was told.

use exec::{End, Program, Stream};

use crate::support::{PLENTY, bytes, collect, sh};

const MEBIBYTE: usize = 1024 * 1024;

#[tokio::test]
async fn a_mebibyte_goes_through_cat_and_back() {
    let given: Vec<u8> = (0..MEBIBYTE).map(|index| (index * 7 % 251) as u8).collect();
    let program = Program { stdin: Some(given.clone().into()), timeout: PLENTY, ..Program::new(["cat"]) };
    let (finished, chunks) = collect(program).await;
    assert_eq!(finished.end, End::Exited(0));
    assert!(bytes(&chunks, Stream::Stdout) == given);
}

#[tokio::test]
async fn a_program_that_does_not_read_is_not_disturbed() {
    let stdin = Some(vec![b'x'; MEBIBYTE].into());
    let program = Program { stdin: stdin.clone(), timeout: PLENTY, ..Program::new(["true"]) };
    assert_eq!(collect(program).await.0.end, End::Exited(0));
    let closes = Program { stdin, ..sh("exec <&-; sleep 0.2; echo done") };
    let (finished, chunks) = collect(closes).await;
    assert_eq!((finished.end, bytes(&chunks, Stream::Stdout)), (End::Exited(0), b"done\n".to_vec()));
}

#[tokio::test]
async fn without_stdin_it_reads_nothing() {
    let (finished, chunks) = collect(Program { timeout: PLENTY, ..Program::new(["cat"]) }).await;
    assert_eq!((finished.end, chunks.len()), (End::Exited(0), 0));
    let empty = Program { stdin: Some(Default::default()), timeout: PLENTY, ..Program::new(["cat"]) };
    assert_eq!(collect(empty).await.0.end, End::Exited(0));
}

#[tokio::test]
async fn somebody_else_inherits_nothing_and_gains_no_rights_and_oneself_keeps_both() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let line = "env | grep -c ^CARGO; grep NoNewPrivs /proc/self/status; echo $PATH";
    let seen = async |user: &str| {
        let program = Program { user: Some(user.into()), cwd: Some("/".into()), ..sh(line) };
        let (_, chunks) = collect(program).await;
        String::from_utf8(bytes(&chunks, Stream::Stdout)).unwrap()
    };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(seen("nobody").await, format!("0\nNoNewPrivs:\t1\n{path}\n"));
    let own = seen("root").await;
    assert!(!own.starts_with("0\n") && own.contains("NoNewPrivs:\t0"), "{own}");
}

#[tokio::test]
async fn it_runs_as_the_user_it_is_told_to() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let line = "id -un; id -gn; echo $USER $LOGNAME $HOME; [ \"$(id -G)\" = \"$(id -G nobody)\" ] && echo groups; pwd";
    let program = Program { user: Some("nobody".into()), cwd: Some("/tmp".into()), ..sh(line) };
    let home = nix::unistd::User::from_name("nobody").unwrap().unwrap().dir;
    let (finished, chunks) = collect(program).await;
    assert_eq!(finished.end, End::Exited(0));
    let seen = String::from_utf8(bytes(&chunks, Stream::Stdout)).unwrap();
    assert_eq!(seen, format!("nobody\nnogroup\nnobody nobody {}\ngroups\n/tmp\n", home.display()));
}
