//! A domain that executes the test's commands, line by line, and answers each with its result.

use super::{BrokerHost, WITHIN, playing, this_program};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use xen::DomId;
use xen::domctl::DomainControl;
use xen_hosted::domain::DomainConfig;
use xen_hosted::domctl::{Control, CreatedDomain, Descriptors};

/// The test's side of the domain.
pub(crate) struct Puppet {
    pub(crate) created: CreatedDomain,
    input: Option<PipeWriter>,
    output: BufReader<PipeReader>,
}

/// A `File` over a pipe's end.
fn file(end: impl Into<OwnedFd>) -> File {
    File::from(end.into())
}

impl Puppet {
    /// Creates it and runs its program.
    pub(crate) fn start(host: &BrokerHost) -> Self {
        Self::start_with(&mut host.control(), &playing("puppet"))
    }

    /// Creates it as `config` says and runs its program.
    pub(crate) fn start_with(control: &mut Control, config: &DomainConfig) -> Self {
        let (read_in, input) = std::io::pipe().unwrap();
        let (output, write_out) = std::io::pipe().unwrap();
        let (read_in, write_out) = (file(read_in), file(write_out));
        let (program, errors) = (this_program(), std::io::stderr());
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: read_in.as_fd(),
            output: write_out.as_fd(),
            error: errors.as_fd(),
        };
        let created = control.create(config, descriptors).unwrap();
        control.unpause(created.domid).unwrap();
        Self { created, input: Some(input), output: BufReader::new(output) }
    }

    pub(crate) fn domid(&self) -> DomId {
        self.created.domid
    }

    /// Sends it a command without waiting for the result.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    /// Reads its next line; `None` once it has ended. Bounded by the test's own limit of time, as
    /// it answers each line or ends.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let begin = std::time::Instant::now();
        loop {
            assert!(begin.elapsed() < WITHIN, "the domain says nothing");
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(said) = line.strip_prefix("> ") {
                return Some(said.trim_end().to_owned());
            }
        }
    }

    /// Sends it a command and returns the result.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear().unwrap_or_else(|| panic!("{line}: the domain has ended"))
    }
}

/// Runs the domain's program: `act` for each line.
pub(crate) fn play(mut act: impl FnMut(&[&str]) -> String) -> i32 {
    // The test runner has begun a line of its own.
    println!();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        if words == ["end"] {
            break;
        }
        println!("> {}", act(&words));
    }
    0
}
