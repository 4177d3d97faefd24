//! A host that runs Xen: the daemon that serves the machine, and domains that `xl` makes, each of
//! which runs `tests/xen/guest`.
//!
//! The daemon began before the test and serves others too, so after each case the store is
//! restored, and the objects that the case has made are removed. Making a domain takes half a
//! second, so a domain is used again if it is as good as new and the next case does not depend on
//! its absence.

use crate::daemon::DaemonKind;
use crate::host::{Host, Mark};
use crate::peer::Peer;
use crate::ring::agent::AgentRing;
use crate::snapshot::StoreSnapshot;
use crate::table::{Speaker, StepAction, TableCase};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest time of `xl`, in seconds.
const XL_SECONDS: &str = "60";
/// The longest time of any other action of a domain or of the toolstack.
const SOON: Duration = Duration::from_secs(20);
/// The number of times that a domain is made before a silent one is a failure.
const TRIES: usize = 3;
/// `SHUTDOWN_poweroff`.
const POWER_OFF: u32 = 0;

/// The connection of domain 0 to the daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Over the daemon's socket.
    Socket,
    /// Over the kernel's ring, by this device.
    Device,
}

/// A domain that runs the guest program.
#[derive(Debug)]
struct GuestDomain {
    console: PathBuf,
    introduction: String,
    /// True if it has shut down, and can only be destroyed.
    spent: bool,
}

/// The machine that this program runs on.
#[derive(Debug)]
pub struct XenHost {
    kind: DaemonKind,
    route: Route,
    files: PathBuf,
    store: Peer,
    before: StoreSnapshot,
    domains: BTreeMap<u16, GuestDomain>,
    made: u32,
}

impl XenHost {
    const SOCKET: &str = "/run/xenstored/socket";
    const DEVICE: &str = "/dev/xen/xenbus";

