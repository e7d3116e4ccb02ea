//! Following a file: whole lines as they are appended, across rotation, truncation and restarts.
//!
//! A file is known by device, inode and its first bytes: an inode alone is used again. Files are read in the order in which
//! they had the name: one that was renamed away is read to its end, and a while longer, before the next one; one that was
//! renamed away while nobody looked is found again in its directory, also when it was compressed. Where a file was copied
//! and then emptied in place (`copytruncate`), what had not been read is read from the copy.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use flate2::read::MultiGzDecoder;
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most bytes read at once.
const READ_BYTES: usize = 256 * 1024;
/// The longest line; longer ones are cut into pieces of this length.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;
/// How many of the first bytes tell one file from another.
const HEAD_BYTES_MAX: usize = 256;
/// A file that was renamed away has ended when nothing was written to it for so long: writers may not know yet.
const ROTATED_QUIET: Duration = Duration::from_secs(1);
/// For so long it is looked at after that, for writers who still do not know.
const STRAGGLERS_MAX: Duration = Duration::from_secs(60);
/// So many such files are kept open.
const STRAGGLERS_COUNT_MAX: usize = 4;
/// So many files that were renamed away while nobody looked are read, the newest ones.
const MISSED_MAX: usize = 64;
/// The beginnings of so many files that were read are remembered.
const ENDED_MAX: usize = 8;
/// A record of several lines is over when no line came for so long.
const RECORD_QUIET: Duration = Duration::from_secs(1);

/// A line, or a piece of one that is too long, or several lines that are one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    /// The line goes on in the next piece.
    pub(super) goes_on: bool,
}

/// How far a file has been read, and how it is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState {
    inode: u64,
    device: u64,
    /// The first byte not yet reported.
    offset: u64,
    /// SHA-256 over the first bytes of the file, to know it again.
    head_sha256: String,
    /// How many bytes went into `head_sha256`.
    head_bytes: u64,
    /// When it was last written to, in nanoseconds of Unix time.
    #[serde(default)]
    written: u64,
}

/// How a file began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Beginning {
    bytes: usize,
    sha256: String,
}

impl Beginning {
    fn of(head: &[u8]) -> Self {
        Self { bytes: head.len(), sha256: HEXLOWER.encode(&Sha256::digest(head)) }
    }

    fn fits(&self, head: &[u8]) -> bool {
        self.bytes > 0 && head.get(..self.bytes).is_some_and(|head| Self::of(head) == *self)
    }
}

/// How far a source has been read, as it stands in the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Oldest first.
    files: Vec<FileState>,
    /// How files began that were read to their end: a copy of one is nothing new.
    ended: VecDeque<Beginning>,
    /// When the last of them was last written to, in nanoseconds of Unix time.
    ended_at: u64,
}

impl Position {
    /// Earlier versions kept one file alone. What cannot be read at all is read from the beginning: twice rather than never.
    pub(super) fn parse(text: &str) -> Self {
        let one = |_| serde_json::from_str(text).map(|state| Self { files: vec![state], ..Self::default() });
        serde_json::from_str(text).or_else(one).unwrap_or_default()
    }
}

/// A file that is followed.
pub(super) struct Follower {
    path: PathBuf,
    /// Where a record begins, if several lines can be one.
    begins: Option<Regex>,
    /// Where reading ended last time, until the files have been found again.
    resume: Vec<FileState>,
    /// Oldest first; the last one had the name when it was last looked at.
    queue: VecDeque<Open>,
    stragglers: Vec<(Open, Instant)>,
    /// See [`Position`].
    ended: VecDeque<Beginning>,
    ended_at: u64,
    complaint: Option<String>,
}

enum Content {
    Plain(File),
    /// Compressed: it ends, and nothing is added to it.
    Packed(Box<dyn Read + Send>),
}

