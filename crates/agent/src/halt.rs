//! Why this run may do nothing, as long as another agent lives under its name: told by one, heard by all who take or
//! begin orders or tell of them.
//!
//! Whoever waits is woken in the order in which it began to, so that what follows is the same each time; of tokio's
//! `watch` that is not certain.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Default)]
struct Told {
    /// The reason, and how often it has changed.
    state: Mutex<(Option<String>, u64)>,
    changed: Notify,
}

impl Told {
    fn state(&self) -> MutexGuard<'_, (Option<String>, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who tells it.
#[derive(Default)]
pub(crate) struct Teller(Arc<Told>);

impl Teller {
    pub(crate) fn tell(&self, reason: Option<String>) {
        let mut state = self.0.state();
        *state = (reason, state.1 + 1);
        drop(state);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn reason(&self) -> Option<String> {
        self.0.state().0.clone()
    }

    pub(crate) fn hear(&self) -> Halt {
        let seen = self.0.state().1;
        Halt { told: Arc::clone(&self.0), seen }
    }
}

/// Who hears it.
#[derive(Clone)]
pub(crate) struct Halt {
    told: Arc<Told>,
    seen: u64,
}

impl Halt {
    /// Whether nothing may be done now. From here on only what changes later is news.
    pub(crate) fn is_on(&mut self) -> bool {
        let state = self.told.state();
        self.seen = state.1;
        state.0.is_some()
    }

    /// The same, and what is news stays news.
    pub(crate) fn is_on_now(&self) -> bool {
        self.told.state().0.is_some()
    }

    /// Returns when there is news. May be cancelled at any time.
    pub(crate) async fn changed(&mut self) {
        loop {
            let mut changed = std::pin::pin!(self.told.changed.notified());
            // Listening begins before looking, so that no change falls in between.
            changed.as_mut().enable();
            let now = self.told.state().1;
            if now != self.seen {
                self.seen = now;
                return;
            }
            changed.await;
        }
    }

    /// Returns when something may be done.
    pub(crate) async fn over(&mut self) {
        while self.is_on() {
            self.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_hear_it_and_go_on_when_it_is_over() {
        let teller = Teller::default();
        let (mut one, mut other) = (teller.hear(), teller.hear());
        assert!(!one.is_on());
        teller.tell(Some("why".into()));
        assert_eq!(teller.reason().as_deref(), Some("why"));
        one.changed().await;
        assert!(one.is_on() && other.is_on());
        tokio::join!(one.over(), other.over(), async {
            tokio::task::yield_now().await;
            teller.tell(None);
        });
        assert!(!one.is_on());
    }
}
