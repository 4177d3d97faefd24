//! The images: an initramfs for dom0 and those for guests, from the recipes `tests/xen/*.files`;
//! `disk` makes disks from others.
//!
//! A boot with an overlay has an image of its own: dom0's archive, and behind it that of the
//! overlay, whose files replace those of the same names when the kernel unpacks both.
//!
//! A recipe has one instruction a line:
//!
//! | line | effect |
//! |---|---|
//! | `copy PATH...` | from the packages, with all below it, and the libraries that its programs need |
//! | `module NAME...` | a module of the kernel, with those that it needs |
//! | `folder PATH...` | an empty folder |
//! | `link PATH TARGET` | a symbolic link |
//! | `put PATH FILE` | a file or a folder of `tests/xen` |
//! | `made PATH FILE` | a file or a folder that was made in `target/xen-lab` |
//! | `program PATH NAME` | a program that cargo built |
//! | `applets PATH` | a link to busybox for each of its applets that is not there by now |

use super::cpio::FileTree;
use super::lab::{Lab, say};
use super::modules;
use super::packages::{XEN, boot_file, kernel_version, libraries, program};
use crate::Result;
use crate::command::{self, filter, strip};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the kernel, Xen and all images, with one for each recipe of `overlays`.
pub(crate) fn build(lab: &Lab, overlays: impl IntoIterator<Item = &'static str>) -> Result<()> {
    let root = fs::canonicalize(lab.root())?;
    fs::create_dir_all(lab.dir.join("images"))?;
    kernel(lab, &root)?;
    // The guests' images are part of dom0's and of the overlays.
    for name in ["domu", "block", "drv", "dom0"] {
        let mut tree = Image::read(lab, name)?.tree;
        tree.device(Path::new("dev/console"), 5, 1);
        tree.device(Path::new("dev/null"), 1, 3);
        tree.write(&archive(lab, name))?;
        say(&format!("image {name}: {} MiB", fs::metadata(archive(lab, name))?.len() >> 20));
    }
    for name in overlays {
        let overlay = lab.dir.join("images/overlay");
        Image::read(lab, name)?.tree.write(&overlay)?;
        let whole = [fs::read(archive(lab, "dom0"))?, fs::read(overlay)?].concat();
        fs::write(archive(lab, name), &whole)?;
        say(&format!("image {name}: {} MiB", whole.len() >> 20));
    }
    Ok(())
}

/// Returns the file of the image `name`.
fn archive(lab: &Lab, name: &str) -> PathBuf {
    lab.dir.join("images").join(format!("{name}.cpio"))
}

/// Unpacks Xen and the kernel on this machine, a thousand times faster than under emulation.
fn kernel(lab: &Lab, root: &Path) -> Result<()> {
    let (xen, linux) = (lab.dir.join("images/xen"), lab.dir.join("images/vmlinux"));
    let packed = fs::read(boot_file(root, &format!("xen-{XEN}-amd64.gz")))?;
    fs::write(xen, filter(Command::new("gzip").arg("-dc"), packed)?)?;
    let packed = fs::read(boot_file(root, &format!("vmlinuz-{}", kernel_version(root)?)))?;
    // The x86 boot protocol: sectors of set-up code, then offset and length of the payload.
    let word = |at: usize| -> Option<usize> {
        let bytes = packed.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let start = (usize::from(*packed.get(0x1f1)?) + 1) * 512 + word(0x248)?;
        packed.get(start..start + word(0x24c)?)
    };
    let payload = payload().ok_or("the kernel's file is no bzImage")?.to_vec();
    let plain = match payload.first_chunk() {
        Some(b"\xfd7zX") => {
            filter(program(root, "usr/bin/xz").args(["-dc", "--single-stream"]), payload)?
        }
        Some(b"\x28\xb5\x2f\xfd") => filter(program(root, "usr/bin/zstd").arg("-dcq"), payload)?,
        _ => return Err("the kernel is packed neither with xz nor with zstd".into()),
    };
    if !plain.starts_with(b"\x7fELF") {
        return Err("the kernel's payload is no ELF file".into());
    }
    Ok(fs::write(linux, plain)?)
}

/// The image that a recipe makes.
pub(super) struct Image<'a> {
    lab: &'a Lab,
    root: PathBuf,
    pub(super) tree: FileTree,
    modules: Vec<String>,
    /// The files whose libraries have been added.
    seen: BTreeSet<PathBuf>,
}