struct Open {
    content: Content,
    inode: u64,
    device: u64,
    /// When it was last written to, when it was opened.
    written: u64,
    /// When it was last renamed, or written to: seconds and nanoseconds. Clocks of file systems are coarse, and what has the
    /// same time of writing is told apart by it.
    changed: (i64, i64),
    head: Vec<u8>,
    /// Behind the last byte read.
    offset: u64,
    /// Behind the last byte reported.
    sure: u64,
    /// Where `partial` begins.
    line_from: u64,
    /// Read, but no whole line yet.
    partial: Vec<u8>,
    /// Whole lines of a record that may go on.
    record: Vec<u8>,
    /// When something was last read.
    heard: Instant,
    /// Nothing is added to it any more.
    complete: bool,
}

impl Follower {
    pub(super) fn new(path: PathBuf, begins: Option<Regex>, position: Position) -> Self {
        let Position { files: resume, ended, ended_at } = position;
        Self { path, begins, resume, queue: VecDeque::new(), stragglers: Vec::new(), ended, ended_at, complaint: None }
    }

    /// Whether the file of this inode is one of those that are read here.
    pub(super) fn reads(&self, device: u64, inode: u64) -> bool {
        let open = self.queue.iter().chain(self.stragglers.iter().map(|(open, _)| open));
        open.map(|open| (open.device, open.inode))
            .chain(self.resume.iter().map(|state| (state.device, state.inode)))
            .any(|known| known == (device, inode))
    }

    /// Whether there is a file under its name, or one that had it and is not over.
    pub(super) fn is_open(&self) -> bool {
        self.queue.len() > 1 || !self.stragglers.is_empty() || self.path.exists()
    }

    /// What went wrong since it was last asked, as a sentence.
    pub(super) fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    /// How far reading has come: to go on from after a restart.
    pub(super) fn position(&self) -> String {
        let open = self.stragglers.iter().map(|(open, _)| open).chain(&self.queue);
        let files = if self.queue.is_empty() { self.resume.clone() } else { open.map(Open::state).collect() };
        let position = Position { files, ended: self.ended.clone(), ended_at: self.ended_at };
        serde_json::to_string(&position).unwrap_or_default()
    }

    /// The lines that are new since the last call; none when there is nothing new.
    pub(super) fn poll(&mut self, now: Instant) -> io::Result<Vec<Line>> {
        if self.queue.is_empty() {
            self.locate(now)?;
        }
        let mut lines = Vec::new();
        for (straggler, _) in &mut self.stragglers {
            straggler.read(&mut lines, self.begins.as_ref(), now)?;
        }
        self.stragglers.retain(|(_, until)| *until > now);
        let is_last = self.queue.len() == 1;
        let Some(front) = self.queue.front_mut() else { return Ok(lines) };
        if is_last && front.was_rewritten()? {
            self.begin_again(&mut lines, now)?;
            return Ok(lines);
        }
        if front.read(&mut lines, self.begins.as_ref(), now)? > 0 {
            return Ok(lines);
        }
        if !is_last {
            if front.complete || now.duration_since(front.heard) >= ROTATED_QUIET {
                self.finish_front(&mut lines, now);
            }
            return Ok(lines);
        }
        // At its end: is it still the file of this name?
        match std::fs::metadata(&self.path) {
            Ok(met) if (met.ino(), met.dev()) == (front.inode, front.device) => {
                if met.len() < front.offset {
                    self.begin_again(&mut lines, now)?;
                } else if now.duration_since(front.heard) >= RECORD_QUIET {
                    front.end_record(&mut lines);
                }
            }
            Ok(_) => {
                let after = front.written();
                let current = Open::at(&self.path, 0, now)?;
                self.queue.push_back(current);
                self.take_up_missed(after, now);
            }
            // Renamed away, and nothing new yet: what is still written to it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => front.end_record(&mut lines),
            Err(error) => return Err(error),
        }
        Ok(lines)
    }

