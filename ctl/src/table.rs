//! Plain tables: columns as wide as what is in them, two spaces between.

use std::fmt::Write as _;

/// The width that running text is kept to.
const WIDTH: usize = 80;

/// A table.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self { header: header.map(str::to_owned).into(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.header.len());
        self.rows.push(cells.into());
    }

    /// The rows in their order of cells, so that two runs can be compared.
    pub(crate) fn sorted(mut self) -> Self {
        self.rows.sort();
        self
    }

    /// The text; `nothing` if there are no rows.
    pub(crate) fn render(&self, nothing: &str) -> String {
        if self.rows.is_empty() {
            return format!("{nothing}\n");
        }
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| lines().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for cells in lines() {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&widths) {
                let cell = if cell.is_empty() { "-" } else { cell };
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Breaks running text into lines of at most 80 columns, the first after `label`, the others below its end.
pub(crate) fn paragraph(label: &str, text: &str) -> String {
    let indent = label.chars().count();
    let mut lines = vec![label.to_owned()];
    let mut used = indent;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > indent && used + 1 + length > WIDTH {
            lines.push(" ".repeat(indent));
            used = indent;
        }
        let Some(line) = lines.last_mut() else { break };
        if used > indent {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    lines.join("\n") + "\n"
}

/// `3d4h`, `5h6m`, `7m8s`, `9s`.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// `1.5 kB`: bytes by powers of a thousand.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(["A", "LONGER"]);
        table.row(["xyz".into(), "b".into()]);
        table.row(["".into(), "".into()]);
        assert_eq!(table.render("none"), "A    LONGER\nxyz  b\n-    -\n");
        assert_eq!(Table::new(["A"]).render("none"), "none\n");
    }

    #[test]
    fn paragraphs_are_80_columns_wide() {
        let text = paragraph("reason  ", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("        word")), "{text}");
    }

    #[test]
    fn quantities_are_short() {
        assert_eq!([9, 68, 7260, 180_000].map(duration), ["9s", "1m8s", "2h1m", "2d2h"]);
        assert_eq!([0, 999, 1500, 2_000_000].map(bytes), ["0 B", "999 B", "1.5 kB", "2.0 MB"]);
    }
}
