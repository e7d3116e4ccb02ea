//! Plain tables: columns two spaces apart, no frames, so that they can be read, copied and cut.

use super::paint::Paint;

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub(crate) fn painted(text: impl Into<String>, paint: Paint) -> Self {
        Self { text: text.into(), paint }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), paint: Paint::Plain }
    }
}

/// A table with a line of headings.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    /// Its lines.
    pub(crate) fn lines(&self, colors: bool) -> Vec<String> {
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.text.chars().count());
            cells.chain(self.headings.get(index).map(|heading| heading.len())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: &[Cell]| {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&widths) {
                line.push_str(&cell.paint.on(&cell.text, colors));
                line.extend(std::iter::repeat_n(' ', width - cell.text.chars().count() + 2));
            }
            line.truncate(line.trim_end().len());
            line
        };
        let headings: Vec<Cell> = self.headings.iter().map(|text| Cell::painted(*text, Paint::Bold)).collect();
        std::iter::once(line(&headings)).chain(self.rows.iter().map(|row| line(row))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let mut table = Table::new(&["NAME", "STATE", "LABELS"]);
        table.row([Cell::from("ship1"), Cell::painted("online", Paint::Green), Cell::from("")]);
        table.row([Cell::from("überschiff"), Cell::from("offline"), Cell::from("site=oslo")]);
        let expected = "\
NAME        STATE    LABELS
ship1       online
überschiff  offline  site=oslo";
        assert_eq!(table.lines(false).join("\n"), expected);
        assert_eq!(table.lines(true)[1], "ship1       \x1b[32monline\x1b[0m");
    }
}
