//! The record in the host's directory of what its broker holds, for the next broker after one that
//! was killed.

use super::directory::Directory;
use super::remains::{Holdings, ProcessIdentity, Remainder};
use std::io;
use std::path::Path;

/// The record, as this broker keeps it.
#[derive(Default)]
pub(super) struct Record {
    /// The directory, locked as long as the broker lives; tests have none.
    directory: Option<Directory>,
    holdings: Holdings,
    /// The holdings of an earlier broker that did not end when this one started.
    inherited: Holdings,
}

impl Record {
    /// Begins the record with the part of `before` that is `left`, so that the next broker finds it
    /// too.
    ///
    /// # Errors
    /// The record cannot be written.
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
    pub(super) fn add_process(&mut self, process_identity: ProcessIdentity) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        self.holdings.add_process(process_identity, directory)
    }

    /// Removes a process that has ended.
    pub(super) fn remove_process(&mut self, process_identity: ProcessIdentity) {
        self.holdings.processes.remove(&process_identity);
    }

    /// Takes the holdings of an earlier broker, once.
    pub(super) fn take_inherited(&mut self) -> Holdings {
        std::mem::take(&mut self.inherited)
    }

    /// Takes the directory, which is no longer kept.
    pub(super) fn take_directory(&mut self) -> Option<Directory> {
        self.directory.take()
    }
}
