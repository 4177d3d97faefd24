//! Domains of this program that read lines and answer with numbers.

use crate::result::Result;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use xen_hosted::domain::{DomainConfig, Files};
use xen_hosted::domctl::{Control, CreatedDomain, Descriptors};

/// A domain of this program with a pipe to talk to.
pub(crate) struct Talker {
    pub(crate) created: CreatedDomain,
    input: PipeWriter,
    output: BufReader<PipeReader>,
}

impl Talker {
    pub(crate) fn create(control: &mut Control, args: &[&str]) -> Result<Self> {
        Self::create_with(control, args, |_| {})
    }

    /// Creates a talker whose configuration `shape` has changed.
    pub(crate) fn create_with(
        control: &mut Control,
        args: &[&str],
        change: impl FnOnce(&mut DomainConfig),
    ) -> Result<Self> {
        let (read_in, input) = std::io::pipe()?;
        let (output, write_out) = std::io::pipe()?;
        let mut config = DomainConfig::default();
        config.files = Files::System;
        config.args = ["guest"].iter().chain(args).map(Into::into).collect();
        change(&mut config);
        let program = File::open(std::env::current_exe()?)?;
        let error = std::io::stderr();
        let descriptors = Descriptors {
            program: program.as_fd(),
            input: read_in.as_fd(),
            output: write_out.as_fd(),
            error: error.as_fd(),
        };
        let created = control.create(&config, descriptors)?;
        Ok(Self { created, input, output: BufReader::new(output) })
    }

    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    pub(crate) fn hear(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim().parse().map_err(|_| format!("a domain of the bench says {line:?}").into())
    }
}
