use std::io::Write;
use std::process::Command;

use super::*;

struct World {
    dir: tempfile::TempDir,
    follower: Follower,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(begins: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let follower =
            Follower::new(dir.path().join("log"), begins.map(|text| Regex::new(text).unwrap()), Position::default());
        Self { dir, follower, now: Instant::now() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Everything that comes within the next seconds.
    fn drain(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..40 {
            let more = self.follower.poll(self.now).unwrap_or_default();
            lines.extend(more.into_iter().map(|line| String::from_utf8(line.bytes).unwrap()));
            self.now += Duration::from_millis(200);
        }
        lines
    }

    /// The agent goes down, something happens, the agent comes back.
    fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        let position = self.follower.position();
        meanwhile(self);
        self.follower = Follower::new(self.path("log"), self.follower.begins.clone(), Position::parse(&position));
    }
}

#[test]
fn only_whole_lines_are_reported_and_each_once() {
    let mut world = World::new();
    assert_eq!(world.follower.poll(world.now).unwrap_err().kind(), io::ErrorKind::NotFound);
    world.append("log", "one\ntwo\r\nthr");
    assert_eq!(world.drain(), ["one", "two"]);
    world.append("log", "ee\n");
    assert_eq!(world.drain(), ["three"]);
}

#[test]
fn a_rotated_file_is_read_to_its_end_first_also_what_is_written_late() {
    let mut world = World::new();
    world.append("log", "one\n");
    assert_eq!(world.drain(), ["one"]);
    world.rename("log", "log.1");
    world.append("log.1", "two\n");
    world.append("log", "four\n");
    assert_eq!(world.follower.poll(world.now).unwrap().len(), 1);
    // The next file is there already, and its writer has not taken notice yet.
    assert!(world.follower.poll(world.now).unwrap().is_empty());
    world.append("log.1", "three\n");
    assert_eq!(world.drain(), ["three", "four"]);
    world.append("log.1", "a straggler\n");
    assert_eq!(world.drain(), ["a straggler"]);
}

#[test]
fn files_that_came_and_went_between_two_looks_are_read_in_their_order() {
    let mut world = World::new();
    world.append("log", "1\n");
    assert_eq!(world.drain(), ["1"]);
    for number in 2..6 {
        world.rename("log", &format!("log.{}", 10 - number));
        // Birth times have to differ.
        std::thread::sleep(Duration::from_millis(15));
        world.append("log", &format!("{number}\n"));
    }
    assert_eq!(world.drain(), ["2", "3", "4", "5"]);
}

#[test]
fn a_restart_finds_what_was_rotated_meanwhile() {
    let mut world = World::new();
    world.append("log", "one\ntw");
    assert_eq!(world.drain(), ["one"]);
    world.restart(|world| {
        world.append("log", "o\n");
        world.rename("log", "log.2");
        std::thread::sleep(Duration::from_millis(15));
        world.append("log", "three\n");
        world.rename("log", "log.1");
        std::thread::sleep(Duration::from_millis(15));
        world.append("log", "four\n");
    });
    assert_eq!(world.drain(), ["two", "three", "four"]);
    world.restart(|_| {});
    assert_eq!(world.drain(), [""; 0], "nothing twice");
}

#[test]
fn a_restart_finds_what_was_compressed_meanwhile() {
    for tool in [["gzip", "-f"], ["zstd", "-q"]] {
        if Command::new(tool[0]).arg("--version").output().is_err() {
            continue;
        }
        let mut world = World::new();
        world.append("log", "one\ntw");
        assert_eq!(world.drain(), ["one"]);
        world.restart(|world| {
            world.append("log", "o\nthree\n");
            world.rename("log", "log.1");
            let packed = Command::new(tool[0]).arg(tool[1]).arg(world.path("log.1")).status().unwrap();
            assert!(packed.success());
            let _ = std::fs::remove_file(world.path("log.1"));
            world.append("log", "four\n");
        });
        assert_eq!(world.drain(), ["two", "three", "four"], "{tool:?}");
    }
}

#[test]
fn a_file_that_is_copied_and_emptied_loses_nothing_that_is_in_the_copy() {
    let mut world = World::new();
    world.append("log", "one\n");
    assert_eq!(world.drain(), ["one"]);
    world.append("log", "two\nthree\n");
    std::fs::copy(world.path("log"), world.path("log.1")).unwrap();
    std::fs::write(world.path("log"), "new\n").unwrap();
    assert_eq!(world.drain(), ["two", "three", "new"]);
    // Emptied and written beyond where reading was, without a copy.
    std::fs::write(world.path("log"), "quite another beginning\nand more\n").unwrap();
    assert_eq!(world.drain(), ["quite another beginning", "and more"]);
}

#[test]
fn the_same_inode_used_again_is_another_file() {
    let mut world = World::new();
    world.append("log", "one\ntwo\n");
    assert_eq!(world.drain(), ["one", "two"]);
    world.restart(|world| std::fs::write(world.path("log"), "ONE\ntwo\nthree\n").unwrap());
    assert_eq!(world.drain(), ["ONE", "two", "three"]);
    // Gone without a trace is told.
    world.restart(|world| {
        std::fs::remove_file(world.path("log")).unwrap();
        world.append("log2", "");
        world.append("log", "other\n");
    });
    assert_eq!(world.drain(), ["other"]);
    assert!(world.follower.complaint().unwrap().contains("is gone"));
}

#[test]
fn several_lines_are_one_record_and_a_restart_begins_with_a_whole_one() {
    let mut world = World::with(Some("^[A-Z]"));
    world.append("log", "Error\n  at a\n  at b\nWarning\n  at c\n");
    assert_eq!(
        world.follower.poll(world.now).unwrap(),
        [Line { bytes: b"Error\n  at a\n  at b".to_vec(), goes_on: false }]
    );
    // The second one may go on.
    world.restart(|world| world.append("log", "  at d\n"));
    assert_eq!(world.drain(), ["Warning\n  at c\n  at d"], "over when nothing comes");
    world.append("log", "Note\n");
    assert_eq!(world.drain(), ["Note"]);
}

#[test]
fn an_endless_line_is_cut_into_bearable_pieces_that_make_it_whole_again() {
    let mut world = World::new();
    world.append("log", &"x".repeat(3 * LINE_BYTES_MAX + 5));
    world.append("log", "\nnext\n");
    let mut lines = Vec::new();
    for _ in 0..5 {
        lines.extend(world.follower.poll(world.now).unwrap());
    }
    assert!(lines.iter().all(|line| line.bytes.len() <= LINE_BYTES_MAX));
    let goes_on: Vec<bool> = lines.iter().map(|line| line.goes_on).collect();
    assert_eq!(goes_on, [true, true, true, false, false]);
    assert_eq!(lines.iter().take(4).map(|line| line.bytes.len()).sum::<usize>(), 3 * LINE_BYTES_MAX + 5);
}