impl<'a> Image<'a> {
    /// Makes the image of the recipe `name`.
    pub(super) fn read(lab: &'a Lab, name: &str) -> Result<Self> {
        let root = fs::canonicalize(lab.root())?;
        let recipe = lab.recipes().join(format!("{name}.files"));
        let text = fs::read_to_string(&recipe)?;
        let (tree, modules, seen) = (FileTree::default(), Vec::new(), BTreeSet::new());
        let mut image = Self { lab, root, tree, modules, seen };
        for (number, line) in text.lines().enumerate() {
            image
                .line(line.split('#').next().unwrap_or_default())
                .map_err(|error| format!("{}:{}: {error}", recipe.display(), number + 1))?;
        }
        if !image.modules.is_empty() {
            modules::add(&mut image.tree, &image.root, &image.modules)?;
        }
        Ok(image)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["copy", paths @ ..] => {
                for path in paths {
                    self.copy(Path::new(path.trim_start_matches('/')))?;
                }
            }
            ["module", names @ ..] => {
                self.modules.extend(names.iter().map(|name| (*name).to_owned()));
            }
            ["folder", paths @ ..] => {
                paths.iter().for_each(|path| self.tree.folder(Path::new(path)));
            }
            ["link", path, target] => self.tree.link(Path::new(path), target),
            ["put", path, file] => self.put(Path::new(path), &self.lab.recipes().join(file))?,
            ["made", path, file] => self.put(Path::new(path), &self.lab.dir.join(file))?,
            ["program", path, name] => {
                let file = self.lab.programs.join(name);
                let bare = self.lab.dir.join("programs").join(name);
                strip(&file, &bare)?;
                self.tree.file(Path::new(path), &bare)?;
                self.libraries(&file)?;
            }
            ["applets", path] => self.applets(Path::new(path))?,
            _ => return Err(format!("a recipe has no such line: {line}").into()),
        }
        Ok(())
    }

    /// Adds a file or folder from elsewhere.
    fn put(&mut self, path: &Path, source: &Path) -> Result<()> {
        if !source.is_dir() {
            return self.tree.file(path, source);
        }
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            self.put(&path.join(entry.file_name()), &entry.path())?;
        }
        Ok(())
    }

    /// Adds the file or folder at `path` of the packages, relative to their root.
    fn copy(&mut self, path: &Path) -> Result<()> {
        // The folder may be reached through a link, as /lib is.
        let folder = self.root.join(path.parent().unwrap_or(Path::new("")));
        let folder =
            fs::canonicalize(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let source = folder.join(path.file_name().ok_or("a path ends in a name")?);
        let path = source.strip_prefix(&self.root)?.to_owned();
        let about = fs::symlink_metadata(&source)
            .map_err(|_| format!("the packages have no /{}", path.display()))?;
        if self.tree.has(&path) && !about.is_dir() {
            return Ok(());
        }
        if about.is_symlink() {
            let target = fs::read_link(&source)?;
            self.tree.link(&path, &target.to_string_lossy());
            let target = match target.strip_prefix("/") {
                Ok(target) => target.to_owned(),
                Err(_) => path.parent().unwrap_or(Path::new("")).join(target),
            };
            // A link may point to a file that only an installed system has.
            return if self.root.join(&target).exists() { self.copy(&target) } else { Ok(()) };
        }
        if about.is_dir() {
            self.tree.folder(&path);
            for entry in fs::read_dir(&source)? {
                self.copy(&path.join(entry?.file_name()))?;
            }
            return Ok(());
        }
        self.tree.file(&path, &source)?;
        self.libraries(&source)
    }

    /// Copies the libraries that the program or library `file` needs, as its loader finds them.
    fn libraries(&mut self, file: &Path) -> Result<()> {
        let mut start = [0; 4];
        let is_elf = fs::File::open(file)?.read_exact(&mut start).is_ok() && start == *b"\x7fELF";
        if !is_elf || !self.seen.insert(file.to_owned()) {
            return Ok(());
        }
        let loader = self.root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        let mut list = Command::new(&loader);
        list.args(["--library-path", &libraries(&self.root), "--list"]).arg(file);
        let list = list.output()?;
        let text = String::from_utf8_lossy(&list.stdout);
        let why = String::from_utf8_lossy(&list.stderr);
        let missing = ["not found", "cannot open shared object"];
        if missing.iter().any(|words| text.contains(words) || why.contains(words)) {
            return Err(
                format!("{} does not run on the packages: {text}{why}", file.display()).into()
            );
        }
        for library in text.lines().filter_map(|line| line.split("=>").nth(1)) {
            let library = Path::new(library.split_whitespace().next().unwrap_or_default());
            if let Ok(path) = library.strip_prefix(&self.root) {
                self.copy(path)?;
            }
        }
        self.copy(Path::new("lib64/ld-linux-x86-64.so.2"))
    }

    fn applets(&mut self, folder: &Path) -> Result<()> {
        self.copy(Path::new("bin/busybox"))?;
        let list = command::output(Command::new(self.root.join("bin/busybox")).arg("--list"))?;
        let places = ["usr/bin", "usr/sbin"].map(PathBuf::from);
        for name in list.lines() {
            if !places.iter().any(|place| self.tree.has(&place.join(name))) {
                self.tree.link(&folder.join(name), "/usr/bin/busybox");
            }
        }
        Ok(())
    }
}
