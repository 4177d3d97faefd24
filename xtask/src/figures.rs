//! README's table of figures, taken from the benches' tables in docs/performance.md.

use crate::Result;
use std::fs;
use std::path::Path;

/// The document with the benches' tables.
pub(crate) const TABLES: &str = "docs/performance.md";
/// The document with the few figures for a newcomer.
pub(crate) const README: &str = "README.md";
/// The name of README's own table.
const MARK: &str = "figures";

/// A row of README's table.
struct Figure {
    /// The first cell.
    work: &'static str,
    /// The marks around the table that has the figures.
    table: &'static str,
    /// The first cells of its row there.
    row: &'static [&'static str],
    /// The figure of this project.
    ours: Cell,
    /// The figure to compare it with, and the words before it.
    other: Option<(&'static str, Cell)>,
}

/// A figure within a row: the heading of its column, and its number among those that ` / ` separates.
struct Cell(&'static str, usize);

const FIGURES: &[Figure] = &[
    Figure {
        work: "reads of the store, 32 in flight",
        table: "table",
        row: &["reads, 32 in flight"],
        ours: Cell("ours", 0),
        other: Some(("C's `xenstored`: ", Cell("C", 0))),
    },
    Figure {
        work: "the same beside 1000 idle connections",
        table: "table",
        row: &["reads, 32 in flight, with 0 / 100 / 1000 / 5000 idle connections"],
        ours: Cell("ours", 2),
        other: Some(("C's `xenstored`: ", Cell("C", 2))),
    },
    Figure {
        work: "the store's nodes of 1000 domains made",
        table: "table",
        row: &[
            "10,000 domains of 61 nodes (C and oxenstored: 1000): the first 100 / the last 100 / the first 1000",
        ],
        ours: Cell("ours", 2),
        other: Some(("C's `xenstored`: ", Cell("C", 2))),
    },
    Figure {
        work: "`xb create` of a hosted guest with a disk, until the disk is connected",
        table: "xb table",
        row: &["`xb create` of a guest with a disk, to Connected, median"],
        ours: Cell("measured", 0),
        other: None,
    },
    Figure {
        work: "4 KiB random reads of a raw disk, 32 in flight, as a share of io_uring on its file",
        table: "block table",
        row: &[
            "4 KiB random reads, 32 in flight, beside one io_uring thread on the same file",
            "disk",
        ],
        ours: Cell("verdict", 0),
        other: None,
    },
    Figure {
        work: "the same as a multiple of an NBD client on `qemu-nbd`",
        table: "block table",
        row: &["4 KiB random reads by our frontend, beside an NBD client on qemu-nbd; raw", "disk"],
        ours: Cell("verdict", 0),
        other: None,
    },
];

/// Writes README's table anew from the tables of docs/performance.md.
pub(crate) fn write(root: &Path) -> Result<()> {
    let readme = fs::read_to_string(root.join(README))?;
    let table = readme_table(&fs::read_to_string(root.join(TABLES))?)?;
    Ok(fs::write(root.join(README), put(&readme, MARK, &table)?)?)
}

/// True if README's table is that of docs/performance.md.
pub(crate) fn agree(readme: &str, tables: &str) -> Result<bool> {
    Ok(put(readme, MARK, &readme_table(tables)?)? == readme)
}

/// Replaces the table between the two lines `<!-- mark -->` of a text.
fn put(text: &str, mark: &str, table: &str) -> Result<String> {
    let (before, _, after) = parts(text, mark)?;
    let line = line(mark);
    Ok(format!("{before}{line}\n\n{}\n\n{line}{after}", table.trim()))
}

/// The parts of a text before, between and behind the two lines `<!-- mark -->`.
fn parts<'a>(text: &'a str, mark: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let line = line(mark);
    let parts: Vec<&str> = text.split(&line).collect();
    match parts.as_slice() {
        [before, between, after] => Ok((before, between, after)),
        _ => Err(format!("there are {} lines {line}, and 2 are needed", parts.len() - 1).into()),
    }
}

/// The line before and behind a table.
fn line(mark: &str) -> String {
    format!("<!-- {mark} -->")
}

/// README's table.
fn readme_table(tables: &str) -> Result<String> {
    let mut table = String::from("| work | here | beside |\n|---|---|---|\n");
    for figure in FIGURES {
        let (_, text, _) = parts(tables, figure.table)?;
        let ours = value(text, figure.row, &figure.ours)?;
        let other = match &figure.other {
            Some((words, cell)) => format!(" {words}{}", value(text, figure.row, cell)?),
            None => String::new(),
        };
        table += &format!("| {} | {ours} |{other} |\n", figure.work);
    }
    Ok(table)
}

/// A figure of a table: the row that begins with the cells `row`, and its `cell`.
fn value(table: &str, row: &[&str], cell: &Cell) -> Result<String> {
    let &Cell(column, number) = cell;
    let mut rows = table.lines().filter(|line| line.starts_with('|')).map(cells);
    let headings = rows.next().unwrap_or_default();
    let found = rows.find(|cells| cells.starts_with(row));
    let index = headings.iter().position(|heading| *heading == column);
    let found = found.as_ref().zip(index).and_then(|(cells, index)| cells.get(index));
    // Processor time, verdicts and notes follow the figure.
    let figure =
        found.and_then(|cell| cell.split([',', ':', ';']).next()?.split(" / ").nth(number));
    let figure = figure.map(str::trim).filter(|figure| !figure.is_empty());
    let missing = || format!("{TABLES} has no figure {number} in the column {column:?} of {row:?}");
    figure.map(str::to_owned).ok_or_else(|| missing().into())
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\n| work | ours | C |\n|---|---|---|\n| a | 1 s / 2 s, cpu 3 | 4 s |\n";

    #[test]
    fn a_figure_is_found_by_its_row_and_column() {
        assert_eq!(value(TABLE, &["a"], &Cell("ours", 1)).unwrap(), "2 s");
        assert_eq!(value(TABLE, &["a"], &Cell("C", 0)).unwrap(), "4 s");
        assert!(value(TABLE, &["a"], &Cell("C", 1)).is_err());
        assert!(value(TABLE, &["b"], &Cell("C", 0)).is_err());
        assert!(value(TABLE, &["a"], &Cell("oxenstored", 0)).is_err());
    }

    #[test]
    fn a_table_is_put_between_its_marks_again_and_again() {
        let text = "x\n<!-- m -->\nold\n<!-- m -->\ny\n";
        let once = put(text, "m", "| new |\n").unwrap();
        assert_eq!(once, "x\n<!-- m -->\n\n| new |\n\n<!-- m -->\ny\n");
        assert_eq!(put(&once, "m", "| new |").unwrap(), once);
        assert!(put(text, "n", "").is_err());
    }

    #[test]
    fn an_older_figure_in_the_readme_is_seen() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let readme = fs::read_to_string(root.join(README)).unwrap();
        let tables = fs::read_to_string(root.join(TABLES)).unwrap();
        assert!(agree(&readme, &tables).unwrap());
        let figure = value(parts(&tables, "table").unwrap().1, FIGURES[0].row, &FIGURES[0].ours);
        let older = readme.replace(&figure.unwrap(), "9.99M/s");
        assert!(!agree(&older, &tables).unwrap());
    }
}
