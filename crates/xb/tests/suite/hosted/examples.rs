//! The configurations of `examples/`: the commands at the beginning of each are run, and print what is said there.

use super::support::{TestHost, XB};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The folder with the examples.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// A command of an example, and the lines that it prints.
struct Example {
    command: String,
    prints: Vec<String>,
}

/// The commands of a configuration's first comment: `#     $ COMMAND`, and lines of output after it.
fn examples(text: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    for line in text.lines().map_while(|line| line.strip_prefix('#')) {
        let Some(line) = line.strip_prefix("     ") else { continue };
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => {
                found.push(Example { command: command.into(), prints: Vec::new() });
            }
            (None, Some(last)) => last.prints.push(line.into()),
            (None, None) => panic!("output before the first command: {line}"),
        }
    }
    found
}

/// Runs the commands of one example in a folder that has its file.
fn run(host: &TestHost, file: &Path, folder: &Path) {
    let programs = Path::new(XB).parent().unwrap().display();
    let path = format!("{programs}:{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let examples = examples(&fs::read_to_string(file).unwrap());
    assert!(examples.iter().any(|one| !one.prints.is_empty()), "{}: no output", file.display());
    for Example { command, prints } in examples {
        let output = Command::new("sh")
            .args(["-ec", &command])
            .current_dir(folder)
            .env("PATH", &path)
            .env("XB_HOST", host.path("h"))
            .env_remove("CARGO")
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {command}: {output:?}", file.display());
        for line in prints {
            let found = printed.lines().any(|one| one == line);
            assert!(found, "{}: {command} prints no line {line:?}: {printed}", file.display());
        }
    }
}

#[test]
fn the_examples_work_as_they_stand() {
    let test = "the_examples_work_as_they_stand";
    for program in ["mke2fs", "debugfs", "qemu-img"] {
        let found = Command::new("sh")
            .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}")])
            .output()
            .unwrap();
        if !found.status.success() {
            return conformance::skip(test, &format!("{program} is not installed"));
        }
    }
    let host = TestHost::up("examples");
    if !host.has_fuse(test) {
        return;
    }
    let mut count = 0;
    for entry in fs::read_dir(EXAMPLES).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|end| end == "cfg" || end == "toml") {
            let folder = host.path(file.file_stem().unwrap().to_str().unwrap());
            fs::create_dir(&folder).unwrap();
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
            run(&host, &file, &folder);
            count += 1;
        }
    }
    assert!(count > 0, "no example in {EXAMPLES}");
    host.until_alone();
}
