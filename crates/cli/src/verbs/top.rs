//! `steward top`: the fleet, live, in the terminal.
//!
//! A task asks the broker, another one hears events; the loop here takes keys, sizes and what came, and draws what `render::top`
//! makes of it. However it ends, the terminal is as it was.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleet::{EventFilter, EventLine, Fleet, Selection, Since};
use message::{Expression, Pattern, Selector};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::args::Traits;
use crate::exit::{Exit, Usage};
use crate::render::top::{self as screen, EVENTS_MAX, JOBS_MAX, Known, Shown};
use crate::session::Session;
use crate::signals::StopSignals;

/// How often the broker is asked, unless it takes long to answer.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often ages are drawn anew.
const REDRAW: Duration = Duration::from_secs(1);
/// Events from so long ago are there at the beginning.
const EVENTS_AGO: Duration = Duration::from_secs(300);

/// Watch the fleet live: nodes, those that need somebody first, jobs and events.
///
/// Keys: q or Ctrl-C ends it; s changes the order (worst, name, longest silent, busiest); / chooses nodes by name or glob, l by labels, w by
/// an expression, c all of them again; arrows, j, k, PgUp, PgDn, Home and End scroll. For scripts: `steward node ls --watch -o ndjson`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  steward top\n  steward top 'ship*' -l 'site in (oslo,bergen)'\n  steward top -w '!online'"
)]
pub(crate) struct Args {
    /// Which nodes: a name, a glob ('ship*'), or several of them with commas between [default: all]
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    #[command(flatten)]
    traits: Traits,
}

/// A terminal that was set for drawing; set back when this is dropped.
struct Terminal {
    before: Termios,
}

/// To a screen of its own, without cursor and without breaking lines; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";

impl Terminal {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin).context("the terminal cannot be asked how it is set")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Flush, &raw).context("the terminal cannot be set")?;
        let terminal = Self { before };
        // A panic says why it is one only where it can be read.
        let (kept, said) = (terminal.before.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            restore(&kept);
            said(panic);
        }));
        write(ENTER)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(before: &Termios) {
    // A terminal that is gone needs nothing.
    let _ = write(LEAVE);
    let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
}

/// Past `Out`, which belongs to a session that a panic may have left locked.
fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

fn size() -> (usize, usize) {
    match termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// What comes from the broker.
enum News {
    Known(Known),
    Event(Box<EventLine>),
    Trouble(String),
}

/// Who is meant, and how that was said.
#[derive(Debug, Clone, Default)]
struct Chosen {
    target: Option<String>,
    selector: Option<String>,
    condition: Option<String>,
}

impl Chosen {
    fn selection(&self) -> anyhow::Result<Selection> {
        Ok(Selection {
            patterns: self.target.as_deref().map(Pattern::parse_list).transpose()?.unwrap_or_default(),
            labels: self.selector.as_deref().map(Selector::parse).transpose()?,
            condition: self.condition.as_deref().map(Expression::parse).transpose()?,
            all: false,
        })
    }

    fn told(&self) -> String {
        let selector = self.selector.as_ref().map(|text| format!("-l {text}"));
        let condition = self.condition.as_ref().map(|text| format!("-w {text}"));
        let parts: Vec<String> = [self.target.clone(), selector, condition].into_iter().flatten().collect();
        parts.join(" ")
    }
}

pub(crate) async fn run(args: Args, session: &mut Session) -> anyhow::Result<Exit> {
    if session.out.is_json() || !session.out.is_terminal() || !std::io::stdin().is_terminal() {
        let other = "`steward top` draws on a terminal; for scripts there is `steward node ls --watch -o ndjson`";
        return Err(Usage::new(other).into());
    }
    let chosen = Chosen { target: args.target, selector: args.traits.selector, condition: args.traits.condition };
    let selection = chosen.selection()?;
    let fleet = session.connect().await?;
    let (choose, choice) = watch::channel(selection);
    let (tell, news) = mpsc::channel(64);
    let mut parts = JoinSet::new();
    parts.spawn(ask(fleet.clone(), choice, tell.clone()));
    parts.spawn(listen(fleet, tell));
    let colors = session.out.colors();
    let terminal = Terminal::enter()?;
    let ended = show(chosen, choose, news, colors).await;
    drop(terminal);
    parts.shutdown().await;
    ended?;
    Ok(Exit::Success)
}

/// Asks how the nodes and the newest jobs stand, again and again.
async fn ask(fleet: Fleet, mut choice: watch::Receiver<Selection>, tell: mpsc::Sender<News>) {
    loop {
        let (selection, begun) = (choice.borrow_and_update().clone(), Instant::now());
        let asked = async { tokio::try_join!(fleet.list(&selection, false), fleet.jobs(JOBS_MAX)) };
        let news = match asked.await {
            Ok((view, jobs)) => News::Known(Known { nodes: view.nodes, jobs, at: view.at }),
            Err(error) => News::Trouble(error.to_string()),
        };
        if tell.send(news).await.is_err() {
            return;
        }
        // A large fleet is asked less often: this must not be what the broker is busy with.
        let pause = INTERVAL.max(begun.elapsed() * 4);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = choice.changed() => if changed.is_err() { return },
        }
    }
}

