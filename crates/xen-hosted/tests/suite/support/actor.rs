//! The acts of a hostile domain: each attempt by name, through the library and beneath it.

use super::typist::Typist;
use super::{calls, entries, files, puppet, raw};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use xen::domctl::DomainControl;
use xen::domwatch::ShutdownReason;
use xen::evtchn::EventChannels;
use xen::gnttab::{GrantMap, GrantOffer, Mapping, OfferedPage, PageAccess};
use xen::{DomId, Error, GrantRef, Port};
use xen_hosted::Platform;
use xen_hosted::domctl::Control;

/// Limits the numbers of the program's further descriptors to those below `below`.
fn set_descriptors(below: u64) -> Result<(), Error> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(below), maximum };
    setrlimit(Resource::Nofile, limit).map_err(|error| Error::from_errno(error.raw_os_error()))
}

fn said<T>(result: Result<T, Error>) -> String {
    match result.map(drop) {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A domain's acts through the library and beneath it, one word each.
struct Actor {
    platform: Platform,
    channels: xen_hosted::evtchn::Channels,
    grants: xen_hosted::gnttab::Grants,
    offers: xen_hosted::gnttab::Offers,
    mapped: HashMap<String, Mapping>,
    offered: Vec<OfferedPage>,
    typist: Typist,
}

/// Plays a domain that does the acts that it is told.
pub(crate) fn play() -> i32 {
    let platform = Platform::guest().unwrap();
    let mut actor = Actor {
        channels: platform.channels().unwrap(),
        grants: platform.grants(),
        offers: platform.offers(),
        platform,
        mapped: HashMap::new(),
        offered: Vec::new(),
        typist: Typist::default(),
    };
    puppet::play(|words| actor.act(words))
}

fn number(word: &str) -> u32 {
    word.parse().unwrap()
}

fn domid(word: &str) -> DomId {
    DomId(word.parse().unwrap())
}

impl Actor {
    fn act(&mut self, words: &[&str]) -> String {
        match *words {
            ["map", of, grant, how] => {
                let access = if how == "rw" { PageAccess::ReadWrite } else { PageAccess::Read };
                match self.grants.map(domid(of), GrantRef(number(grant)), access) {
                    Ok(mapping) => {
                        self.mapped.insert(grant.to_owned(), mapping);
                        "done".to_owned()
                    }
                    Err(error) => error.to_string(),
                }
            }
            ["map-all", of, first, count] => {
                for grant in number(first)..number(first) + number(count) {
                    let mapping =
                        self.grants.map(domid(of), GrantRef(grant), PageAccess::ReadWrite);
                    self.mapped.insert(grant.to_string(), mapping.unwrap());
                }
                "done".to_owned()
            }
            ["touch-all"] => {
                let pages = self.mapped.values();
                pages.for_each(|mapping| mapping.page().copy_in(0, b"here").unwrap());
                self.mapped.len().to_string()
            }
            ["unmap", grant] => format!("{}", self.mapped.remove(grant).is_some()),
            ["write", grant] => match self.mapped[grant].page().copy_in(0, b"hostile") {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            },
            ["offer", to] => match self.offers.offer(domid(to), PageAccess::ReadWrite) {
                Ok(offered) => {
                    let grant = offered.grant();
                    self.offered.push(offered);
                    grant.to_string()
                }
                Err(error) => error.to_string(),
            },
            ["offer-all", to] => {
                let before = self.offered.len();
                let end = loop {
                    match self.offers.offer(domid(to), PageAccess::ReadWrite) {
                        Ok(offered) => self.offered.push(offered),
                        Err(error) => break error,
                    }
                };
                format!("{} {end}", self.offered.len() - before)
            }
            ["offer-batch", to, count] => {
                let (peer, count) = (domid(to), count.parse().unwrap());
                let offers = &mut self.offers;
                said(offers.offer_batch(peer, PageAccess::ReadWrite, count, &mut self.offered))
            }
            ["terminal", ref act @ ..] => self.typist.act(act),
            ["take-back"] => {
                self.offered.clear();
                "done".to_owned()
            }
            _ => self.act_on_ports(words),
        }
    }

    fn act_on_ports(&mut self, words: &[&str]) -> String {
        let port = |word: &str| Port(number(word));
        match *words {
            ["alloc", to] => match self.channels.alloc_unbound(domid(to)) {
                Ok(port) => port.to_string(),
                Err(error) => error.to_string(),
            },
            ["alloc-all"] => {
                let mut count = 0;
                let end = loop {
                    match self.channels.alloc_unbound(DomId::DOM0) {
                        Ok(_) => count += 1,
                        Err(error) => break error,
                    }
                };
                format!("{count} {end}")
            }
            ["bind", of, at] => said(self.channels.bind_interdomain(domid(of), port(at))),
            ["bind-virq"] => said(self.channels.bind_virq(xen::evtchn::Virq::DomExc)),
            ["no-room"] => {
                let next = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 0).unwrap();
                said(set_descriptors(next.as_raw_fd() as u64))
            }
            ["room"] => said(set_descriptors(512)),
            ["notify", at] => said(self.channels.notify(port(at))),
            ["flood", at, count] => {
                for _ in 0..number(count) {
                    let _ = self.channels.notify(port(at));
                }
                "done".to_owned()
            }
            ["close", at] => said(self.channels.close(port(at))),
            ["control"] => {
                let mut control = Control::over(&self.platform);
                let (other, reason) = (DomId(1), ShutdownReason::Poweroff);
                let refused = [
                    control.list().map(drop),
                    control.info(other).map(drop),
                    control.pause(other),
                    control.unpause(other),
                    control.shutdown(other, reason),
                    control.destroy(other),
                    control.vacate(other),
                    control.set_memory_max(other, 1 << 20),
                    control.scheduling(other).map(drop),
                    control.accounts(other).map(drop),
                ];
                format!("{}", refused.iter().filter(|r| **r == Err(Error::Perm)).count())
            }
            _ => act_beneath(words),
        }
    }
}

/// Does an act that needs no library.
fn act_beneath(words: &[&str]) -> String {
    match *words {
        ["abuse", of, slot] => {
            let (_, fds) = raw::request(&[6, of.parse().unwrap(), slot.parse().unwrap()], false);
            fds.last().map_or_else(|| "no arena".to_owned(), raw::abuse)
        }
        ["forge-end", of, slot, value] => {
            let (_, fds) = raw::request(&[6, of.parse().unwrap(), slot.parse().unwrap()], false);
            let word = value.parse::<u32>().unwrap().to_ne_bytes();
            // The first word of the table, which is the first of the memory.
            rustix::io::pwrite(&fds[0], &word, 0).map_or_else(|e| e.to_string(), |_| "done".into())
        }
        ["raw", ref numbers @ ..] => {
            let numbers: Vec<u64> = numbers.iter().map(|word| word.parse().unwrap()).collect();
            raw::request(&numbers, false).0[1].to_string()
        }
        ["punch", peer] => raw::punch(peer.parse().unwrap()),
        ["grant-and-abuse", peer] => raw::grant_and_abuse(peer.parse().unwrap()),
        ["seal-first", peer] => raw::seal_first(peer.parse().unwrap()),
        ["blocking"] => {
            let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
            raw::make_blocking(&event)
        }
        ["outlive"] => {
            let result = rustix::process::set_parent_process_death_signal(None);
            format!("{:?}", result.map_err(Errno::raw_os_error))
        }
        ["attach", count] => {
            // A request that is refused, with a descriptor that nobody asked for.
            for _ in 0..number(count) {
                let (answer, _) = raw::request(&[99], true);
                assert_eq!(answer, [0, 22]);
            }
            "done".to_owned()
        }
        ["nonsense", count] => {
            let mut sent = 0;
            let mut seed = 7_u64;
            for _ in 0..number(count) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let len = (seed >> 33) as usize % 6000;
                sent += u32::from(raw::send(&vec![(seed >> 40) as u8; len.max(1)]));
            }
            sent.to_string()
        }
        _ => look_around(words),
    }
}

