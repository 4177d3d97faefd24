//! The comparison, by a C compiler.

use crate::{CheckedNumber, XenVersion};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The headers, in an order in which they compile.
const HEADERS: &str = "\
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define __XEN_TOOLS__ 1
#include <xen/xen.h>
#include <xen/errno.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/elfnote.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/sched.h>
#include <xen/version.h>
#include <xen/io/blkif.h>
#include <xen/io/console.h>
#include <xen/io/protocols.h>
#include <xen/io/ring.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>
#include <sys/ioctl.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>
#include <xen/sys/gntalloc.h>
#include <xen/sys/privcmd.h>
#include <xen/sys/xenbus_dev.h>
";

/// The headers for [`compare_32`], which has no C library.
const HEADERS_32: &str = "\
#include <stddef.h>
#include <stdint.h>
#include <xen/xen.h>
#include <xen/io/blkif.h>
";

/// The versions of Xen that have interface numbers of their own, newest first: the C expression is
/// true of their headers and of all later ones.
const RELEASES: [(XenVersion, &str); 2] = [
    (XenVersion::V4_22, "XEN_DOMCTL_INTERFACE_VERSION >= 0x18"),
    (XenVersion::V4_21, "XEN_SYSCTL_INTERFACE_VERSION >= 0x16"),
];

/// The outcome of the comparison.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The number of rows that are the same.
    pub same: usize,
    /// The rows that differ, one line for each.
    pub different: Vec<String>,
    /// The rows that these headers are too old for.
    pub newer: Vec<String>,
}

/// Compares all `rows` with the headers below `root`; works in `folder`.
///
/// # Errors
/// The output of the compiler.
pub fn compare(rows: &[CheckedNumber], root: &Path, folder: &Path) -> Result<Comparison, String> {
    let compiler = Compiler::new(root, folder)?;
    let release = compiler.release()?;
    let mut comparison = Comparison::default();
    let mut asked = Vec::new();
    for row in rows {
        if row.since <= release {
            asked.push(row);
        } else {
            comparison.newer.push(format!("{} (Xen {})", row.c, row.since.name()));
        }
    }
    let theirs = compiler.run("all", asked.iter().map(|row| row.c.as_str()))?;
    for (row, theirs) in asked.iter().zip(&theirs) {
        if row.ours == *theirs {
            comparison.same += 1;
        } else {
            comparison.different.push(format!("{}: ours {}, theirs {theirs}", row.c, row.ours));
        }
    }
    Ok(comparison)
}

/// Compares all `rows`, as [`compare`] does, for 32-bit x86. Nothing is run, so this machine needs
/// only a compiler for such a system. All rows are of [`XenVersion::V4_17`].
///
/// # Errors
/// The output of the compiler, if it is not about a row.
pub fn compare_32(
    rows: &[CheckedNumber],
    root: &Path,
    folder: &Path,
) -> Result<Comparison, String> {
    let compiler = Compiler::new(root, folder)?;
    let mut text = HEADERS_32.to_owned();
    for (number, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "_Static_assert(({}) == {}, \"row {number}\");", row.c, row.ours);
    }
    let source = compiler.source("bits32", &text)?;
    let mut cc = compiler.cc();
    cc.args(["-m32", "-ffreestanding", "-fsyntax-only"]).arg(&source);
    let said = match run(&mut cc) {
        Ok(_) => return Ok(Comparison { same: rows.len(), ..Comparison::default() }),
        Err(said) => said,
    };
    let mut comparison = Comparison { same: rows.len(), ..Comparison::default() };
    for line in said.lines().filter(|line| line.contains(" error: ")) {
        let number = line.split_once("failed: \"row ").and_then(|(_, rest)| rest.split_once('"'));
        let row = number.and_then(|(number, _)| rows.get(number.parse::<usize>().ok()?));
        // An error of another kind is not about one row.
        let Some(row) = row else { return Err(said) };
        comparison.same -= 1;
        comparison.different.push(format!("{}: not {} with 32 bits", row.c, row.ours));
    }
    if comparison.different.is_empty() { Err(said) } else { Ok(comparison) }
}

struct Compiler {
    include: PathBuf,
    folder: PathBuf,
}

impl Compiler {
    fn new(root: &Path, folder: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self { include: root.join("usr/include"), folder: folder.to_owned() })
    }

    /// Returns the version of Xen of the headers, by their interface numbers.
    fn release(&self) -> Result<XenVersion, String> {
        let known = self.run("release", RELEASES.iter().map(|(_, c)| *c))?;
        let newest = RELEASES.iter().zip(known).find(|(_, known)| *known == 1);
        Ok(newest.map_or(XenVersion::V4_17, |((since, _), _)| *since))
    }

    fn cc(&self) -> Command {
        let mut cc = Command::new("cc");
        cc.args(["-w", "-I"]).arg(&self.include);
        cc
    }

    fn source(&self, name: &str, text: &str) -> Result<PathBuf, String> {
        let source = self.folder.join(format!("{name}.c"));
        std::fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))?;
        Ok(source)
    }

    /// Returns the values of expressions, in order.
    fn run<'a>(
        &self,
        name: &str,
        expressions: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<Vec<i64>, String> {
        let count = expressions.len();
        let mut text = format!("{HEADERS}int main(void) {{\n");
        for c in expressions {
            let _ = writeln!(text, "printf(\"%lld\\n\", (long long)({c}));");
        }
        text.push_str("return 0; }\n");
        let source = self.source(name, &text)?;
        let program = self.folder.join(name);
        run(self.cc().arg("-o").arg(&program).arg(&source))?;
        let numbers = run(&mut Command::new(&program))?;
        let numbers: Vec<i64> = numbers.lines().filter_map(|line| line.parse().ok()).collect();
        if numbers.len() == count {
            Ok(numbers)
        } else {
            Err(format!("{count} rows, {} answers", numbers.len()))
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
