//! Columns for a terminal.

use std::fmt::Write as _;

/// A table: a head and rows of the same length.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With this head.
    #[must_use]
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(ToString::to_string).collect()],
        }
    }

    /// One more row. What is no plain text in it is made so: a job's name comes from outside.
    pub fn row(&mut self, cells: Vec<String>) {
        let plain = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.replace(char::is_control, "\u{fffd}")
            }
        };
        self.rows.push(cells.into_iter().map(plain).collect());
    }

    /// As lines; each column as wide as its widest cell, the last one as it is.
    #[must_use]
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:<width$}  ").expect("a String takes any text");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_forges_a_line() {
        let mut table = Table::new(&["POOL", "JOB"]);
        table.row(vec!["linux64-long".into(), "a\nb".into()]);
        table.row(vec!["w".into(), String::new()]);
        assert_eq!(
            table.text(),
            "POOL          JOB\nlinux64-long  a\u{fffd}b\nw             -\n"
        );
    }
}
