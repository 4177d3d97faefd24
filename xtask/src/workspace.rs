//! The workspace as cargo describes it.

use crate::Result;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

/// The workspace.
pub(crate) struct Workspace {
    /// Its root.
    pub(crate) root: PathBuf,
    /// The folder where cargo builds.
    pub(crate) target: PathBuf,
    /// Its packages.
    pub(crate) packages: Vec<Package>,
    /// The version of its packages.
    pub(crate) version: String,
    /// The version of Rust that its packages state.
    pub(crate) rust_version: String,
}

/// One package.
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// True if its manifest does not forbid to publish it.
    pub(crate) can_be_published: bool,
    /// Its folder, relative to the root.
    pub(crate) folder: PathBuf,
    /// Dependencies that are built into it (normal and build ones), by name.
    pub(crate) dependencies: Vec<String>,
    /// Names of its binaries.
    pub(crate) binaries: Vec<String>,
    /// The root files of its library and binaries, absolute.
    pub(crate) roots: Vec<PathBuf>,
}

/// Returns the command that runs this cargo.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

impl Workspace {
    /// Loads the workspace from `cargo metadata`.
    pub(crate) fn load() -> Result<Self> {
        let mut command = cargo();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let output = command.output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cargo metadata: {}", why.trim()).into());
        }
        let all: Value = serde_json::from_slice(&output.stdout)?;
        let root = PathBuf::from(text(&all, "workspace_root"));
        let packages = list(&all, "packages")
            .iter()
            .map(|package| {
                let manifest = PathBuf::from(text(package, "manifest_path"));
                let folder = manifest.parent().unwrap_or(&root);
                let folder = folder.strip_prefix(&root).unwrap_or(folder).to_owned();
                Package::new(package, folder)
            })
            .collect();
        let mut stated = list(&all, "packages").iter().map(|one| text(one, "rust_version"));
        let rust_version = stated.find(|stated| !stated.is_empty());
        let rust_version = rust_version.ok_or("no package states its rust-version")?;
        let version = list(&all, "packages").first().map(|one| text(one, "version"));
        let version = version.ok_or("the workspace has no package")?;
        let target = text(&all, "target_directory").into();
        Ok(Self { root, target, packages, version, rust_version })
    }
}

impl Package {
    fn new(package: &Value, folder: PathBuf) -> Self {
        let built_in = |one: &&Value| one["kind"].as_str() != Some("dev");
        let is = |target: &&Value, kind: &str| list(target, "kind").iter().any(|one| one == kind);
        let targets = list(package, "targets");
        Self {
            name: text(package, "name"),
            version: text(package, "version"),
            can_be_published: package["publish"].is_null(),
            folder,
            dependencies: list(package, "dependencies")
                .iter()
                .filter(built_in)
                .map(|one| text(one, "name"))
                .collect(),
            binaries: targets
                .iter()
                .filter(|one| is(one, "bin"))
                .map(|one| text(one, "name"))
                .collect(),
            roots: targets
                .iter()
                .filter(|one| is(one, "lib") || is(one, "bin"))
                .map(|one| text(one, "src_path").into())
                .collect(),
        }
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}
