//! Tables: plain text for terminals and logs, Markdown for documents.

use std::fmt;

/// Columns as wide as their widest cell; the first is left-aligned, and so are
/// those named.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: Vec<usize>,
}

const GAP: &str = "   ";
const INDENT: &str = "  ";

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            rows: vec![headings.into_iter().map(str::to_owned).collect()],
            left: vec![0],
        }
    }

    /// Columns that hold text.
    pub(crate) fn left<const N: usize>(mut self, columns: [usize; N]) -> Self {
        self.left.extend(columns);
        self
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    pub(crate) fn markdown(&self) -> String {
        let Some((headings, rows)) = self.rows.split_first() else {
            return String::new();
        };
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rules = (0..headings.len()).map(|column| {
            if self.left.contains(&column) {
                "---|"
            } else {
                "---:|"
            }
        });
        let mut text = line(headings) + "|" + &rules.collect::<String>() + "\n";
        text.extend(rows.iter().map(|row| line(row)));
        text
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in &self.rows {
            let mut line = INDENT.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                if column > 0 {
                    line += GAP;
                }
                line += &if self.left.contains(&column) {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_below_each_other_and_lines_have_no_tail() {
        let mut table = Table::new(["name", "ms", "how"]).left([2]);
        table.row(["a".into(), "1.00".into(), "by itself".into()]);
        table.row(["longer".into(), "10.00".into(), "é".into()]);
        assert_eq!(
            table.to_string(),
            "  name        ms   how\n  a         1.00   by itself\n  longer   10.00   é\n"
        );
    }

    #[test]
    fn markdown_keeps_the_columns() {
        let mut table = Table::new(["name", "ms"]);
        table.row(["a|b".into(), "1".into()]);
        assert_eq!(
            table.markdown(),
            "| name | ms |\n|---|---:|\n| a\\|b | 1 |\n"
        );
    }
}
