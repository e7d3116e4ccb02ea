//! A job's output as it comes: raw for one node, in front of each line the node's name for several, JSON lines for
//! programs.
//!
//! Bytes of a single node pass unharmed. Of several nodes, only whole lines are printed, so that two of them never
//! share one; what has no end after [`LINE_BYTES_MAX`] is cut there.

use std::collections::{BTreeMap, HashMap};

use fleet::{OutputStream, Update};
use message::NodeName;

use super::job::natural;
use super::paint::Paint;
use crate::args::Format;
use crate::out::Out;

/// The longest line that is held back for its end.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// How output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As it is.
    Raw,
    /// `node | line`.
    Named,
    /// `{"type": …}`.
    Json,
    /// Not at all.
    Hidden,
}

/// Shows a job's updates.
pub(crate) struct Live {
    mode: Mode,
    /// The part in front of each line, by node.
    names: BTreeMap<NodeName, (String, Paint)>,
    /// What is held back: beginnings of lines, or of characters.
    held: HashMap<(NodeName, OutputStream), Vec<u8>>,
    /// Nodes that have written something to stdout.
    wrote: std::collections::BTreeSet<NodeName>,
}

impl Live {
    /// For a job of these nodes.
    pub(crate) fn new<'a>(format: Format, nodes: impl IntoIterator<Item = &'a NodeName>) -> Self {
        let mut nodes: Vec<&NodeName> = nodes.into_iter().collect();
        nodes.sort_by(|a, b| natural(a.as_str(), b.as_str()));
        let mode = match format {
            Format::Human if nodes.len() == 1 => Mode::Raw,
            Format::Human => Mode::Named,
            Format::Ndjson => Mode::Json,
            Format::Json | Format::Table | Format::Wide => Mode::Hidden,
        };
        let width = nodes.iter().map(|name| name.as_str().len()).max().unwrap_or(0);
        let names = nodes
            .into_iter()
            .enumerate()
            .map(|(index, name)| (name.clone(), (format!("{name:<width$} |"), Paint::nth(index))))
            .collect();
        Self { mode, names, held: HashMap::new(), wrote: std::collections::BTreeSet::new() }
    }

    /// Whether a node has written to its standard output.
    pub(crate) fn has_written(&self, node: &NodeName) -> bool {
        self.wrote.contains(node)
    }

    /// Shows what became known.
    pub(crate) fn update(&mut self, out: &mut Out, update: &Update) -> anyhow::Result<()> {
        match update {
            Update::Output { node, stream, bytes } => {
                if *stream == OutputStream::Stdout && !bytes.is_empty() {
                    self.wrote.insert(node.clone());
                }
                self.output(out, node, *stream, bytes)
            }
            Update::State { .. } if self.mode == Mode::Json => {
                out.json_line(&update.to_json())?;
                out.flush()
            }
            Update::State { .. } => Ok(()),
            Update::Note { node, text } => {
                let about = node.as_ref().map(|node| format!("{node}: ")).unwrap_or_default();
                out.note(format!("{about}{}", super::paint::tame(text)));
                Ok(())
            }
        }
    }

    fn output(&mut self, out: &mut Out, node: &NodeName, stream: OutputStream, bytes: &[u8]) -> anyhow::Result<()> {
        match self.mode {
            Mode::Hidden => Ok(()),
            Mode::Raw => {
                out.end_progress_on_shared_screen();
                print(out, stream, bytes)
            }
            Mode::Named => {
                let held = self.held.entry((node.clone(), stream)).or_default();
                held.extend_from_slice(bytes);
                let whole = match held.iter().rposition(|byte| *byte == b'\n') {
                    Some(end) => end + 1,
                    None if held.len() > LINE_BYTES_MAX => held.len(),
                    None => return Ok(()),
                };
                let rest = held.split_off(whole);
                let lines = std::mem::replace(held, rest);
                self.lines(out, node, stream, &lines)
            }
            Mode::Json => {
                let held = self.held.entry((node.clone(), stream)).or_default();
                held.extend_from_slice(bytes);
                let rest = held.split_off(held.len() - unfinished_character(held));
                let whole = std::mem::replace(held, rest);
                Self::json(out, node, stream, whole)
            }
        }
    }

    /// Prints what was held back.
    pub(crate) fn finish(&mut self, out: &mut Out) -> anyhow::Result<()> {
        let mut held: Vec<_> = self.held.drain().filter(|(_, bytes)| !bytes.is_empty()).collect();
        held.sort_by(|a, b| a.0.cmp(&b.0));
        for ((node, stream), bytes) in held {
            if self.mode == Mode::Json {
                Self::json(out, &node, stream, bytes)?;
            } else {
                self.lines(out, &node, stream, &bytes)?;
            }
        }
        out.flush()
    }

    fn lines(&self, out: &mut Out, node: &NodeName, stream: OutputStream, bytes: &[u8]) -> anyhow::Result<()> {
        let colors = if stream == OutputStream::Stdout { out.colors() } else { out.note_colors() };
        let name = self.names.get(node).map_or_else(|| format!("{node} |"), |(name, paint)| paint.on(name, colors));
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|byte| *byte == b'\n') {
            text.extend_from_slice(name.as_bytes());
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                text.push(b' ');
                text.extend_from_slice(line);
            }
            text.push(b'\n');
        }
        print(out, stream, &text)
    }

    /// Prints text in the name of a node, as if it had written it to its standard output.
    pub(crate) fn say(&self, out: &mut Out, node: &NodeName, text: &str) -> anyhow::Result<()> {
        match self.mode {
            Mode::Raw => out.line(text),
            Mode::Named => self.lines(out, node, OutputStream::Stdout, text.as_bytes()),
            Mode::Json | Mode::Hidden => Ok(()),
        }
    }

    /// Prints what a node once wrote, to stdout, with its name in front of each line.
    pub(crate) fn say_bytes(&self, out: &mut Out, node: &NodeName, bytes: &[u8]) -> anyhow::Result<()> {
        self.lines(out, node, OutputStream::Stdout, bytes)
    }

    fn json(out: &mut Out, node: &NodeName, stream: OutputStream, bytes: Vec<u8>) -> anyhow::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        out.json_line(&Update::Output { node: node.clone(), stream, bytes: bytes.into() }.to_json())?;
        out.flush()
    }
}

