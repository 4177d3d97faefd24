//! The counters of all devices, for tools: a file beside the records, a line a device, the last line `end`.

use super::report::write_line;
use crate::backend::{Backend, BackendServer, Buses};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xenbus::{Bus, Driver};

/// The file `stats`. A line is the kind, the device, and its [`Backend::statistics`].
pub(super) struct Statistics {
    /// The name of the program.
    name: &'static str,
    path: PathBuf,
    file: std::io::Result<File>,
    written: String,
    /// The fault with it has been said.
    said: bool,
}

impl Statistics {
    pub(super) fn create(name: &'static str, record_dir: &Path) -> Self {
        let path = record_dir.join("stats");
        Self { name, file: File::create(&path), path, written: String::new(), said: false }
    }

    /// Writes it anew where anything has changed. Devices are served without it as well.
    pub(super) fn write<B: Driver + Backend>(
        &mut self,
        server: &mut BackendServer<Buses<B>>,
        kinds: &[&str],
    ) {
        let text = text(server, kinds);
        if text == self.written {
            return;
        }
        let written = match &self.file {
            Ok(file) => file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)),
            Err(error) => Err(std::io::Error::new(error.kind(), error.to_string())),
        };
        match written {
            Ok(()) => self.written = text,
            Err(error) if !self.said => {
                self.said = true;
                let path = self.path.display();
                write_line(
                    self.name,
                    format_args!("no statistics: {path}: {error}; devices are served without"),
                );
            }
            Err(_) => {}
        }
    }
}

fn text<B: Driver + Backend>(server: &mut BackendServer<Buses<B>>, kinds: &[&str]) -> String {
    let mut text = String::new();
    for kind in kinds {
        for (id, back) in server.bus(kind).into_iter().flat_map(Bus::drivers) {
            text.push_str(&format!("{kind} {id} {}\n", back.statistics()));
        }
    }
    text.push_str("end\n");
    text
}