    /// The oldest file is read to its end. It is looked at for a while, in case somebody still writes to it.
    fn finish_front(&mut self, lines: &mut Vec<Line>, now: Instant) {
        let Some(mut front) = self.queue.pop_front() else { return };
        front.end(lines);
        self.has_ended(&front.head, front.written());
        self.take_up_missed(self.ended_at, now);
        if let Some(next) = self.queue.front_mut() {
            next.heard = now;
        }
        if !front.complete {
            self.stragglers.push((front, now + STRAGGLERS_MAX));
            if self.stragglers.len() > STRAGGLERS_COUNT_MAX {
                self.stragglers.remove(0);
            }
        }
    }

    /// A file was read to its end, or what began like this is in another file now.
    fn has_ended(&mut self, head: &[u8], written: u64) {
        self.ended_at = self.ended_at.max(written);
        self.ended.push_back(Beginning::of(head));
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
    }

    /// The file was emptied in place. What had not been read may be in a copy of it.
    fn begin_again(&mut self, lines: &mut Vec<Line>, now: Instant) -> io::Result<()> {
        let anew = Open::at(&self.path, 0, now)?;
        let Some(mut front) = self.queue.pop_front() else { return Ok(()) };
        let copy = self.find(&front.state(), false, now);
        let after = copy.as_ref().map_or_else(|| u64::MAX, |copy| copy.written);
        self.has_ended(&front.head, 0);
        match copy {
            Some(copy) => self.queue.push_back(Open { complete: true, ..copy }),
            None => front.end(lines),
        }
        self.queue.push_back(anew);
        self.take_up_missed(after, now);
        Ok(())
    }

