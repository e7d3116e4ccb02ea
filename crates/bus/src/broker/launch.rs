//! One start of the server: the port is free, the process runs, it serves.
//!
//! In flows the plan, the same for every start; out flows a server that serves, or why it does not. A server that was
//! started and does not serve is not left running.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::{BrokerError, io_error};
use super::process::Process;
use super::{home, log, port};

/// How often a starting server is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// All that is needed to start the server, once or again.
pub(super) struct Plan {
    pub(super) dir: PathBuf,
    pub(super) server: PathBuf,
    pub(super) conf: PathBuf,
    pub(super) log: PathBuf,
    pub(super) stderr: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) server_name: String,
    pub(super) ready_within: Duration,
}

/// A server's process, and where in the log it begins.
pub(super) struct Running {
    process: Process,
    pub(super) logged: u64,
}

impl Deref for Running {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Plan {
    /// Starts a server and waits until it serves.
    pub(super) async fn launch(&self) -> Result<Running, BrokerError> {
        let running = self.spawn().await?;
        self.ready(&running).await?;
        Ok(running)
    }

    /// Starts a server.
    pub(super) async fn spawn(&self) -> Result<Running, BrokerError> {
        if let Err(error) = port::try_listen(self.listen) {
            return Err(home::listen_error(self.listen, error).await);
        }
        let logged = log::end(&self.log);
        let spawned = Process::spawn(&self.server, &self.conf, &self.stderr).await;
        Ok(Running { process: spawned.map_err(io_error("start the program", &self.server))?, logged })
    }

    /// Waits until a server serves. One that does not within its time is ended.
    pub(super) async fn ready(&self, running: &Running) -> Result<(), BrokerError> {
        let deadline = Instant::now() + self.ready_within;
        loop {
            if running.has_ended() {
                return Err(BrokerError::Died { said: self.last_words(running), log: self.log.clone() });
            }
            match port::greeting(self.listen).await {
                Ok(greeting) if greeting.jetstream && greeting.server_name == self.server_name => return Ok(()),
                _ if Instant::now() >= deadline => {
                    running.stop().await;
                    let (waited, said) = (self.ready_within, self.last_words(running));
                    return Err(BrokerError::NotReady { waited, said, log: self.log.clone() });
                }
                _ => sleep(ASK_EVERY).await,
            }
        }
    }

    /// What the server said last.
    pub(super) fn last_words(&self, running: &Running) -> String {
        log::last_words(&self.log, running.logged, &self.stderr)
    }
}