/// Hears events; when that breaks, again.
async fn listen(fleet: Fleet, tell: mpsc::Sender<News>) {
    let mut ago = EVENTS_AGO;
    loop {
        let filter = EventFilter { since: Some(Since::Ago(ago)), ..EventFilter::default() };
        if let Ok(mut events) = fleet.events(&filter, true).await {
            while let Ok(Some(event)) = events.next().await {
                if tell.send(News::Event(Box::new(event))).await.is_err() {
                    return;
                }
            }
        }
        ago = INTERVAL;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Draws, and obeys keys, until it is asked to end.
async fn show(
    mut chosen: Chosen,
    choose: watch::Sender<Selection>,
    mut news: mpsc::Receiver<News>,
    colors: bool,
) -> anyhow::Result<()> {
    let mut signals = StopSignals::new()?;
    let mut resized = signal(SignalKind::window_change()).context("cannot listen for signals")?;
    let mut redraw = tokio::time::interval(REDRAW);
    let (mut stdin, mut typed) = (tokio::io::stdin(), [0; 256]);
    let mut shown = Shown { filter: chosen.told(), ..Shown::default() };
    let mut known_at = Instant::now();
    loop {
        let (width, height) = size();
        shown.elapsed = known_at.elapsed();
        draw(&screen::lines(&shown, width, height, colors))?;
        tokio::select! {
            () = signals.next() => return Ok(()),
            _ = resized.recv() => {}
            _ = redraw.tick() => {}
            Some(came) = news.recv() => match came {
                News::Known(mut known) => {
                    screen::sort(&mut known.nodes, shown.sort);
                    (shown.known, shown.trouble, known_at) = (Some(known), None, Instant::now());
                }
                News::Event(event) => {
                    shown.events.insert(0, *event);
                    shown.events.truncate(EVENTS_MAX);
                }
                News::Trouble(reason) => shown.trouble = Some(reason),
            },
            read = stdin.read(&mut typed) => {
                let count = read.context("the keyboard cannot be read")?;
                if count == 0 {
                    return Ok(());
                }
                for key in keys(typed.get(..count).unwrap_or_default()) {
                    match press(key, &mut shown, &mut chosen, screen_rows(height)) {
                        Pressed::Quit => return Ok(()),
                        Pressed::Chosen(selection) => drop(choose.send(selection)),
                        Pressed::Nothing => {}
                    }
                }
                let count = shown.known.as_ref().map_or(0, |known| known.nodes.len());
                shown.scroll = shown.scroll.min(count.saturating_sub(screen::rows(&shown, height)));
            }
        }
    }
}

/// About a page of rows.
fn screen_rows(height: usize) -> usize {
    (height / 2).max(1)
}

/// The whole screen in one write: nothing flickers.
fn draw(lines: &[String]) -> anyhow::Result<()> {
    let mut text = String::from("\x1b[H");
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            text.push_str("\r\n");
        }
        text.push_str(line);
        text.push_str("\x1b[K");
    }
    text.push_str("\x1b[J");
    write(text.as_bytes())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Char(char),
    Enter,
    Escape,
    Erase,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Quit,
}

/// What was typed; a terminal sends the whole of a key at once. What means nothing is left out.
fn keys(bytes: &[u8]) -> Vec<Key> {
    const LONG: [(&[u8], Key); 12] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[H", Key::Home),
        (b"\x1bOH", Key::Home),
        (b"\x1b[1~", Key::Home),
        (b"\x1b[F", Key::End),
        (b"\x1bOF", Key::End),
        (b"\x1b[4~", Key::End),
    ];
    let (mut keys, mut rest) = (Vec::new(), bytes);
    while let Some((first, behind)) = rest.split_first() {
        if let Some((code, key)) = LONG.iter().find(|(code, _)| rest.starts_with(code)) {
            keys.push(*key);
            rest = rest.get(code.len()..).unwrap_or_default();
            continue;
        }
        rest = behind;
        match first {
            3 | 4 => keys.push(Key::Quit),
            b'\r' | b'\n' => keys.push(Key::Enter),
            8 | 127 => keys.push(Key::Erase),
            // A key that is not known here: its code up to the letter that ends it.
            0x1b if rest.first().is_some_and(|next| matches!(next, b'[' | b'O')) => {
                let end = rest.iter().skip(1).position(|byte| (0x40..0x7f).contains(byte));
                rest = rest.get(end.map_or(rest.len(), |end| end + 2)..).unwrap_or_default();
            }
            0x1b => keys.push(Key::Escape),
            b' '..=b'~' => keys.push(Key::Char(char::from(*first))),
            _ => {}
        }
    }
    keys
}

