//! The moving line on a terminal's stderr while a verb waits.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A verb that is done sooner needs no moving line.
const APPEARS_AFTER: Duration = Duration::from_millis(300);

/// One moving line.
pub(crate) struct Progress {
    bar: ProgressBar,
    begun: std::time::Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        Self { bar, begun: std::time::Instant::now() }
    }

    /// Moves, and says what is going on if there is news.
    pub(crate) fn set(&self, news: Option<String>) {
        if self.begun.elapsed() >= APPEARS_AFTER && self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if let Some(news) = news {
            self.bar.set_message(news);
        }
        self.bar.tick();
    }

    /// Prints something while the line is out of the way.
    pub(crate) fn aside<R>(this: Option<&Self>, print: impl FnOnce() -> R) -> R {
        match this {
            Some(progress) => progress.bar.suspend(print),
            None => print(),
        }
    }

    /// Wipes the line.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
    }
}
