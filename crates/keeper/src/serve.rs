//! The course of a keeper's life: lock, listen, serve the latest agent, end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::frame;
use crate::held::Holding;
use crate::place::Place;
use crate::secrets;
use crate::wire::{MAJOR, Report, Request};

/// How long a predecessor may take to be gone.
const LOCK_MAX: Duration = Duration::from_secs(3);
/// How long it stays with nothing to hold and no agent there.
const ALONE_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to say its first word.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// How long the programs may take to end, and the agent to hear of it, when the keeper is told to end.
const STOP_MAX: Duration = Duration::from_secs(9);

/// Runs the keeper of a state directory until it is no longer needed. Returns at once if there is another.
///
/// # Errors
/// When it cannot make its place there.
pub async fn serve(state_dir: &Path) -> io::Result<()> {
    let place = Place::open(state_dir)?;
    let Some(_lock) = lock(&place).await? else {
        tracing::info!("another keeper holds the programs of {}", state_dir.display());
        return Ok(());
    };
    let listener = place.listen()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let holding = Holding::new(place.path().to_owned());
    let quit = Arc::new(Notify::new());
    let mut agent: Option<JoinHandle<()>> = None;
    let mut alone_since = Instant::now();
    secrets::sweep();
    tracing::info!("holds the programs of {}", state_dir.display());
    loop {
        let has_agent = agent.is_some();
        let served = async {
            match &mut agent {
                Some(task) => drop(task.await), // a panic there ends that connection alone
                None => std::future::pending().await,
            }
        };
        let over = async {
            match holding.count() {
                0 => sleep_until(alone_since + ALONE_MAX).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = quit.notified() => {
                if holding.count() == 0 || holding.is_stopping() {
                    break;
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if is_us(&stream) => {
                    // What its predecessor had said and we have not read is dropped with it: it was never begun.
                    if let Some(task) = agent.take() {
                        task.abort();
                        let _ = task.await;
                    }
                    agent = Some(tokio::spawn(converse(stream, Arc::clone(&holding), Arc::clone(&quit))));
                }
                Ok(_) => tracing::warn!("somebody who runs as another user tried to connect"),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            () = served, if has_agent => {
                agent = None;
                alone_since = Instant::now();
            }
            () = holding.fewer.notified(), if !has_agent => alone_since = Instant::now(),
            () = over, if !has_agent => break,
        }
    }
    holding.end_all();
    let ended = async {
        while !(holding.running() == 0 && (agent.as_ref().is_none_or(JoinHandle::is_finished) || holding.all_told())) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(STOP_MAX, ended).await.is_err() {
        tracing::warn!("{} programs did not end", holding.running());
    }
    place.clear();
    tracing::info!("ends");
    Ok(())
}

async fn lock(place: &Place) -> io::Result<Option<std::fs::File>> {
    let deadline = Instant::now() + LOCK_MAX;
    loop {
        if let Some(lock) = place.lock()? {
            return Ok(Some(lock));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whoever can connect can run programs; the directory's mode sees to it, and this once more.
fn is_us(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

/// Serves one agent until it is gone.
async fn converse(stream: UnixStream, holding: Arc<Holding>, quit: Arc<Notify>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::with_capacity(16 * 1024, read);
    let served = async {
        match timeout(HELLO_MAX, frame::read::<Request>(&mut read)).await {
            Ok(Ok(Some((Request::Hello { major: MAJOR }, _)))) => {}
            Ok(Ok(Some(_))) => return Err(io::Error::other("an agent of another generation cannot be served")),
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
        let welcome = Report::Welcome { major: MAJOR, held: holding.begin(), secrets: true };
        write.write_all(&frame::encode(&welcome, &[])?).await?;
        // Either end of it is the end of both.
        tokio::select! {
            heard = hear(&mut read, &holding, &quit) => heard,
            told = tell(&mut write, &holding) => told,
        }
    };
    if let Err(error) = served.await {
        tracing::debug!(%error, "the agent is gone");
    }
}

async fn hear(from: &mut BufReader<OwnedReadHalf>, holding: &Arc<Holding>, quit: &Notify) -> io::Result<()> {
    while let Some((request, beside)) = frame::read::<Request>(from).await? {
        match request {
            Request::Start(start) => {
                let id = start.id;
                holding.start(id, start.program(beside));
            }
            Request::Attach { id } => holding.attach(id),
            Request::Taken { id, below } => holding.taken(id, below),
            Request::End { id } => holding.end(id),
            Request::Forget { id } => holding.forget(id),
            Request::Quit { all } => {
                if all {
                    holding.end_all();
                }
                while all && holding.running() > 0 {
                    holding.fewer.notified().await;
                }
                if holding.count() == 0 || all {
                    quit.notify_one();
                }
                return Ok(());
            }
            Request::Hello { .. } | Request::Unknown => {}
        }
    }
    Ok(())
}

async fn tell(to: &mut OwnedWriteHalf, holding: &Holding) -> io::Result<()> {
    loop {
        let news = holding.news.notified();
        let batch = holding.to_send();
        if batch.is_empty() {
            news.await;
        } else {
            to.write_all(&batch).await?;
        }
    }
}