/// What came of a key.
enum Pressed {
    Nothing,
    Quit,
    Chosen(Selection),
}

/// So long may be what is typed.
const TYPED_MAX: usize = 1_000;

fn press(key: Key, shown: &mut Shown, chosen: &mut Chosen, page: usize) -> Pressed {
    if key == Key::Quit {
        return Pressed::Quit;
    }
    if let Some((what, mut text)) = shown.typing.take() {
        match key {
            Key::Enter => return choose(what, text, shown, chosen),
            Key::Escape => return Pressed::Nothing,
            Key::Erase => drop(text.pop()),
            Key::Char(character) if text.len() < TYPED_MAX => text.push(character),
            _ => {}
        }
        shown.typing = Some((what, text));
        return Pressed::Nothing;
    }
    match key {
        Key::Char('q') => return Pressed::Quit,
        Key::Char('s') => {
            shown.sort = shown.sort.next();
            if let Some(known) = &mut shown.known {
                screen::sort(&mut known.nodes, shown.sort);
            }
        }
        Key::Char('/') => shown.typing = Some(("name", chosen.target.clone().unwrap_or_default())),
        Key::Char('l') => shown.typing = Some(("labels", chosen.selector.clone().unwrap_or_default())),
        Key::Char('w') => shown.typing = Some(("where", chosen.condition.clone().unwrap_or_default())),
        Key::Char('c') => {
            *chosen = Chosen::default();
            shown.filter = String::new();
            return Pressed::Chosen(Selection::default());
        }
        Key::Up | Key::Char('k') => shown.scroll = shown.scroll.saturating_sub(1),
        Key::Down | Key::Char('j') => shown.scroll += 1,
        Key::PageUp => shown.scroll = shown.scroll.saturating_sub(page),
        Key::PageDown => shown.scroll += page,
        Key::Home => shown.scroll = 0,
        Key::End => shown.scroll = usize::MAX,
        _ => {}
    }
    Pressed::Nothing
}

/// Takes over what was typed, if it can be understood.
fn choose(what: &'static str, text: String, shown: &mut Shown, chosen: &mut Chosen) -> Pressed {
    let mut wanted = chosen.clone();
    let said = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    match what {
        "name" => wanted.target = said,
        "labels" => wanted.selector = said,
        _ => wanted.condition = said,
    }
    match wanted.selection() {
        Ok(selection) => {
            *chosen = wanted;
            (shown.filter, shown.trouble, shown.scroll) = (chosen.told(), None, 0);
            Pressed::Chosen(selection)
        }
        Err(error) => {
            // What was typed is there again at the next `/`, `l` or `w`; the mark under the character has no room here.
            shown.trouble = Some(error.to_string().lines().next().unwrap_or_default().to_owned());
            Pressed::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_understood_and_unknown_ones_are_passed_over() {
        assert_eq!(keys(b"\x1b[A\x1b[6~j\x7f\r"), [Key::Up, Key::PageDown, Key::Char('j'), Key::Erase, Key::Enter]);
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        assert_eq!(keys(b"\x1b[15~q\x03"), [Key::Char('q'), Key::Quit]);
        assert_eq!(keys(b"\x1b["), []);
    }

    #[test]
    fn a_filter_is_typed_corrected_and_taken_over_if_it_is_understood() {
        let (mut shown, mut chosen) = (Shown::default(), Chosen::default());
        let mut type_in = |text: &[u8], shown: &mut Shown| {
            let mut last = Pressed::Nothing;
            for key in keys(text) {
                last = press(key, shown, &mut chosen, 10);
            }
            last
        };
        let Pressed::Chosen(selection) = type_in(b"lsite=oslx\x7fo\r", &mut shown) else { panic!() };
        assert!(selection.labels.is_some() && shown.filter == "-l site=oslo");
        assert!(matches!(type_in(b"wonline &\r", &mut shown), Pressed::Nothing));
        assert!(shown.trouble.as_ref().unwrap().contains("&&"), "{:?}", shown.trouble);
        assert_eq!(shown.filter, "-l site=oslo");
        let Pressed::Chosen(selection) = type_in(b"c", &mut shown) else { panic!() };
        assert!(selection.is_empty() && shown.filter.is_empty());
        // While something is typed, letters are letters.
        assert!(matches!(type_in(b"/q\x1b", &mut shown), Pressed::Nothing));
        assert!(matches!(type_in(b"q", &mut shown), Pressed::Quit));
    }
}
