//! The packages that can be published: cargo makes each, and the examples of the READMEs compile with
//! them outside of the workspace.

use crate::Result;
use crate::workspace::{Package, Workspace, cargo};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The crate that uses the packages, and its folder where cargo builds.
const USER: &str = "package-user";
/// The files that each package has besides its code.
const FILES: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];
/// The fields of a manifest that cargo does not demand, and a reader of the registry does.
const FIELDS: [&str; 6] =
    ["description", "license", "readme", "keywords", "categories", "rust-version"];

/// Runs `cargo xtask package`.
///
/// Cargo's own build of a package keeps the packages that it depends on in its home, and uses those
/// of an earlier run. The packages are therefore built here, from their archives.
pub(crate) fn run() -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    let packages = workspace.packages.iter().filter(|package| package.can_be_published);
    let packages: Vec<&Package> = packages.collect();
    let mut make = cargo();
    // Nothing is published, so a change may wait for its commit. What a build of the workspace has
    // fetched is enough.
    make.args(["package", "--locked", "--offline", "--allow-dirty", "--no-verify"]);
    let mut check = cargo();
    check.args(["check", "--offline", "--package", USER, "--target-dir"]).arg(&workspace.target);
    for package in &packages {
        make.args(["--package", &package.name]);
        check.args(["--package", &package.name]);
    }
    if !make.current_dir(&workspace.root).status()?.success() {
        return Err("a package cannot be made; cargo has said why".into());
    }
    let user = workspace.target.join(USER);
    match fs::remove_dir_all(&user) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&user)?,
    }
    let mut places = Vec::new();
    for package in &packages {
        let name = package.name.as_str();
        let archive = format!("{name}-{}.crate", package.version);
        unpack(&workspace.target.join("package").join(&archive), &user)?;
        let place = user.join(archive.trim_end_matches(".crate"));
        is_complete(name, &place)?;
        places.push((name, place));
    }
    write_user(&workspace.root, &user, &places)?;
    if !check.current_dir(&user).status()?.success() {
        return Err(
            "a package, or an example of a README, does not compile; cargo has said why".into()
        );
    }
    println!("package: {} packages, and the examples of their READMEs", places.len());
    Ok(ExitCode::SUCCESS)
}

/// Unpacks the archive of a package into a folder of its own in `folder`.
fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(folder);
    let status = tar.status().map_err(|error| format!("tar: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("tar: {status}").into()) }
}

/// Checks the files and the fields of an unpacked package.
fn is_complete(name: &str, place: &Path) -> Result<()> {
    for file in FILES {
        let text = fs::read_to_string(place.join(file));
        if text.map_err(|error| format!("{name}: {file}: {error}"))?.is_empty() {
            return Err(format!("{name}: {file} is empty").into());
        }
    }
    let manifest = fs::read_to_string(place.join("Cargo.toml"))?;
    match missing_field(&manifest) {
        Some(field) => Err(format!("{name}: its manifest lacks {field}").into()),
        None => Ok(()),
    }
}

/// Returns the first of [`FIELDS`] that a manifest lacks.
fn missing_field(manifest: &str) -> Option<&'static str> {
    FIELDS.into_iter().find(|field| {
        let mut lines = manifest.lines();
        !lines.any(|line| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(" = ")))
    })
}

/// Writes a crate that uses the unpacked packages. Its programs are the examples of their READMEs
/// and of the project's.
fn write_user(root: &Path, user: &Path, places: &[(&str, PathBuf)]) -> Result<()> {
    let programs = user.join("src/bin");
    fs::create_dir_all(&programs)?;
    fs::write(user.join("Cargo.toml"), manifest(places))?;
    // The versions of other crates that this workspace has fetched.
    fs::copy(root.join("Cargo.lock"), user.join("Cargo.lock"))?;
    let project = [("project", root.to_owned())];
    for (name, place) in places.iter().chain(&project) {
        let readme = fs::read_to_string(place.join("README.md"))?;
        let examples = examples(&readme);
        if examples.is_empty() {
            return Err(format!("the README of {name} has no example").into());
        }
        for (number, example) in examples.iter().enumerate() {
            let program = format!("//! An example.\n\n{example}");
            fs::write(programs.join(format!("{name}-{number}.rs")), program)?;
        }
    }
    Ok(())
}

/// Returns the manifest of a crate that depends on the packages at these places, and takes them for
/// the registry's where they depend on each other.
fn manifest(places: &[(&str, PathBuf)]) -> String {
    let mut text = format!(
        "[package]\nname = \"{USER}\"\nedition = \"2024\"\npublish = false\n\n[workspace]\n"
    );
    for table in ["dependencies", "patch.crates-io"] {
        let _ = writeln!(text, "\n[{table}]");
        for (name, place) in places {
            let _ = writeln!(text, "{name} = {{ path = {:?} }}", place.display().to_string());
        }
    }
    text
}

/// Returns the Rust code between the fences of a Markdown text.
fn examples(text: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```").filter(|language| !language.is_empty())
        else {
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if language.split(',').next() == Some("rust") {
            examples.push(block.join("\n") + "\n");
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_the_rust_blocks() {
        let text = "a\n```rust,no_run\nb();\nc();\n```\n```sh\nd\n```\n    e\n```rust\nf\n```\n";
        assert_eq!(examples(text), ["b();\nc();\n", "f\n"]);
        assert_eq!(examples("none"), Vec::<String>::new());
    }

    #[test]
    fn a_manifest_has_what_readers_need() {
        let whole: String = FIELDS.map(|field| format!("{field} = \"x\"\n")).concat();
        assert_eq!(missing_field(&whole), None);
        assert_eq!(missing_field(&whole.replace("keywords", "words")), Some("keywords"));
    }

    #[test]
    fn packages_replace_those_of_the_registry() {
        let text = manifest(&[("a", "/b/a-0.1.0".into())]);
        assert!(text.ends_with(
            "\n[dependencies]\na = { path = \"/b/a-0.1.0\" }\n\n[patch.crates-io]\na = { path = \"/b/a-0.1.0\" }\n"
        ));
    }
}
