//! The files of a package, by its recipe `packaging/debian/NAME/files`.
//!
//! A recipe has one instruction a line:
//!
//! | line | effect |
//! |---|---|
//! | `program NAME` | a program that cargo built, in `/usr/lib/xenbus/bin` |
//! | `link PATH TARGET` | a symbolic link |
//! | `config PATH FILE` | a file of the project that the operator may change; it names the packages' programs |
//! | `unit FILE` | a unit of systemd, whose programs are those of the packages |
//! | `page FILE NAME` | a manual page; its line `@HELP@` becomes what `NAME --help` prints |
//! | `pages NAME` | the manual pages that `NAME man FOLDER` writes |
//! | `completions NAME` | what `NAME completions` prints for each shell |

use super::sources::PackageSources;
use crate::Result;
use crate::command::{filter, output, strip, succeed};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the programs. They look for each other beside themselves.
const BIN: &str = "usr/lib/xenbus/bin";
/// The folder of programs that the units and settings of the repository name.
const UNIT_BIN: &str = "/usr/local/bin/";
/// The shells, with the file of a program's completions.
const SHELLS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/@"),
    ("zsh", "usr/share/zsh/vendor-completions/_@"),
    ("fish", "usr/share/fish/vendor_completions.d/@.fish"),
];

/// The staged files of a package.
pub(super) struct StagingFolder<'a> {
    sources: &'a PackageSources,
    root: PathBuf,
    config: Vec<String>,
    programs: Vec<String>,
}

impl<'a> StagingFolder<'a> {
    /// Makes an empty stage in `root`.
    pub(super) fn new(sources: &'a PackageSources, root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { sources, root, config: Vec::new(), programs: Vec::new() })
    }

    /// Returns the folder of the staged files.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the absolute paths of files that the operator may change.
    pub(super) fn config(&self) -> &[String] {
        &self.config
    }

    /// Returns the names of the package's programs.
    pub(super) fn programs(&self) -> &[String] {
        &self.programs
    }

    /// Returns the built program `name`.
    pub(super) fn built(&self, name: &str) -> PathBuf {
        self.sources.programs.join(name)
    }

    /// Adds the files of a recipe.
    pub(super) fn follow(&mut self, recipe: &Path) -> Result<()> {
        for (number, line) in fs::read_to_string(recipe)?.lines().enumerate() {
            self.line(line.split('#').next().unwrap_or_default())
                .map_err(|error| format!("{}:{}: {error}", recipe.display(), number + 1))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => Ok(()),
            ["program", name] => self.program(name),
            ["link", path, target] => Ok(symlink(target, self.file_place(path)?)?),
            ["config", path, file] => self.config_file(path, file),
            ["unit", file] => self.unit(file),
            ["page", file, name] => self.page(file, name),
            ["pages", name] => self.pages(name),
            ["completions", name] => self.completions(name),
            _ => Err(format!("a recipe has no such line: {line}").into()),
        }
    }

    fn program(&mut self, name: &str) -> Result<()> {
        let to = self.file_place(&format!("{BIN}/{name}"))?;
        strip(&self.built(name), &to)?;
        self.programs.push(name.to_owned());
        set_mode(&to, 0o755)
    }

    fn config_file(&mut self, path: &str, file: &str) -> Result<()> {
        let from = self.sources.root.join(file);
        let mode = fs::metadata(&from).map_err(|error| format!("{file}: {error}"))?.permissions();
        let text = self.read(file)?.replace(UNIT_BIN, &format!("/{BIN}/"));
        let executable = mode.mode() & 0o100 != 0;
        self.put(path, text.as_bytes(), if executable { 0o755 } else { 0o644 })?;
        self.config.push(format!("/{}", path.trim_start_matches('/')));
        Ok(())
    }

    /// Adds a unit with the packages' programs, without its comment on manual installation.
    fn unit(&mut self, file: &str) -> Result<()> {
        let text = self.read(file)?;
        let name = file.rsplit('/').next().unwrap_or(file);
        let unit = packaged_unit(&text).ok_or(format!("{file} starts nothing in {UNIT_BIN}"))?;
        self.put(&format!("usr/lib/systemd/system/{name}"), unit.as_bytes(), 0o644)
    }

    fn page(&mut self, file: &str, name: &str) -> Result<()> {
        // A program may print the name by which it was called.
        let help = output(Command::new(self.built(name)).arg0(name).arg("--help"))?;
        let text = self.read(file)?;
        let page = text.replace("@HELP@", roff(&help).trim_end());
        if page == text {
            return Err(format!("{file} has no line @HELP@").into());
        }
        self.put_page(file.rsplit('/').next().unwrap_or(file), page.into_bytes())
    }

