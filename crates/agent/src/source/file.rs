//! Files and globs as a source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bus::clock;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::follow::{Follower, Line, Position};
use super::sieve::{Sieve, encoded};
use super::{Records, Source, wait};
use crate::config::Files;

/// Between two looks at files that had nothing new.
const POLL: Duration = Duration::from_millis(200);
/// Between two looks for files that are new and fit a glob.
const LOOK: Duration = Duration::from_secs(2);
/// So many files of one source are followed.
const FILES_MAX: usize = 1000;
/// With so much at hand it is journaled.
const COMMIT_BYTES: usize = 2 << 20;
/// With so much read, others have their turn.
const TURN_BYTES: usize = 4 << 20;

/// One file of a source.
struct Followed {
    follower: Follower,
    sieve: Sieve,
    /// Fields of each of its records.
    more: Map<String, Value>,
}

/// What was read of a file in one go.
struct Read {
    followed: Followed,
    records: Records,
    lines: u64,
    dropped: u64,
    error: Option<std::io::Error>,
}

pub(super) async fn run(source: Source, files: Files, cancel: CancellationToken) {
    let mut open: BTreeMap<PathBuf, Option<Followed>> = BTreeMap::new();
    let mut looked: Option<Instant> = None;
    loop {
        if source.keep.is_full(source.told.lane) {
            source.standing.note("waiting: the outbox is full", None);
            if wait(&cancel, POLL * 5).await {
                return;
            }
            continue;
        }
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            if let Err(error) = look(&source, &files, &mut open) {
                source.standing.note("failed", Some(error));
                return;
            }
        }
        let (mut idle, mut state) = (true, "following");
        let paths: Vec<PathBuf> = open.keys().cloned().collect();
        if paths.is_empty() {
            state = "waiting for the file";
        }
        for path in paths {
            let Some(followed) = open.get_mut(&path).and_then(Option::take) else { continue };
            let none = source.keep.records();
            // A file may lie on a disk that hangs: that must not stop anybody else.
            let Ok(read) = tokio::task::spawn_blocking(move || read(followed, none)).await else {
                source.standing.note("failed", Some(format!("reading {} broke down", path.display())));
                return;
            };
            let Read { mut followed, records, lines, dropped, error } = read;
            if let Some(complaint) = followed.follower.complaint() {
                source.standing.note("following", Some(complaint));
            }
            if lines > 0 || !records.is_empty() {
                let position = Some(followed.follower.position());
                if !source.keep(&name(&source, &path), position, &records, &cancel).await {
                    return;
                }
                source.standing.count(lines - dropped, dropped);
                idle = false;
            }
            match error {
                Some(error) if error.kind() == std::io::ErrorKind::NotFound => state = "waiting for the file",
                Some(error) => source.standing.note("waiting", Some(format!("{}: {error}", path.display()))),
                None => {}
            }
            open.insert(path, Some(followed));
            if cancel.is_cancelled() {
                return;
            }
        }
        source.standing.note(state, None);
        if idle && wait(&cancel, POLL).await {
            return;
        }
    }
}

/// Under what name the position of a file is kept.
fn name(source: &Source, path: &Path) -> String {
    format!("{}/{}:{}", source.told.method, source.told.domain, path.display())
}

/// Begins with files that are new.
fn look(source: &Source, files: &Files, open: &mut BTreeMap<PathBuf, Option<Followed>>) -> Result<(), String> {
    let (paths, by_glob): (Vec<PathBuf>, bool) = match files {
        Files::One(path) => (vec![path.clone()], false),
        Files::Globs(globs) => {
            let found = globs.iter().filter_map(|text| glob::glob(text).ok()).flatten().filter_map(Result::ok);
            (found.filter(|path| path.is_file()).collect(), true)
        }
    };
    for path in paths {
        if open.contains_key(&path) || open.len() >= FILES_MAX {
            continue;
        }
        if by_glob && let Ok(met) = std::fs::metadata(&path) {
            use std::os::unix::fs::MetadataExt;
            // Renamed, to a name that fits as well: it is read under its first one.
            if open.values().flatten().any(|followed| followed.follower.reads(met.dev(), met.ino())) {
                continue;
            }
        }
        let position = source.keep.journal().source(&name(source, &path)).map_err(|error| error.to_string())?;
        let resume = position.as_deref().map(Position::parse).unwrap_or_default();
        let more = if by_glob {
            [("file".to_owned(), Value::from(path.display().to_string()))].into_iter().collect()
        } else {
            Map::new()
        };
        let follower = Follower::new(path.clone(), source.multiline.clone(), resume);
        open.insert(path, Some(Followed { follower, sieve: Sieve::new(&source.shape), more }));
    }
    // A file of a glob that is gone for good is forgotten.
    if by_glob {
        open.retain(|path, followed| {
            path.exists() || followed.as_ref().is_none_or(|followed| followed.follower.is_open())
        });
    }
    Ok(())
}

/// Reads on until there is nothing new, or enough.
fn read(mut followed: Followed, mut records: Records) -> Read {
    let (mut lines, mut bytes, mut error) = (0, 0, None);
    let before = followed.sieve.unwanted + followed.sieve.too_many;
    while bytes < TURN_BYTES && records.bytes() < COMMIT_BYTES {
        let now = Instant::now();
        match followed.follower.poll(now) {
            Ok(new) if new.is_empty() => break,
            Ok(new) => {
                let at = clock::now().to_string();
                for line in new {
                    bytes += line.bytes.len();
                    lines += u64::from(!line.goes_on);
                    add(&mut followed, line, now, &at, &mut records);
                }
            }
            Err(problem) => {
                error = Some(problem);
                break;
            }
        }
    }
    let dropped = followed.sieve.unwanted + followed.sieve.too_many - before;
    Read { followed, records, lines, dropped: dropped.min(lines), error }
}

fn add(followed: &mut Followed, line: Line, now: Instant, at: &str, records: &mut Records) {
    if let Some(record) = followed.sieve.record(line, &followed.more, now) {
        records.push(|into| encoded(at, &record, into));
    }
}
