//! `xb store`: the tool `xenstore`, with the host's store.

use super::options::GlobalOptions;
use crate::Error;
use crate::host::{HostChoice, programs};
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[derive(Args, Debug)]
pub(crate) struct StoreArguments {
    /// A command of xenstore and its arguments; xb store -- --help lists them all, with examples.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    words: Vec<OsString>,
}

pub(crate) fn run(options: &GlobalOptions, store: &StoreArguments) -> Result<u8, Error> {
    let program = programs::find(programs::XENSTORE)?;
    let mut command = Command::new(&program);
    command.args(&store.words);
    if options.json {
        command.arg("--json");
    }
    if let HostChoice::Hosted(folder) = options.choice() {
        let help = store.words.iter().any(|word| word == "--help" || word == "-h");
        if !help && !folder.store().exists() {
            let dir = folder.path().display();
            return Err(Error::NotFound(format!(
                "no host is up in {dir}; start it with: xb --host {dir} host up"
            )));
        }
        command.env("XENSTORED_PATH", folder.store());
    }
    // The tool replaces this process.
    let error = command.exec();
    let (program, cause) = (program.display(), crate::text::cause(&error));
    Err(Error::Refused(format!("{program}: {cause}")))
}
