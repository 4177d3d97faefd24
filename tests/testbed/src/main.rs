//! `xenstored-testbed`: the whole daemon on the test bed that `XENSHIM_GUESTS` names.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xenstored::PlatformChoice;

fn main() -> ExitCode {
    xenstored::main_with(|_config| {
        let directory = std::env::var_os(testbed::DIRECTORY).map(PathBuf::from);
        testbed::platform(directory.as_deref().map(Path::new)).map(PlatformChoice::Platform)
    })
}
