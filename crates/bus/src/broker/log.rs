//! What the server's log says last, for error messages. Reads only.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// No more than this is read.
const TAIL_BYTES_MAX: u64 = 16 * 1024;
/// No more lines than this go into a message.
const LINES_MAX: usize = 3;

/// Where the log ends now; what is said from here on is there.
pub(super) fn end(log: &Path) -> u64 {
    fs::metadata(log).map_or(0, |meta| meta.len())
}

/// The last complaints in the log since `from`; for want of complaints its last line; for want of a log, what the
/// server wrote to its standard error.
pub(super) fn last_words(log: &Path, from: u64, stderr: &Path) -> String {
    let text = tail(log, from);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let complaints: Vec<&str> = lines.iter().filter_map(|line| complaint(line)).collect();
    if !complaints.is_empty() {
        return complaints[complaints.len().saturating_sub(LINES_MAX)..].join("; ");
    }
    let spoken = tail(stderr, 0);
    let spoken: Vec<&str> = spoken.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match (spoken.is_empty(), lines.last()) {
        (false, _) => spoken[spoken.len().saturating_sub(LINES_MAX)..].join("; "),
        (true, Some(line)) => line.split_once("] ").map_or(*line, |(_, said)| said).to_owned(),
        (true, None) => "nothing".to_owned(),
    }
}

/// The first line since `from` with these words in it.
pub(super) fn line_with(log: &Path, from: u64, words: &str) -> Option<String> {
    tail(log, from).lines().find_map(|line| line.contains(words).then(|| complaint(line).unwrap_or(line).to_owned()))
}

/// The message in `[pid] date time [ERR] message`, if it is a warning or worse.
fn complaint(line: &str) -> Option<&str> {
    ["[FTL] ", "[ERR] ", "[WRN] "].iter().find_map(|level| Some(line.split_once(level)?.1))
}

fn tail(path: &Path, from: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = if from > length { 0 } else { from }; // it began anew meanwhile
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_come_before_the_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let (log, stderr) = (dir.path().join("log"), dir.path().join("err"));
        assert_eq!(last_words(&log, 0, &stderr), "nothing");
        let old = "[1] 2026/11/22 12:00:00.0 [ERR] old trouble\n";
        fs::write(&log, format!("{old}[1] 2026/11/22 12:00:01.0 [INF] Starting\n")).unwrap();
        let from = u64::try_from(old.len()).unwrap();
        assert_eq!(last_words(&log, from, &stderr), "2026/11/22 12:00:01.0 [INF] Starting");
        fs::write(&log, format!("{old}[1] 2026 [FTL] disk full\n[1] 2026 [INF] Exiting\n")).unwrap();
        assert_eq!(last_words(&log, from, &stderr), "disk full");
        fs::write(&log, "").unwrap();
        fs::write(&stderr, "nats-server: config is broken\n").unwrap();
        assert_eq!(last_words(&log, 0, &stderr), "nats-server: config is broken");
    }
}
