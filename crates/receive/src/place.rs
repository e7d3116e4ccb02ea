//! How far a receiver has come, on disk: one line of JSON for each step, appended and synced, in a file that is written anew
//! when it has grown.
//!
//! A file sink says first how long its files are (`begun`), then writes them, then says how far that has brought it (`done`). Whoever
//! opens a place that was begun and not done cuts the files back to what they were: what is written again is there once.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use message::{InstanceId, NodeName};
use serde::{Deserialize, Serialize};

use crate::files;

/// Above this it is written anew.
const BYTES_MAX: u64 = 4 << 20;
/// So many runs of a node's agent are remembered, those of which something came last: four starts of it with three priorities each. What
/// comes again comes at once, or right after the next start.
const RUNS_MAX: usize = 12;

/// What a node has sent last: of each of its runs the largest number. The one that something came of last stands last.
type Runs = Vec<(InstanceId, u64)>;

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Step {
    Begun(BTreeMap<PathBuf, u64>),
    Done {
        /// The broker's store that the sequence is of.
        epoch: Option<String>,
        sequence: u64,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        seen: BTreeMap<NodeName, Runs>,
    },
}

/// How far a receiver has come.
pub(crate) struct Place {
    path: PathBuf,
    file: File,
    bytes: u64,
    pub(crate) epoch: Option<String>,
    pub(crate) sequence: u64,
    seen: HashMap<NodeName, Runs>,
    /// Nodes of whom something is seen that is not in the file yet.
    changed: Vec<NodeName>,
    /// The lengths of files that were begun and not done.
    pub(crate) begun: BTreeMap<PathBuf, u64>,
}