    /// Opens this machine and reads its store. `files` holds `ring-agent` and `xl-shim.so`.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn open(kind: DaemonKind, route: Route, files: &Path) -> std::io::Result<Self> {
        let mut store = Peer::socket(Path::new(Self::SOCKET))?;
        let before = StoreSnapshot::take(&mut store);
        let (files, domains) = (files.to_owned(), BTreeMap::new());
        Ok(Self { kind, route, files, store, before, domains, made: 0 })
    }

    /// Sets the connection of domain 0 from now on.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    /// Restores the host to the state in which `next` begins; returns the machine's own nodes that
    /// the last case has changed.
    ///
    /// # Panics
    /// If a domain cannot be destroyed, or the daemon does not answer.
    pub fn prepare(&mut self, next: Option<&TableCase>) -> Vec<String> {
        let numbers: Vec<u16> = self.domains.keys().copied().collect();
        for domid in numbers {
            let spent = self.domains.get(&domid).is_some_and(|domain| domain.spent);
            if spent || next.is_none_or(|case| notices(case, domid)) {
                self.clear_away(domid);
            } else {
                let released = self.store.ask("RELEASE", format!("{domid}|"));
                assert!(matches!(released.as_str(), "OK|" | "ENOENT"), "RELEASE: {released}");
            }
        }
        self.before.restore(&mut self.store)
    }

    /// Destroys a domain, and waits until the daemon has noticed. Xenconsoled unmaps the console's
    /// page when the daemon reports a death, and the daemon does so only of a domain that was
    /// introduced.
    fn clear_away(&mut self, domid: u16) {
        if self.store.ask("IS_DOMAIN_INTRODUCED", format!("{domid}|")) != "T|" {
            let introduction = self.introduction(domid);
            self.store.expect_ok("INTRODUCE", introduction);
        }
        self.destroy(domid);
        let end = Instant::now() + SOON;
        while self.store.ask("IS_DOMAIN_INTRODUCED", format!("{domid}|")) == "T|" {
            assert!(Instant::now() < end, "domain {domid} is destroyed and introduced still");
        }
    }

    /// Makes a domain, in the state in which a table expects it: alive, and unknown to the daemon.
    /// A domain that does not answer on its console is described, destroyed, and made again.
    fn make(&mut self, domid: u16) -> GuestDomain {
        for _ in 1..TRIES {
            match self.try_make(domid) {
                Ok(domain) => return domain,
                Err(why) => println!("note  {why}; made again"),
            }
        }
        self.try_make(domid).unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_make(&mut self, domid: u16) -> Result<GuestDomain, String> {
        self.made += 1;
        let name = format!("conformance-{domid}-{}", self.made);
        let config = tempfile::NamedTempFile::new().expect("a file in the temporary folder");
        let text = format!(
            "type=\"pv\"\nname=\"{name}\"\nkernel=\"{}\"\nmemory=8\nvcpus=1\n\
             on_poweroff=\"preserve\"\non_crash=\"preserve\"\n",
            self.files.join("ring-agent").display()
        );
        fs::write(config.path(), text).expect("a configuration in the temporary folder");
        let end = Instant::now() + SOON;
        let create = ["create", "-e", &config.path().display().to_string()].map(str::to_owned);
        // The last domain of that number exists as long as a page of it is mapped.
        while let Err(why) = self.xl(&create, ("XL_DOMID", domid.to_string())) {
            assert!(Instant::now() < end, "xl create of domain {domid}: {why}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let console = self.console(domid);
        let ring = match AgentRing::open(&console) {
            Ok(ring) => ring,
            Err(error) => {
                let state = self.state(domid);
                // An unknown domain would disturb all later cases.
                self.destroy(domid);
                return Err(format!("domain {domid}, {}: {error}; {state}", console.display()));
            }
        };
        let (mfn, port) = ring.introduction();
        self.store.expect_ok("RELEASE", format!("{domid}|"));
        let vm = self.store.ask("READ", format!("/local/domain/{domid}/vm|"));
        let own = ["/local/domain", "/libxl", "/local/domain/0/backend/console"];
        for path in own.map(|parent| format!("{parent}/{domid}")).into_iter().chain([vm]) {
            let removed = self.store.ask("RM", format!("{path}|"));
            assert!(matches!(removed.as_str(), "OK|" | "ENOENT"), "RM {path}: {removed}");
        }
        let introduction = format!("{domid}|{mfn}|{port}|");
        Ok(GuestDomain { console, introduction, spent: false })
    }

    /// Returns the terminal of a domain's console, once xenconsoled has written it to the store.
    fn console(&mut self, domid: u16) -> PathBuf {
        let path = format!("/local/domain/{domid}/console/tty");
        self.store.expect_ok("WATCH", format!("{path}|tty|"));
        let end = Instant::now() + SOON;
        loop {
            let told = self.store.event(SOON).is_some();
            let tty = self.store.ask("READ", format!("{path}|"));
            if tty.starts_with('/') {
                self.store.expect_ok("UNWATCH", format!("{path}|tty|"));
                self.store.forget_after(0);
                return tty.into();
            }
            assert!(told && Instant::now() < end, "xenconsoled gives domain {domid} no terminal");
        }
    }

    /// Returns the output of `xl` and of the hypervisor about a domain, for a message.
    fn state(&self, domid: u16) -> String {
        let said = |words: &[&str]| {
            let output = Command::new("timeout").args([XL_SECONDS, "xl"]).args(words).output();
            let output = output.map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&output).into_owned()
        };
        let listed = said(&["list", &domid.to_string()]);
        let dmesg = said(&["dmesg"]);
        let lines: Vec<&str> = listed.lines().skip(1).chain(dmesg.lines().rev().take(12)).collect();
        lines.join("; ")
    }

    fn xl(&self, arguments: &[String], variable: (&str, String)) -> Result<(), String> {
        let output = Command::new("timeout")
            .args([XL_SECONDS, "xl"])
            .args(arguments)
            .env("LD_PRELOAD", self.files.join("xl-shim.so"))
            .env("LIBXL_DOMID_REUSE_TIMEOUT", "0")
            .env(variable.0, variable.1)
            .output()
            .map_err(|error| format!("timeout: {error}"))?;
        let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if output.status.success() { Ok(()) } else { Err(format!("{}: {words}", output.status)) }
    }
}

impl Host for XenHost {
    fn kind(&self) -> DaemonKind {
        self.kind
    }

    fn marks(&self) -> Vec<Mark> {
        let device = (self.route == Route::Device).then_some(Mark::Xenbus);
        let c = (self.kind == DaemonKind::C).then_some(Mark::XenC);
        device.into_iter().chain(c).chain([Mark::Xen, Mark::Daemon(self.kind)]).collect()
    }

    fn ended(&mut self) -> Option<String> {
        self.store.pending().err().map(|lost| format!("its socket is {lost}"))
    }

    fn connect(&mut self) -> Peer {
        match self.route {
            Route::Socket => Peer::socket(Path::new(Self::SOCKET)),
            Route::Device => Peer::device(Path::new(Self::DEVICE)),
        }
        .unwrap_or_else(|error| panic!("domain 0's connection: {error}"))
    }

    fn disturbs(&self, domid: u16) -> bool {
        !self.domains.contains_key(&domid)
    }

    fn guest(&mut self, domid: u16) -> Peer {
        if self.disturbs(domid) {
            let domain = self.make(domid);
            self.domains.insert(domid, domain);
        }
        let console = self.domains.get(&domid).map(|domain| domain.console.clone());
        let ring = AgentRing::open(&console.unwrap_or_default())
            .unwrap_or_else(|error| panic!("domain {domid}: {error}"));
        Peer::ring_of(Box::new(ring))
    }

    fn introduction(&self, domid: u16) -> String {
        self.domains.get(&domid).map_or(String::new(), |domain| domain.introduction.clone())
    }

    fn destroy(&mut self, domid: u16) {
        let destroy = ["destroy".to_owned(), domid.to_string()];
        self.xl(&destroy, ("XL_KEEP_NODES", "1".to_owned()))
            .unwrap_or_else(|why| panic!("xl destroy of domain {domid}: {why}"));
        self.domains.remove(&domid);
    }

    fn shut_down(&mut self, domid: u16) {
        let Some(domain) = self.domains.get_mut(&domid) else { return };
        domain.spent = true;
        let mut ring = AgentRing::open(&domain.console).expect("the domain's console");
        ring.shut_down(POWER_OFF).expect("the domain's console");
    }

    fn run_again(&mut self, domid: u16) {
        panic!("domain {domid} cannot run again: xl has no command for that");
    }
}

/// True if a case depends on whether this domain exists before the case makes it, or existed in the
/// case before.
fn notices(case: &TableCase, domid: u16) -> bool {
    let number = domid.to_string();
    for step in &case.steps {
        if step.who == Speaker::Guest(domid) {
            return false;
        }
        if let StepAction::Request { payload, .. } = &step.action {
            let mut numbers = payload.split(|c: char| !c.is_ascii_digit());
            if numbers.any(|part| part == number) {
                return true;
            }
        }
    }
    true
}