    /// Finds the files again that were read before, and what came after them.
    fn locate(&mut self, now: Instant) -> io::Result<()> {
        let current = Open::at(&self.path, 0, now);
        let mut found: VecDeque<Open> = VecDeque::new();
        for state in self.resume.clone() {
            if let Ok(current) = &current
                && current.is(&state)
            {
                continue;
            }
            match self.find(&state, true, now) {
                Some(open) => found.push_back(open),
                // One that has said nothing yet is not missed.
                None if state.offset > 0 => {
                    self.complaint = Some(format!(
                        "{}: the file that was read last (inode {}) is gone; what was in it behind byte {} is not known",
                        self.path.display(),
                        state.inode,
                        state.offset
                    ));
                }
                None => {}
            }
        }
        let current = match current {
            Ok(mut current) => {
                if let Some(state) = self.resume.iter().find(|state| current.is(state)) {
                    current.go_to(state.offset)?;
                }
                Some(current)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !found.is_empty() => None,
            Err(error) => return Err(error),
        };
        let last = self.resume.last();
        // What is the same file as before has missed nothing.
        let is_same = last.is_some_and(|state| current.as_ref().is_some_and(|current| current.is(state)));
        let after = last.filter(|_| !is_same).map(|state| {
            let open = found.iter().find(|open| (open.inode, open.device) == (state.inode, state.device));
            open.map_or(state.written, Open::written)
        });
        self.queue = found;
        self.queue.extend(current);
        self.resume.clear();
        if let Some(after) = after {
            self.take_up_missed(after, now);
        }
        Ok(())
    }

    /// Takes up the files that had the name at or after this time, and have it no more: they were rotated away while nobody
    /// looked. The order is that in which they were last written to; what is being read stays first, and the file that has the
    /// name now last.
    fn take_up_missed(&mut self, after: u64, now: Instant) {
        let after = after.max(self.ended_at);
        let current = std::fs::metadata(&self.path).ok().map(|met| (met.dev(), met.ino()));
        for open in &mut self.queue {
            // What was emptied before it was read begins otherwise by now: then what looks like its copy is the only one.
            open.look_at_head();
        }
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        for (path, met) in self.neighbours(true) {
            if written(&met) < after || current == Some((met.dev(), met.ino())) || self.reads(met.dev(), met.ino()) {
                continue;
            }
            let known = self.queue.iter().chain(self.stragglers.iter().map(|(open, _)| open)).map(|open| &open.head);
            let known: Vec<&Vec<u8>> = known.filter(|head| !head.is_empty()).collect();
            let is_copy = |open: &Open| {
                known.iter().any(|head| open.head.starts_with(head) || head.starts_with(&open.head))
                    || self.ended.iter().any(|head| head.fits(&open.head))
            };
            if Open::at(&path, 0, now).is_ok_and(|open| !open.head.is_empty() && !is_copy(&open)) {
                found.push((written(&met), path));
            }
        }
        if found.is_empty() {
            return;
        }
        found.sort();
        for (_, path) in &found {
            tracing::info!(file = %path.display(), "a file that was rotated away meanwhile is read");
        }
        found.drain(..found.len().saturating_sub(MISSED_MAX));
        let mut queue: Vec<Open> = self.queue.drain(..).collect();
        queue.extend(found.into_iter().filter_map(|(_, path)| Open::at(&path, 0, now).ok()));
        let rank = |open: &Open| {
            let is_current = current == Some((open.device, open.inode)) && !open.complete;
            (is_current, open.offset == 0, open.written(), open.changed)
        };
        queue.sort_by_key(rank);
        self.queue = queue.into();
    }

    /// The regular files in the directory; with `named` only those of which the name goes on from this one.
    fn neighbours(&self, named: bool) -> Vec<(PathBuf, Metadata)> {
        let own = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(entries) = self.path.parent().and_then(|dir| std::fs::read_dir(dir).ok()) else { return Vec::new() };
        let entries = entries.filter_map(Result::ok).filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix(own.as_str());
            rest.is_some_and(|rest| rest.starts_with(['.', '-', '_'])) || (!named && name != own)
        });
        let files = entries.filter_map(|entry| entry.metadata().ok().map(|met| (entry.path(), met)));
        files.filter(|(_, met)| met.is_file()).collect()
    }

    /// The file of which this is known, by its inode, or (a copy, or what a compressor made of it) by how it begins.
    fn find(&self, state: &FileState, by_inode: bool, now: Instant) -> Option<Open> {
        let neighbours = self.neighbours(false);
        let own =
            neighbours.iter().filter(|(_, met)| by_inode && (met.ino(), met.dev()) == (state.inode, state.device));
        let own = own.filter_map(|(path, _)| Open::at(path, 0, now).ok()).find(|open| open.is(state));
        let mut found = own.or_else(|| {
            if state.head_bytes == 0 {
                return None;
            }
            let mut others: Vec<_> = neighbours.iter().filter(|(_, met)| met.ino() != state.inode).collect();
            others.sort_by_key(|(_, met)| std::cmp::Reverse((met.mtime(), met.mtime_nsec())));
            others.into_iter().take(MISSED_MAX).find_map(|(path, met)| {
                let open = Open::at(path, 0, now).ok()?;
                let long_enough = packing(path).is_some() || met.len() >= state.offset;
                (long_enough && open.begins_as(state)).then_some(Open { complete: true, ..open })
            })
        })?;
        (found.inode, found.device) = (state.inode, state.device);
        found.go_to(state.offset).ok()?;
        Some(found)
    }
}

/// How a file is compressed, by its name.
fn packing(path: &Path) -> Option<&'static str> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("gz") => Some("gz"),
        Some("zst") => Some("zst"),
        Some("xz" | "bz2" | "lz4") => Some("other"),
        _ => None,
    }
}