impl Place {
    /// Opens it, or makes one that has seen nothing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut place = Self {
            path: path.to_owned(),
            file,
            bytes: 0,
            epoch: None,
            sequence: 0,
            seen: HashMap::new(),
            changed: Vec::new(),
            begun: BTreeMap::new(),
        };
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            // The last one may be torn: then it was never relied on. One in the middle that cannot be read is damage.
            let Some(whole) = line.strip_suffix(b"\n") else { break };
            let step = serde_json::from_slice(whole).map_err(|error| {
                let reason =
                    format!("{} is damaged ({error}): remove it, and everything is received again", path.display());
                io::Error::new(io::ErrorKind::InvalidData, reason)
            })?;
            match step {
                Step::Begun(lengths) => place.begun = lengths,
                Step::Done { epoch, sequence, seen } => {
                    (place.epoch, place.sequence) = (epoch, sequence);
                    place.seen.extend(seen);
                    place.begun.clear();
                }
            }
        }
        // Without what is torn, what follows it could not be read.
        if !text.is_empty() && (!text.ends_with(b"\n") || text.len() as u64 > BYTES_MAX) {
            place.write_anew()?;
        }
        place.bytes = std::fs::metadata(path)?.len();
        Ok(place)
    }

    /// Another store of the broker: its sequences begin anew. What nodes have sent stays seen.
    pub(crate) fn move_to(&mut self, epoch: Option<String>) {
        if self.epoch != epoch {
            self.sequence = 0;
            self.epoch = epoch;
        }
    }

    /// Whether a batch was had before. If not, it counts as had from the next `done` on.
    pub(crate) fn had(&mut self, from: &NodeName, run: Option<InstanceId>, row: Option<u64>) -> bool {
        let (Some(run), Some(row)) = (run, row) else { return false };
        let runs = self.seen.entry(from.clone()).or_default();
        match runs.iter().position(|(known, _)| *known == run) {
            Some(at) if runs.get(at).is_some_and(|(_, last)| row <= *last) => return true,
            Some(at) => {
                runs.remove(at);
            }
            None if runs.len() >= RUNS_MAX => {
                runs.remove(0);
            }
            None => {}
        }
        runs.push((run, row));
        self.changed.push(from.clone());
        false
    }

    /// These files are about to be written to, from these lengths on.
    pub(crate) fn begin(&mut self, lengths: BTreeMap<PathBuf, u64>) -> io::Result<()> {
        self.append(&Step::Begun(lengths.clone()))?;
        self.begun = lengths;
        Ok(())
    }

    /// Everything up to here has arrived where it shall.
    pub(crate) fn done(&mut self, sequence: u64) -> io::Result<()> {
        let seen = self.changed.iter().filter_map(|name| Some((name.clone(), self.seen.get(name)?.clone()))).collect();
        self.append(&Step::Done { epoch: self.epoch.clone(), sequence, seen })?;
        self.sequence = sequence;
        self.begun.clear();
        self.changed.clear();
        if self.bytes > BYTES_MAX { self.write_anew() } else { Ok(()) }
    }

    fn append(&mut self, step: &Step) -> io::Result<()> {
        let mut line = serde_json::to_vec(step)?;
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a line in the middle would make all that follows unreadable.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Everything in two lines.
    fn write_anew(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        let seen = self.seen.iter().map(|(name, runs)| (name.clone(), runs.clone())).collect();
        let done = Step::Done { epoch: self.epoch.clone(), sequence: self.sequence, seen };
        for step in std::iter::once(done).chain(self.left()) {
            serde_json::to_writer(&mut text, &step)?;
            text.push(b'\n');
        }
        files::replace(&self.path, &text)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.bytes = text.len() as u64;
        Ok(())
    }

    fn left(&self) -> Option<Step> {
        (!self.begun.is_empty()).then(|| Step::Begun(self.begun.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NodeName {
        NodeName::new("ship1").unwrap()
    }

    fn run(seed: u8) -> Option<InstanceId> {
        Some(InstanceId::from_bytes([seed; 16]))
    }

    #[test]
    fn what_was_had_is_had_for_good_and_another_store_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/place");
        let mut place = Place::open(&path).unwrap();
        place.move_to(Some("one".into()));
        assert!(!place.had(&name(), run(1), Some(5)) && place.had(&name(), run(1), Some(5)));
        assert!(place.had(&name(), run(1), Some(3)) && !place.had(&name(), run(2), Some(3)));
        assert!(
            !place.had(&name(), None, None) && !place.had(&name(), None, None),
            "who does not count cannot be known again"
        );
        place.done(9).unwrap();
        let mut place = Place::open(&path).unwrap();
        assert_eq!((place.sequence, place.epoch.as_deref()), (9, Some("one")));
        assert!(place.had(&name(), run(1), Some(5)) && place.had(&name(), run(2), Some(3)));
        place.move_to(Some("two".into()));
        assert_eq!(place.sequence, 0);
        assert!(place.had(&name(), run(1), Some(5)));
    }

    #[test]
    fn what_waits_for_days_is_known_again_however_often_its_agent_starts() {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::open(&dir.path().join("place")).unwrap();
        // An agent that starts anew ten times, each time with two runs of its own, while what an old one has left trickles on.
        for start in 0..10 {
            assert!(!place.had(&name(), run(1), Some(u64::from(start) + 1)));
            assert!(
                !place.had(&name(), run(100 + 2 * start), Some(1))
                    && !place.had(&name(), run(101 + 2 * start), Some(1))
            );
            assert!(place.had(&name(), run(1), Some(u64::from(start) + 1)), "{start}");
        }
        assert_eq!(place.seen[&name()].len(), RUNS_MAX);
    }

    #[test]
    fn what_was_begun_and_not_done_is_found_and_what_is_torn_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place");
        let mut place = Place::open(&path).unwrap();
        place.done(1).unwrap();
        place.begin([(PathBuf::from("/a"), 10)].into()).unwrap();
        drop(place);
        assert_eq!(Place::open(&path).unwrap().begun, [(PathBuf::from("/a"), 10)].into());
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"done\":{\"epoch\":null,\"seq");
        std::fs::write(&path, &text).unwrap();
        let mut place = Place::open(&path).unwrap();
        assert_eq!((place.sequence, place.begun.len()), (1, 1));
        place.done(2).unwrap();
        assert_eq!((Place::open(&path).unwrap().sequence, Place::open(&path).unwrap().begun.len()), (2, 0));
        std::fs::write(&path, b"nonsense\n{}\n").unwrap();
        assert!(Place::open(&path).is_err());
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place");
        let mut place = Place::open(&path).unwrap();
        place.bytes = BYTES_MAX + 1;
        assert!(!place.had(&name(), run(1), Some(1)));
        place.done(7).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 300);
        let mut again = Place::open(&path).unwrap();
        assert!(again.sequence == 7 && again.had(&name(), run(1), Some(1)));
    }
}