/// Does an act that reports what can be seen and reached from here.
fn look_around(words: &[&str]) -> String {
    match *words {
        ["files"] => {
            let root = entries(std::path::Path::new("/")).join(" ");
            let write = fs::write("/x", "x").map_err(|error| error.kind());
            format!("{root}; {write:?}")
        }
        ["connect", path] => {
            format!("{:?}", std::os::unix::net::UnixStream::connect(path).map_err(|e| e.kind()))
        }
        ["open", path] => format!("{:?}", fs::File::open(path).map_err(|e| e.kind())),
        ["network"] => {
            format!(
                "{:?}",
                std::net::UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|e| e.raw_os_error())
            )
        }
        ["descriptors"] => raw::descriptors(),
        ["take", "socket"] => Platform::guest().unwrap_err().to_string(),
        ["take", "devices"] => xen_hosted::guest_devices().unwrap_err().to_string(),
        ["others", pid] => raw::others(pid.parse().unwrap()),
        ["kill", pid] => {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            format!("{:?}", rustix::process::test_kill_process(pid).map_err(Errno::raw_os_error))
        }
        ["who"] => {
            let me = rustix::process::getpid().as_raw_nonzero();
            let capabilities = rustix::thread::capabilities(None).unwrap();
            let uid = rustix::process::getuid().as_raw();
            format!("pid={me} uid={uid} capabilities={}", capabilities.permitted.bits())
        }
        _ => act_without_bound(words),
    }
}

/// Does an act that uses all of a resource.
fn act_without_bound(words: &[&str]) -> String {
    match *words {
        ["fork-all"] => {
            let mut count = 0;
            loop {
                match raw::fork() {
                    Ok(Some(_)) => count += 1,
                    Ok(None) => loop {
                        std::thread::park();
                    },
                    Err(error) => return format!("{count} {:?}", error.kind()),
                }
            }
        }
        ["hold", mib] => {
            // Never undone.
            for _ in 0..number(mib) {
                std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
            "done".to_owned()
        }
        ["memory", mib] => {
            let mut all: Vec<Vec<u8>> = Vec::new();
            for _ in 0..number(mib) {
                all.push(vec![1; 1 << 20]);
            }
            std::hint::black_box(&all);
            "all of it".to_owned()
        }
        ["hang-up", "unread"] => {
            // More than the broker keeps answers for, and none is read.
            for _ in 0..30 {
                raw::send_words(&[5, 1]);
            }
            raw::hang_up()
        }
        ["hang-up", "resting"] => {
            for _ in 0..=xen_hosted::limits::REQUESTS_BURST {
                raw::request(&[5, 1], false);
            }
            raw::send_words(&[5, 1]);
            raw::hang_up()
        }
        ["call", number] => calls::call(number),
        ["refused", what] => calls::refused(what),
        ["requests", ref numbers @ ..] => calls::requests(numbers),
        ["spoil", what, path] => calls::spoil(what, path),
        ["park"] => calls::park(),
        ["shed"] => raw::run_from_a_thread(c"/bin/sleep", c"1000"),
        ["dirty-files"] => files::dirty(),
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        _ => panic!("no such act: {words:?}"),
    }
}
