//! An ordinary user: all that such a user can do works, and the rest is refused with a message.

use super::demo::{apart, writes_and_compares};
use super::support::{TestHost, XB};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xen_hosted::domain::MissingFeature;

/// The id of a user that nobody else here has.
const USER: u32 = 54_321;

/// A user's own files: the programs, and a folder.
struct Home(PathBuf);

impl Home {
    fn of(host: &TestHost) -> Self {
        let (home, bin) = (host.path("home"), host.path("bin"));
        std::fs::create_dir(&home).unwrap();
        std::fs::create_dir(&bin).unwrap();
        for folder in [&host.path(""), &bin] {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
        }
        for program in ["xb", "xen-hosted", "xenstored", "xenconsoled", "xen-blockd", "xenstore"] {
            std::fs::copy(Path::new(XB).with_file_name(program), bin.join(program)).unwrap();
        }
        chown(&home, Some(USER), Some(USER)).unwrap();
        Self(home)
    }

    fn run(&self, host: &TestHost, args: &[&str]) -> Output {
        let mut command = Command::new(host.path("bin/xb"));
        command.arg("--host").arg(self.0.join("h")).args(args).uid(USER).gid(USER).current_dir("/");
        command.env_remove("XB_HOST").env_remove("CARGO").env("TMPDIR", &self.0);
        command.output().unwrap()
    }

    fn ok(&self, host: &TestHost, args: &[&str]) -> String {
        let output = self.run(host, args);
        assert!(output.status.success(), "xb {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn an_ordinary_user_who_may_open_fuse_has_files() {
    let host = TestHost::down("user-fuse");
    let test = "an_ordinary_user_who_may_open_fuse_has_files";
    if !rustix::process::geteuid().is_root() {
        return conformance::skip(test, "only root can become another user");
    }
    if !host.has_fuse(test) {
        return;
    }
    let home = Home::of(&host);
    // As on Debian: writable for all.
    let script = format!(
        "cp -a /dev/fuse $DIR/fuse && chmod 666 $DIR/fuse && mount --bind $DIR/fuse /dev/fuse && \
         export TMPDIR={home} && exec setpriv --reuid={USER} --regid={USER} --clear-groups \
         $DIR/bin/xb --host {home}/h demo",
        home = home.0.display()
    );
    let Some(output) = apart(test, &host, &script) else { return };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let words = "this is an ordinary user, so nothing is mounted: the guests use debugfs instead";
    assert!(said.contains(words), "{said}");
    writes_and_compares(&said);
    host.nothing_is_left();
}

/// An ordinary user's guest serves the disk of another one, where it may have processes.
fn driver_domain(host: &TestHost, home: &Home) {
    let config = |name: &str, rest: &str| -> String {
        let path = home.0.join(format!("{name}.cfg"));
        let text = format!("name = \"{name}\"\n{rest}\nextra = \"exec sleep 1000\"\n");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().into()
    };
    let drv = config("drv", "driver_domain = 1");
    let web = config("served", "disk = [\"vdev=xvda,backend=drv,target=memory:1048576\"]");
    let created = home.ok(host, &["create", &drv, "--json"]);
    if created.contains(&MissingFeature::Namespaces.to_string()) {
        let refused = home.run(host, &["create", &web, "--timeout", "1"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("domain drv serves vbd: not within "), "{said}");
    } else {
        home.ok(host, &["create", &web]);
        let listed = home.ok(host, &["disk", "list", "served"]);
        assert!(listed.contains("Connected (4)"), "{listed}");
        home.ok(host, &["destroy", "served"]);
    }
    home.ok(host, &["destroy", "drv"]);
}

#[test]
fn an_ordinary_user_has_guests_and_is_told_what_cannot_be() {
    let host = TestHost::down("user");
    if !rustix::process::geteuid().is_root() {
        // Then all other tests run as an ordinary user.
        return conformance::skip(
            "an_ordinary_user_has_guests_and_is_told_what_cannot_be",
            "only root can become another user",
        );
    }
    let home = Home::of(&host);
    let shown = home.ok(&host, &["demo"]);
    let told = [
        "this is an ordinary user, so nothing is mounted",
        "/dev/fuse cannot be opened by this user",
    ];
    assert!(told.iter().any(|words| shown.contains(words)), "{shown}");
    assert!(shown.contains("all is taken down"), "{shown}");
    if !shown.contains("nothing is read or written") {
        assert!(shown.contains("e2fsck finds nothing wrong: 40 files"), "{shown}");
        assert!(shown.contains("what it wrote is what it reads"), "{shown}");
    }
    home.ok(&host, &["host", "up"]);
    let (image, config) = (home.0.join("a.img"), home.0.join("web.cfg"));
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    chown(&image, Some(USER), Some(USER)).unwrap();
    let disk = format!("disk = [\"{},,xvda,w\"]", image.display());
    let text = format!("name = \"web\"\n{disk}\nkernel_block = 1\nextra = \"exec sleep 1000\"\n");
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    home.ok(&host, &["create", config]);
    let refused = home.run(&host, &["disk", "mount", "web", "xvda"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let words = "web: only root may have the host's kernel mount a guest's disk";
    assert!(said.contains(words), "{said}");
    home.ok(&host, &["destroy", "web"]);
    // An image that only root may use.
    let theirs = host.image("root.img", 1 << 20);
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o600)).unwrap();
    let refused = home.run(&host, &["create", config, &format!("disk=[\"{theirs},,xvda,w\"]")]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("root.img: Permission denied"), "{said}");
    driver_domain(&host, &home);
    home.ok(&host, &["host", "down"]);
    assert!(!home.0.join("h").exists());
    host.nothing_is_left();
}
