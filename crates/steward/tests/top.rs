//! `steward top` in a terminal of its own (`script` of util-linux makes one), and without any.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

mod world;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use world::{World, eventually};

#[test]
fn the_fleet_is_drawn_obeys_keys_and_leaves_the_terminal_as_it_was() {
    let world = World::up();
    let output = world.steward(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("draws on a terminal"), "{output:?}");

    let top = format!(
        "stty rows 24 cols 100; {} --home {} top; echo left with $?; stty -a",
        env!("CARGO_BIN_EXE_steward"),
        world.home().display()
    );
    let mut script = Command::new("script")
        .args(["-qec", &top, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (seen, mut screen) = (Arc::new(Mutex::new(String::new())), script.stdout.take().unwrap());
    let into = Arc::clone(&seen);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    let shows = |text: &str| seen.lock().unwrap().contains(text);
    let mut keyboard = script.stdin.take().unwrap();
    eventually("the fleet is shown", || shows("1 nodes") && shows("hub") && shows("online"));
    keyboard.write_all(b"s").unwrap();
    eventually("nodes are sorted otherwise", || shows("by name"));
    keyboard.write_all(b"/nobody*\r").unwrap();
    eventually("nodes are chosen", || shows("0 nodes"));
    // Ctrl-C is a key here.
    keyboard.write_all(&[3]).unwrap();
    eventually("it ends", || shows("left with 0") && shows("icanon"));
    let seen = seen.lock().unwrap().clone();
    let (_, after) = seen.rsplit_once("\x1b[?25h\x1b[?1049l").expect("its own screen is left, with a cursor");
    assert!(!after.contains("-icanon") && !after.contains("-echo "), "{after}");
    drop(keyboard);
    script.wait().unwrap();
}
