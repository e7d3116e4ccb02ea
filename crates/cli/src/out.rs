//! Where everything is printed: results to stdout, all else to stderr, and quietly no more once nobody reads.
//!
//! The only module that prints. Stdout is buffered; whoever shows something that is waited for flushes.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

use serde::Serialize;

use crate::args::{Color, Format, Global};
use crate::progress::Progress;

/// Stdout was closed by whoever read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(crate) struct Closed;

fn check(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}

/// The two ways out of this program.
pub(crate) struct Out {
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    format: Format,
    quiet: bool,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    color_stdout: bool,
    color_stderr: bool,
    progress: Option<Progress>,
}

impl Out {
    pub(crate) fn new(global: &Global) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colors = |terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !plain,
        };
        let (stdout_is_terminal, stderr_is_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            stdout: Box::new(BufWriter::with_capacity(64 * 1024, io::stdout())),
            stderr: Box::new(io::stderr()),
            format: global.output,
            quiet: global.quiet,
            stdout_is_terminal,
            stderr_is_terminal,
            color_stdout: colors(stdout_is_terminal),
            color_stderr: colors(stderr_is_terminal),
            progress: None,
        }
    }

    /// How results are wanted.
    /// Whether stdout is a terminal.
    pub(crate) const fn is_terminal(&self) -> bool {
        self.stdout_is_terminal
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether stdout is for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.format.is_json()
    }

    /// Whether results may be coloured.
    pub(crate) fn colors(&self) -> bool {
        self.color_stdout
    }

    /// Whether notes may be coloured.
    pub(crate) fn note_colors(&self) -> bool {
        self.color_stderr
    }

    /// Prints a line of results.
    pub(crate) fn line(&mut self, text: impl Display) -> anyhow::Result<()> {
        let progress = self.progress.take();
        let written = Progress::aside(progress.as_ref(), || writeln!(self.stdout, "{text}"));
        self.progress = progress;
        check(written)
    }

    /// Prints bytes of results as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let progress = self.progress.take();
        let written =
            Progress::aside(progress.as_ref(), || self.stdout.write_all(bytes).and_then(|()| self.stdout.flush()));
        self.progress = progress;
        check(written)
    }

    /// Adds bytes to what is printed at the next flush.
    pub(crate) fn bytes_later(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        check(self.stdout.write_all(bytes))
    }

    /// Prints bytes to stderr as they are.
    pub(crate) fn error_bytes(&mut self, bytes: &[u8]) {
        // A stderr that is gone has nobody to be told so.
        let progress = self.progress.take();
        let _ = Progress::aside(progress.as_ref(), || self.stderr.write_all(bytes));
        self.progress = progress;
    }

    /// Prints one JSON value: laid out on a terminal with `-o json`, else in one line.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        if self.stdout_is_terminal && self.format == Format::Json {
            self.line(serde_json::to_string_pretty(value)?)
        } else {
            self.json_line(value)
        }
    }

    /// Prints one JSON value in one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(serde_json::to_string(value)?)
    }

    /// Prints a list: an array, or with `-o ndjson` one value a line.
    pub(crate) fn json_list<T: Serialize>(&mut self, values: &[T]) -> anyhow::Result<()> {
        if self.format == Format::Ndjson {
            values.iter().try_for_each(|value| self.json_line(value))
        } else {
            self.json(&values)
        }
    }

    /// Tells something that is no result, unless it should be quiet.
    pub(crate) fn note(&mut self, text: impl Display) {
        if !self.quiet {
            self.error_bytes(format!("{text}\n").as_bytes());
        }
    }

    /// Tells what went wrong.
    pub(crate) fn error(&mut self, sentence: &str) {
        self.end_progress();
        let name = if self.color_stderr { "\x1b[1;31msteward:\x1b[0m" } else { "steward:" };
        self.error_bytes(format!("{name} {sentence}\n").as_bytes());
    }

    /// Hands on what is buffered.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        check(self.stdout.flush())
    }

    /// Shows that something is going on, on a terminal only.
    pub(crate) fn start_progress(&mut self) {
        if self.stderr_is_terminal && !self.quiet {
            self.progress = Some(Progress::new());
        }
    }

    /// Whether something is shown to be going on.
    pub(crate) fn shows_progress(&self) -> bool {
        self.progress.is_some()
    }

    /// Moves the line, and says what is going on if there is news.
    pub(crate) fn set_progress(&mut self, news: Option<String>) {
        if let Some(progress) = &self.progress {
            progress.set(news);
        }
    }

    /// Takes it off the screen, if output of unknown shape is about to share that screen.
    pub(crate) fn end_progress_on_shared_screen(&mut self) {
        if self.stdout_is_terminal {
            self.end_progress();
        }
    }

    /// Takes it off the screen.
    pub(crate) fn end_progress(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.end();
        }
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.end_progress();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was printed in a test.
    #[derive(Clone, Default)]
    pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        pub(crate) fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Prints into two sinks.
    pub(crate) fn captured(format: Format) -> (Out, Sink, Sink) {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let out = Out {
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            format,
            quiet: false,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
            color_stdout: false,
            color_stderr: false,
            progress: None,
        };
        (out, stdout, stderr)
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let (mut out, _, stderr) = captured(Format::Human);
        out.stdout = Box::new(Gone);
        let error = out.line("x").unwrap_err();
        assert!(error.is::<Closed>());
        let code = crate::exit::conclude(Err(error), out);
        assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
        assert_eq!(stderr.text(), "");
    }

    #[test]
    fn lists_are_an_array_or_lines() {
        let (mut out, stdout, _) = captured(Format::Json);
        out.json_list(&[1, 2]).unwrap();
        assert_eq!(stdout.text(), "[1,2]\n");
        let (mut out, stdout, _) = captured(Format::Ndjson);
        out.json_list(&[1, 2]).unwrap();
        assert_eq!(stdout.text(), "1\n2\n");
    }
}