fn print(out: &mut Out, stream: OutputStream, bytes: &[u8]) -> anyhow::Result<()> {
    match stream {
        OutputStream::Stdout => out.bytes(bytes),
        OutputStream::Stderr => {
            out.error_bytes(bytes);
            Ok(())
        }
    }
}

/// How many bytes at the end begin a UTF-8 character that the next piece may complete.
fn unfinished_character(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        // Without an error length the text is fine as far as it goes, and ends within a character.
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::out::tests::captured;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn output(node: &str, stream: OutputStream, bytes: &'static [u8]) -> Update {
        Update::Output { node: name(node), stream, bytes: bytes::Bytes::from_static(bytes) }
    }

    #[test]
    fn the_bytes_of_one_node_pass_unharmed() {
        let (mut out, stdout, stderr) = captured(Format::Human);
        let mut live = Live::new(Format::Human, [&name("ship1")]);
        live.update(&mut out, &output("ship1", OutputStream::Stdout, b"no newline")).unwrap();
        live.update(&mut out, &output("ship1", OutputStream::Stderr, b"oops\r\n")).unwrap();
        live.finish(&mut out).unwrap();
        assert_eq!((stdout.text().as_str(), stderr.text().as_str()), ("no newline", "oops\r\n"));
    }

    #[test]
    fn lines_of_several_nodes_are_named_and_never_mixed() {
        let (mut out, stdout, stderr) = captured(Format::Human);
        let mut live = Live::new(Format::Human, [&name("ship1"), &name("ship10")]);
        live.update(&mut out, &output("ship1", OutputStream::Stdout, b"one\ntw")).unwrap();
        live.update(&mut out, &output("ship10", OutputStream::Stdout, b"\nten\n")).unwrap();
        live.update(&mut out, &output("ship1", OutputStream::Stderr, b"warn\r\n")).unwrap();
        live.update(&mut out, &output("ship1", OutputStream::Stdout, b"o\nthree")).unwrap();
        live.finish(&mut out).unwrap();
        assert_eq!(stdout.text(), "ship1  | one\nship10 |\nship10 | ten\nship1  | two\nship1  | three\n");
        assert_eq!(stderr.text(), "ship1  | warn\n");
    }

    #[test]
    fn a_line_without_end_is_not_held_for_ever() {
        let (mut out, stdout, _) = captured(Format::Human);
        let mut live = Live::new(Format::Human, [&name("ship1"), &name("ship2")]);
        let long = Update::Output {
            node: name("ship1"),
            stream: OutputStream::Stdout,
            bytes: vec![b'x'; LINE_BYTES_MAX + 1].into(),
        };
        live.update(&mut out, &long).unwrap();
        assert!(stdout.text().len() > LINE_BYTES_MAX);
    }

    #[test]
    fn a_character_in_two_pieces_is_put_together() {
        assert_eq!(unfinished_character("ö".as_bytes()), 0);
        assert_eq!(unfinished_character(&"aö".as_bytes()[..2]), 1);
        assert_eq!(unfinished_character(&"€".as_bytes()[..2]), 2);
        assert_eq!(unfinished_character(b"a\xffb"), 0, "not text at all: nothing to wait for");
        assert_eq!(unfinished_character(b"abc"), 0);
    }
}
