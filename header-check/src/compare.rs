//! Asks a C compiler.

use crate::{Row, Since};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The headers, in an order in which they can be read.
const HEADERS: &str = "\
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/sched.h>
#include <xen/version.h>
#include <xen/io/xs_wire.h>
#include <sys/ioctl.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>
#include <xen/sys/gntalloc.h>
#include <xen/sys/privcmd.h>
#include <xen/sys/xenbus_dev.h>
";

/// What the comparison has found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rows that are the same.
    pub same: usize,
    /// One line for each row that is not.
    pub different: Vec<String>,
    /// Rows that these headers are too old for.
    pub newer: Vec<String>,
}

/// Compares all `rows` with the headers below `root`; works in `folder`.
///
/// # Errors
/// What the compiler said.
pub fn compare(rows: &[Row], root: &Path, folder: &Path) -> Result<Outcome, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let compiler = Compiler { include: root.join("usr/include"), folder: folder.to_owned() };
    let mut outcome = Outcome::default();
    let mut asked = Vec::new();
    for row in rows {
        match row.since {
            Since::Always => asked.push(row),
            // An old header makes the whole program wrong, so each is tried alone.
            Since::Version(version) => match compiler.run("newer", &[row]) {
                Ok(_) => asked.push(row),
                Err(_) => outcome.newer.push(format!("{} (Xen {version})", row.c)),
            },
        }
    }
    let theirs = compiler.run("all", &asked)?;
    for (row, theirs) in asked.iter().zip(&theirs) {
        if row.ours == *theirs {
            outcome.same += 1;
        } else {
            outcome.different.push(format!("{}: ours {}, theirs {theirs}", row.c, row.ours));
        }
    }
    Ok(outcome)
}

struct Compiler {
    include: PathBuf,
    folder: PathBuf,
}

impl Compiler {
    /// The values of the rows' expressions, in order.
    fn run(&self, name: &str, rows: &[&Row]) -> Result<Vec<i64>, String> {
        let mut text = format!("{HEADERS}int main(void) {{\n");
        for row in rows {
            let _ = writeln!(text, "printf(\"%lld\\n\", (long long)({}));", row.c);
        }
        text.push_str("return 0; }\n");
        let source = self.folder.join(format!("{name}.c"));
        let program = self.folder.join(name);
        std::fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))?;
        let mut cc = Command::new("cc");
        cc.args(["-w", "-I"]).arg(&self.include).arg("-o").arg(&program).arg(&source);
        run(&mut cc)?;
        let numbers = run(&mut Command::new(&program))?;
        let numbers: Vec<i64> = numbers.lines().filter_map(|line| line.parse().ok()).collect();
        if numbers.len() == rows.len() {
            Ok(numbers)
        } else {
            Err(format!("{} rows, {} answers", rows.len(), numbers.len()))
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}
