//! Commands of the machine that chores run: their output, their errors.

use crate::Result;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `input` through a command; returns its output. Bytes after the end of the packed data do
/// not matter.
pub(crate) fn filter(command: &mut Command, input: Vec<u8>) -> Result<Vec<u8>> {
    let name = format!("{command:?}");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.map_err(|error| format!("{name}: {error}"))?;
    let mut to = child.stdin.take().ok_or("no input")?;
    let writer = std::thread::spawn(move || to.write_all(&input));
    let mut plain = Vec::new();
    child.stdout.take().ok_or("no output")?.read_to_end(&mut plain)?;
    let status = child.wait()?;
    // The reader may end before it has read all bytes.
    drop(writer.join());
    if plain.is_empty() {
        return Err(format!("{name} ended with {status} and printed nothing").into());
    }
    Ok(plain)
}

/// Copies a program without its debug information: an image takes up its domain's memory.
pub(crate) fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().ok_or("a program has a folder")?)?;
    let status = Command::new("strip").arg("--strip-debug").arg("-o").args([to, from]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("strip of {}: {status}", from.display()).into()),
        Err(error) => Err(format!("strip (of binutils, which Rust links with): {error}").into()),
    }
}

/// Runs a command; the error holds its output.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stderr(Stdio::piped()).spawn();
    let output = child.map_err(|error| format!("{name} is needed: {error}"))?.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} ended with {}: {}", output.status, why.trim()).into())
}

/// Returns the output of a command.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{name} is needed: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} ended with {}: {}", output.status, why.trim()).into())
}
