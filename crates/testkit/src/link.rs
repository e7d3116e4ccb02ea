//! A link that can be broken: a TCP proxy between one agent and the broker.
//!
//! In flow an address to listen at and one to connect to; what passes is decided by a [`Condition`] that may be
//! changed at any time and works on connections that are already there. It must never outlive its [`Link`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::frames::{Frames, Meddler, Meddling};

/// How much is passed on at once: little, so that a slow link is slow for each message.
const PIECE_BYTES: usize = 4 * 1024;
/// How long an order is held back when none comes to overtake it.
const HELD_MAX: Duration = Duration::from_millis(100);
/// How long connecting to the broker may take.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// Whole.
    #[default]
    Open,
    /// Connections are closed, and new ones refused.
    Cut,
    /// Nothing passes in either direction, and nobody is told.
    Stalled,
    /// Nothing passes towards the broker.
    UpStalled,
    /// Nothing passes from the broker.
    DownStalled,
    /// Each piece takes so long, and so many bytes pass in a second.
    Slow {
        /// For each piece.
        latency: Duration,
        /// In each direction.
        bytes_per_s: u32,
    },
    /// Live orders do not arrive as they were sent.
    Meddled(Meddling),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Condition {
    fn stalls(self, direction: Direction) -> bool {
        match self {
            Self::Stalled => true,
            Self::UpStalled => direction == Direction::Up,
            Self::DownStalled => direction == Direction::Down,
            Self::Open | Self::Cut | Self::Slow { .. } | Self::Meddled(_) => false,
        }
    }
}

/// A link. Dropping it ends all that passes over it.
#[derive(Debug)]
pub struct Link {
    listen: SocketAddr,
    condition: watch::Sender<Condition>,
    passed_down: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Link {
    /// Opens one towards whichever of the `brokers` takes a connection, on a free port of loopback.
    ///
    /// # Errors
    /// When there is no port to listen on.
    pub async fn open(brokers: &[SocketAddr]) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let listen = listener.local_addr()?;
        let (condition, watched) = watch::channel(Condition::Open);
        let passed_down = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, brokers.to_vec(), watched, Arc::clone(&passed_down))).abort_handle();
        Ok(Self { listen, condition, passed_down, task })
    }

    /// Where an agent finds it.
    pub fn url(&self) -> String {
        format!("nats://{}", self.listen)
    }

    /// Makes it so, now and for connections that are there.
    pub fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// How many bytes have come from the broker over it.
    pub fn passed_down_bytes(&self) -> u64 {
        self.passed_down.load(Ordering::Relaxed)
    }

    /// Closes the connections that are there; new ones are taken at once.
    pub async fn bounce(&self) {
        let before = *self.condition.borrow();
        self.set(Condition::Cut);
        // Whoever waits for a change sees it when it runs.
        sleep(HELD_MAX).await;
        self.set(before);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    mut brokers: Vec<SocketAddr>,
    condition: watch::Receiver<Condition>,
    passed_down: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        let Ok((near, _)) = accepted else {
            sleep(HELD_MAX).await;
            continue;
        };
        if *condition.borrow() == Condition::Cut {
            continue;
        }
        // The next one has another broker first.
        if !brokers.is_empty() {
            brokers.rotate_left(1);
        }
        connections.spawn(pass(near, brokers.clone(), condition.clone(), Arc::clone(&passed_down)));
    }
}

async fn pass(
    near: TcpStream,
    brokers: Vec<SocketAddr>,
    condition: watch::Receiver<Condition>,
    passed_down: Arc<AtomicU64>,
) {
    let mut reached = None;
    for broker in brokers {
        if let Ok(Ok(far)) = timeout(CONNECT_MAX, TcpStream::connect(broker)).await {
            reached = Some(far);
            break;
        }
    }
    let Some(far) = reached else { return };
    // Small messages are not to wait for each other; without it they are merely slower.
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let mut cut = condition.clone();
    let passed_up = AtomicU64::new(0);
    // Whichever ends first ends the connection.
    tokio::select! {
        () = pump(near_read, far_write, Direction::Up, condition.clone(), &passed_up) => {}
        () = pump(far_read, near_write, Direction::Down, condition, &passed_down) => {}
        _ = cut.wait_for(|now| *now == Condition::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut condition: watch::Receiver<Condition>,
    passed: &AtomicU64,
) {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut frames, mut meddler) = (Frames::default(), Meddler::default());
    loop {
        if condition.wait_for(|now| !now.stalls(direction)).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = timeout(HELD_MAX, from.read(&mut piece)) => read,
            changed = condition.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        let now = *condition.borrow_and_update();
        let bytes = match read {
            // Nothing came to overtake what is held back.
            Err(_) => meddler.release(),
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(length)) => {
                let came = piece.get(..length).unwrap_or_default();
                if direction == Direction::Up {
                    came.to_vec()
                } else {
                    let meddling = if let Condition::Meddled(meddling) = now { meddling } else { Meddling::None };
                    frames.push(came).into_iter().flat_map(|frame| meddler.pass(frame, meddling)).collect()
                }
            }
        };
        if let Condition::Slow { latency, bytes_per_s } = now {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            sleep(latency + Duration::from_secs(1) * length / bytes_per_s.max(1)).await;
        }
        // What was read just before the link stalled does not slip through.
        if condition.wait_for(|now| !now.stalls(direction)).await.is_err() || to.write_all(&bytes).await.is_err() {
            return;
        }
        passed.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_link_passes_stalls_and_is_cut_at_run_time() {
        let link = Link::open(&[echo().await]).await.unwrap();
        let mut stream = TcpStream::connect(link.listen).await.unwrap();
        let mut four = [0; 4];
        // Lines, since what comes from the broker is taken apart as its protocol.
        stream.write_all(b"ab\r\n").await.unwrap();
        stream.read_exact(&mut four).await.unwrap();
        for stalled in [Condition::Stalled, Condition::UpStalled, Condition::DownStalled] {
            link.set(stalled);
            stream.write_all(b"cd\r\n").await.unwrap();
            assert!(timeout(Duration::from_millis(300), stream.read_exact(&mut four)).await.is_err(), "{stalled:?}");
            link.set(Condition::Open);
            timeout(Duration::from_secs(10), stream.read_exact(&mut four)).await.unwrap().unwrap();
            assert_eq!(&four, b"cd\r\n");
        }
        link.set(Condition::Cut);
        let ended = timeout(Duration::from_secs(10), stream.read(&mut four)).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)));
        link.set(Condition::Open);
        let mut again = TcpStream::connect(link.listen).await.unwrap();
        link.set(Condition::Slow { latency: Duration::from_millis(50), bytes_per_s: 1000 });
        let begun = std::time::Instant::now();
        again.write_all(b"ef\r\n").await.unwrap();
        timeout(Duration::from_secs(10), again.read_exact(&mut four)).await.unwrap().unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }
}
