//! The note in the host's directory of what its broker holds, for who comes after a broker that was killed.

use super::directory::Directory;
use super::remains::{Holdings, ProcessIdentity, Remainder};
use std::io;
use std::path::Path;

/// The note, as this broker keeps it.
#[derive(Default)]
pub(super) struct Record {
    /// Locked for as long as the broker lives; tests have none.
    directory: Option<Directory>,
    holdings: Holdings,
    /// The things of a broker before that did not end when this one started.
    inherited: Holdings,
}

impl Record {
    /// Begins it: with what is `left` of what the broker `before` held, as that is still to be found by the next.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn begin(
        directory: Directory,
        before: Holdings,
        left: &[Remainder],
        first_id: Option<u32>,
    ) -> io::Result<Self> {
        let inherited = if left.is_empty() { Holdings::default() } else { before };
        let mut holdings = inherited.clone();
        holdings.first_id = first_id;
        holdings.write(&directory)?;
        Ok(Self { directory: Some(directory), holdings, inherited })
    }

    pub(super) fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// Adds a group.
    pub(super) fn add_group(&mut self, group: &Path) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        self.holdings.add_group(group, directory)
    }

    /// Adds a domain's first process.
    pub(super) fn add_process(&mut self, born: ProcessIdentity) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        self.holdings.add_process(born, directory)
    }

    /// Takes out one that has ended.
    pub(super) fn remove_process(&mut self, born: ProcessIdentity) {
        self.holdings.processes.remove(&born);
    }

    /// The things of a broker before, once.
    pub(super) fn take_inherited(&mut self) -> Holdings {
        std::mem::take(&mut self.inherited)
    }

    /// The directory, which is no longer kept.
    pub(super) fn take_directory(&mut self) -> Option<Directory> {
        self.directory.take()
    }
}
