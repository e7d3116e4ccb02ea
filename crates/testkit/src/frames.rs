//! Takes the stream of bytes from a NATS server apart into messages, so that a link can lose, repeat or reorder some.
//!
//! In flow bytes as they come, out flow whole frames. It must never change a byte: what is put together again is what
//! came in.

use std::mem;

/// The longest line that is believed to be one.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// One message of the protocol, with its line ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it is a live order: a message on a command subject that nobody asked for. Those of a catch-up carry a
    /// reply subject.
    pub live_order: bool,
}

/// Collects bytes until they are frames.
#[derive(Debug, Default)]
pub struct Frames {
    waiting: Vec<u8>,
    /// What this cannot take apart passes as it is.
    lost: bool,
}

impl Frames {
    /// Takes in what came, and gives out what is whole by now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.waiting.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut from = 0;
        while !self.lost {
            let rest = self.waiting.get(from..).unwrap_or_default();
            match first_frame(rest) {
                First::Whole { length, live_order } => {
                    frames.push(Frame { bytes: rest.get(..length).unwrap_or_default().to_vec(), live_order });
                    from += length;
                }
                First::Part => break,
                First::Strange => self.lost = true,
            }
        }
        self.waiting.drain(..from);
        if self.lost && !self.waiting.is_empty() {
            frames.push(Frame { bytes: mem::take(&mut self.waiting), live_order: false });
        }
        frames
    }
}

enum First {
    Whole { length: usize, live_order: bool },
    Part,
    Strange,
}

fn first_frame(bytes: &[u8]) -> First {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() > LINE_BYTES_MAX { First::Strange } else { First::Part };
    };
    let line_length = end + 2;
    let Some(line) = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok()) else { return First::Strange };
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    // MSG <subject> <sid> [reply] <bytes>, HMSG <subject> <sid> [reply] <bytes of headers> <bytes>
    let unasked = match words.first().map(|word| word.to_ascii_uppercase()).as_deref() {
        Some("MSG") => words.len() == 4,
        Some("HMSG") => words.len() == 5,
        _ => return First::Whole { length: line_length, live_order: false },
    };
    let Some(payload) = words.last().and_then(|word| word.parse::<usize>().ok()) else { return First::Strange };
    let length = line_length + payload + 2;
    if bytes.len() < length {
        return First::Part;
    }
    let live_order = unasked && words.get(1).is_some_and(|subject| subject.split('.').nth(1) == Some("command"));
    First::Whole { length, live_order }
}

/// What a link does to live orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Meddling {
    /// Nothing.
    #[default]
    None,
    /// Each is held back and overtaken by the next.
    Reorder,
    /// Each comes twice.
    Double,
    /// Every second one is lost.
    Drop,
}

/// Does it.
#[derive(Debug, Default)]
pub struct Meddler {
    held: Option<Vec<u8>>,
    odd: bool,
}

impl Meddler {
    /// What is to be passed on in place of `frame`.
    pub fn pass(&mut self, frame: Frame, meddling: Meddling) -> Vec<u8> {
        if !frame.live_order || meddling == Meddling::None {
            // Whatever was held back comes before what is not to be overtaken.
            let mut bytes = self.release();
            bytes.extend_from_slice(&frame.bytes);
            return bytes;
        }
        match meddling {
            Meddling::Reorder => match self.held.take() {
                None => {
                    self.held = Some(frame.bytes);
                    Vec::new()
                }
                Some(earlier) => [frame.bytes, earlier].concat(),
            },
            Meddling::Double => [frame.bytes.as_slice(), frame.bytes.as_slice()].concat(),
            Meddling::Drop => {
                self.odd = !self.odd;
                if self.odd { Vec::new() } else { frame.bytes }
            }
            Meddling::None => frame.bytes,
        }
    }

    /// What was held back and is to go on now.
    pub fn release(&mut self) -> Vec<u8> {
        self.held.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"INFO {\"x\":1}\r\nPING\r\nMSG a.command.m.d 1 3\r\na\r\n\r\nHMSG a.command.m.d 1 4 6\r\nh\r\n\r\nbb\r\n\
        HMSG a.command.m.d 9 $JS.ACK.x 4 6\r\nh\r\n\r\ncc\r\n+OK\r\n";

    #[test]
    fn whatever_the_pieces_the_same_frames_come_out_and_no_byte_is_changed() {
        for size in 1..STREAM.len() {
            let mut frames = Frames::default();
            let all: Vec<Frame> = STREAM.chunks(size).flat_map(|piece| frames.push(piece)).collect();
            assert_eq!(all.len(), 6, "pieces of {size}");
            assert_eq!(all.iter().flat_map(|frame| frame.bytes.clone()).collect::<Vec<_>>(), STREAM);
            let live: Vec<bool> = all.iter().map(|frame| frame.live_order).collect();
            assert_eq!(live, [false, false, true, true, false, false], "a catch-up's are not live");
        }
    }

    #[test]
    fn what_is_no_protocol_passes_as_it_is() {
        let mut frames = Frames::default();
        let all: Vec<u8> =
            [&b"MSG a b\r\n"[..], b"xyz"].into_iter().flat_map(|b| frames.push(b)).flat_map(|f| f.bytes).collect();
        assert_eq!(all, b"MSG a b\r\nxyz");
    }

    #[test]
    fn live_orders_are_reordered_doubled_and_dropped() {
        let frame = |text: &str| Frame { bytes: text.into(), live_order: true };
        let other = Frame { bytes: b"p".to_vec(), live_order: false };
        let through = |meddling| {
            let mut meddler = Meddler::default();
            let mut out: Vec<u8> = ["1", "2", "3"].into_iter().flat_map(|f| meddler.pass(frame(f), meddling)).collect();
            out.extend(meddler.pass(other.clone(), meddling));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(through(Meddling::None), "123p");
        assert_eq!(through(Meddling::Reorder), "213p");
        assert_eq!(through(Meddling::Double), "112233p");
        assert_eq!(through(Meddling::Drop), "2p");
    }
}