/// When a file was last written to, in nanoseconds of Unix time. Renaming leaves that as it is, and so do compressors.
fn written(met: &Metadata) -> u64 {
    let since = met.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Open {
    fn at(path: &Path, offset: u64, now: Instant) -> io::Result<Self> {
        let file = File::open(path)?;
        let met = file.metadata()?;
        if !met.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file"));
        }
        let mut head = vec![0; HEAD_BYTES_MAX];
        let mut content: Content = match packing(path) {
            None => {
                let read = read_head(&file, &mut head)?;
                head.truncate(read);
                Content::Plain(file)
            }
            Some(how) => {
                let mut packed = unpacking(&file, how)?;
                let read = fill(packed.as_mut(), &mut head)?;
                head.truncate(read);
                (&file).seek(SeekFrom::Start(0))?;
                Content::Packed(unpacking(&file, how)?)
            }
        };
        if let Content::Plain(file) = &mut content {
            file.seek(SeekFrom::Start(0))?;
        }
        let complete = matches!(content, Content::Packed(_));
        let mut open = Self {
            content,
            inode: met.ino(),
            device: met.dev(),
            written: written(&met),
            changed: (met.ctime(), met.ctime_nsec()),
            head,
            offset: 0,
            sure: 0,
            line_from: 0,
            partial: Vec::new(),
            record: Vec::new(),
            heard: now,
            complete,
        };
        open.go_to(offset)?;
        Ok(open)
    }

    fn go_to(&mut self, offset: u64) -> io::Result<()> {
        match &mut self.content {
            Content::Plain(file) => {
                file.seek(SeekFrom::Start(offset))?;
            }
            Content::Packed(packed) => {
                io::copy(&mut packed.by_ref().take(offset), &mut io::sink())?;
            }
        }
        (self.offset, self.sure, self.line_from) = (offset, offset, offset);
        Ok(())
    }

    fn state(&self) -> FileState {
        let head =
            self.head.get(..self.head.len().min(usize::try_from(self.sure).unwrap_or(usize::MAX))).unwrap_or_default();
        FileState {
            inode: self.inode,
            device: self.device,
            offset: self.sure,
            head_sha256: HEXLOWER.encode(&Sha256::digest(head)),
            head_bytes: head.len() as u64,
            written: self.written(),
        }
    }

    /// Whether it is the file of which this is known, grown or not.
    fn is(&self, state: &FileState) -> bool {
        (self.inode, self.device) == (state.inode, state.device)
            && self.begins_as(state)
            && self.length() >= state.offset
    }

    fn written(&self) -> u64 {
        match &self.content {
            Content::Plain(file) => file.metadata().map_or(self.written, |met| written(&met)),
            Content::Packed(_) => self.written,
        }
    }

    fn length(&self) -> u64 {
        match &self.content {
            Content::Plain(file) => file.metadata().map_or(0, |met| met.len()),
            Content::Packed(_) => u64::MAX,
        }
    }

    fn begins_as(&self, state: &FileState) -> bool {
        let bytes = usize::try_from(state.head_bytes).unwrap_or(usize::MAX);
        self.head.get(..bytes).is_some_and(|head| HEXLOWER.encode(&Sha256::digest(head)) == state.head_sha256)
    }

    /// Takes notice of how it begins now, as long as nothing of it was read.
    fn look_at_head(&mut self) {
        let Content::Plain(file) = &self.content else { return };
        let mut head = vec![0; HEAD_BYTES_MAX];
        if self.offset == 0
            && let Ok(read) = read_head(file, &mut head)
        {
            head.truncate(read);
            self.head = head;
        }
    }

    /// Whether it begins otherwise than it did: it was emptied and written anew, perhaps beyond where reading is.
    fn was_rewritten(&mut self) -> io::Result<bool> {
        let Content::Plain(file) = &self.content else { return Ok(false) };
        let mut head = [0; HEAD_BYTES_MAX];
        let read = read_head(file, &mut head)?;
        let now = head.get(..read).unwrap_or_default();
        let known = self.head.get(..self.head.len().min(usize::try_from(self.offset).unwrap_or(usize::MAX)));
        if !now.starts_with(known.unwrap_or_default()) {
            return Ok(true);
        }
        self.head = now.to_vec();
        Ok(false)
    }

    /// Reads on, once; returns how many bytes were read.
    fn read(&mut self, lines: &mut Vec<Line>, begins: Option<&Regex>, now: Instant) -> io::Result<usize> {
        let mut buffer = vec![0; READ_BYTES];
        let read = match &mut self.content {
            Content::Plain(file) => file.read(&mut buffer)?,
            Content::Packed(packed) => packed.read(&mut buffer)?,
        };
        if read > 0 {
            self.offset += read as u64;
            self.heard = now;
            self.split(buffer.get(..read).unwrap_or_default(), lines, begins);
            if self.head.len() < HEAD_BYTES_MAX
                && let Content::Plain(file) = &self.content
            {
                let mut head = vec![0; HEAD_BYTES_MAX];
                let read = read_head(file, &mut head)?;
                head.truncate(read);
                self.head = head;
            }
        }
        Ok(read)
    }

    /// Adds bytes to the line under way, and whole lines to `lines`, without their ends.
    fn split(&mut self, bytes: &[u8], lines: &mut Vec<Line>, begins: Option<&Regex>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            rest = behind.get(1..).unwrap_or_default();
            self.partial.extend_from_slice(line);
            if self.partial.last() == Some(&b'\r') {
                self.partial.pop();
            }
            let mut line = std::mem::take(&mut self.partial);
            // Where this line begins and ends in the file.
            let end = self.offset - rest.len() as u64;
            let from = std::mem::replace(&mut self.line_from, end);
            match begins {
                None => {
                    cut(&mut line, lines);
                    lines.push(Line { bytes: line, goes_on: false });
                    self.sure = end;
                }
                Some(begins) => self.gather(line, from, lines, begins),
            }
        }
        self.partial.extend_from_slice(rest);
        if begins.is_none() && self.partial.len() > LINE_BYTES_MAX {
            cut(&mut self.partial, lines);
            self.line_from = self.offset - self.partial.len() as u64;
            self.sure = self.line_from;
        } else if self.partial.len() > LINE_BYTES_MAX * 4 {
            // Of a record of several lines only the last can be without an end.
            self.end_record(lines);
            cut(&mut self.partial, lines);
            self.line_from = self.offset - self.partial.len() as u64;
            self.sure = self.line_from;
        }
    }

    /// Adds a line to the record under way, or begins the next one.
    fn gather(&mut self, line: Vec<u8>, from: u64, lines: &mut Vec<Line>, begins: &Regex) {
        let full = self.record.len() + line.len() > LINE_BYTES_MAX;
        if !self.record.is_empty() && (full || begins.is_match(&String::from_utf8_lossy(&line))) {
            let record = std::mem::take(&mut self.record);
            lines.push(Line { bytes: record, goes_on: false });
            self.sure = from;
        }
        if !self.record.is_empty() {
            self.record.push(b'\n');
        }
        self.record.extend_from_slice(&line);
        cut(&mut self.record, lines);
    }

    /// No more lines belong to the record under way.
    fn end_record(&mut self, lines: &mut Vec<Line>) {
        if !self.record.is_empty() {
            lines.push(Line { bytes: std::mem::take(&mut self.record), goes_on: false });
            self.sure = self.line_from;
        }
    }

    /// Nothing more comes: what has no end is a line as well.
    fn end(&mut self, lines: &mut Vec<Line>) {
        self.end_record(lines);
        if !self.partial.is_empty() {
            lines.push(Line { bytes: std::mem::take(&mut self.partial), goes_on: false });
        }
        (self.line_from, self.sure) = (self.offset, self.offset);
    }
}

/// Takes whole pieces off a line that is too long.
fn cut(line: &mut Vec<u8>, lines: &mut Vec<Line>) {
    while line.len() > LINE_BYTES_MAX {
        let rest = line.split_off(LINE_BYTES_MAX);
        lines.push(Line { bytes: std::mem::replace(line, rest), goes_on: true });
    }
}

fn unpacking(file: &File, how: &str) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::new(file.try_clone()?);
    match how {
        "gz" => Ok(Box::new(MultiGzDecoder::new(file))),
        "zst" => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(file)?)),
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "it is compressed in a way that is not read")),
    }
}

/// Reads from the beginning without moving.
fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = head.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