    fn pages(&mut self, name: &str) -> Result<()> {
        let folder = self.root.with_extension("pages");
        fs::create_dir_all(&folder)?;
        succeed(Command::new(self.built(name)).arg("man").arg(&folder))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            self.put_page(&entry.file_name().to_string_lossy(), fs::read(entry.path())?)?;
        }
        Ok(fs::remove_dir_all(folder)?)
    }

    fn put_page(&self, name: &str, page: Vec<u8>) -> Result<()> {
        let section = name.rsplit('.').next().unwrap_or_default();
        let packed = filter(Command::new("gzip").args(["-n9c"]), page)?;
        self.put(&format!("usr/share/man/man{section}/{name}.gz"), &packed, 0o644)
    }

    fn completions(&mut self, name: &str) -> Result<()> {
        for (shell, path) in SHELLS {
            let text = output(Command::new(self.built(name)).args(["completions", shell]))?;
            self.put(&path.replace('@', name), text.as_bytes(), 0o644)?;
        }
        Ok(())
    }

    /// Adds the licences and the list of changes.
    pub(super) fn document(&mut self, name: &str) -> Result<()> {
        let folder = format!("usr/share/doc/{name}");
        let mut text = self.read("LICENSE-MIT")?;
        text.push_str(&format!(
            "\nOr, at your choice, the Apache License 2.0, which is in\n{}.\n",
            "/usr/share/common-licenses/Apache-2.0"
        ));
        text.push_str(&self.sources.notices.of(&self.programs)?);
        self.put(&format!("{folder}/copyright"), text.as_bytes(), 0o644)?;
        let changes =
            filter(Command::new("gzip").args(["-n9c"]), self.read("CHANGELOG.md")?.into_bytes())?;
        self.put(&format!("{folder}/changelog.gz"), &changes, 0o644)
    }

    fn read(&self, file: &str) -> Result<String> {
        let text = fs::read_to_string(self.sources.root.join(file));
        text.map_err(|error| format!("{file}: {error}").into())
    }

    fn put(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let place = self.file_place(path)?;
        fs::write(&place, bytes)?;
        set_mode(&place, mode)
    }

    /// Returns the place of a path that is not there yet; makes its folder.
    fn file_place(&self, path: &str) -> Result<PathBuf> {
        let place = self.root.join(path.trim_start_matches('/'));
        let mut folder = place.parent().ok_or("a path has a folder")?.to_owned();
        fs::create_dir_all(&folder)?;
        while folder.starts_with(&self.root) {
            set_mode(&folder, 0o755)?;
            folder.pop();
        }
        if fs::symlink_metadata(&place).is_ok() {
            return Err(format!("{path} is there twice").into());
        }
        Ok(place)
    }
}

/// Sets a mode that does not depend on the umask.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Returns a unit whose programs are those of the packages, without its comment on manual
/// installation; none if it starts no program of ours.
fn packaged_unit(text: &str) -> Option<String> {
    let mut unit = String::new();
    let mut installing = false;
    for line in text.lines() {
        installing = line.starts_with("# To install:") || installing && line.starts_with("# ");
        if !installing {
            unit.push_str(&line.replace(UNIT_BIN, &format!("/{BIN}/")));
            unit.push('\n');
        }
    }
    unit.contains(BIN).then_some(unit)
}

/// Returns text as roff prints it unchanged between `.nf` and `.fi`.
fn roff(text: &str) -> String {
    let mut roff = String::new();
    for line in text.lines() {
        if line.starts_with(['.', '\'']) {
            roff.push_str("\\&");
        }
        for sign in line.chars() {
            match sign {
                '\\' => roff.push_str("\\e"),
                '-' => roff.push_str("\\-"),
                // Without these names groff prints typographic signs, which no shell understands.
                '\'' => roff.push_str("\\(aq"),
                '`' => roff.push_str("\\(ga"),
                '^' => roff.push_str("\\(ha"),
                '~' => roff.push_str("\\(ti"),
                sign => roff.push(sign),
            }
        }
        roff.push('\n');
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packaged_unit_starts_the_packages_program() {
        let unit = "# A daemon.\n#\n# To install: this file to /etc,\n# and the program.\n\n\
                    [Service]\nExecStart=/usr/local/bin/xenstored --no-fork\n";
        let packaged = "# A daemon.\n#\n\n[Service]\n\
                        ExecStart=/usr/lib/xenbus/bin/xenstored --no-fork\n";
        assert_eq!(packaged_unit(unit).as_deref(), Some(packaged));
        assert_eq!(packaged_unit("[Service]\nExecStart=/bin/true\n"), None);
    }

    #[test]
    fn text_is_no_request_of_roff() {
        assert_eq!(roff("--all\n.x\n'y \\\n"), "\\-\\-all\n\\&.x\n\\&\\(aqy \\e\n");
        assert_eq!(roff("`a` ^ ~"), "\\(gaa\\(ga \\(ha \\(ti\n");
    }
}
