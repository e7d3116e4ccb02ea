//! Colours: the sixteen that every terminal has, and none where none are wanted.

use message::{NodeState, State};

/// A colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Blue => "34",
            Self::Magenta => "35",
            Self::Cyan => "36",
        }
    }

    /// `text` in this colour, if `colors` are wanted.
    pub(crate) fn on(self, text: &str, colors: bool) -> String {
        if colors && self != Self::Plain { format!("\x1b[{}m{text}\x1b[0m", self.code()) } else { text.to_owned() }
    }

    /// The colour of a node's state.
    pub(crate) const fn of_node(state: NodeState) -> Self {
        match state {
            NodeState::Online => Self::Green,
            NodeState::Offline | NodeState::Revoked => Self::Red,
            NodeState::Degraded | NodeState::Pending => Self::Yellow,
            NodeState::Unknown => Self::Magenta,
        }
    }

    /// The colour of an order's state.
    pub(crate) const fn of_state(state: State) -> Self {
        match state {
            State::Succeeded => Self::Green,
            State::Queued | State::Delivered | State::Running => Self::Yellow,
            State::Superseded => Self::Dim,
            _ => Self::Red,
        }
    }

    /// A colour for telling the `index`th node from its neighbours.
    pub(crate) const fn nth(index: usize) -> Self {
        [Self::Cyan, Self::Yellow, Self::Green, Self::Magenta, Self::Blue][index % 5]
    }
}

/// What a node sent, without what would take over the terminal: control characters become visible.
pub(crate) fn tame(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_there_only_when_wanted() {
        assert_eq!(Paint::Red.on("x", true), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint::Red.on("x", false), "x");
        assert_eq!(Paint::Plain.on("x", true), "x");
    }

    #[test]
    fn a_reason_from_afar_cannot_move_the_cursor() {
        assert_eq!(tame("a\x1b[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
    }
}
