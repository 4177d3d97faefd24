//! The project's own chores: `cargo xtask COMMAND`.
//!
//! | module | what it is |
//! |---|---|
//! | `ci` | the steps that every change must pass |
//! | `tidy` | the rules of the code that no other tool checks |
//! | `bench` | builds and runs the benches |
//! | `figures` | README's table of figures |
//! | `command` | commands of the machine: their output, their errors |
//! | `deb` | Debian packages |
//! | `fuzz` | builds the fuzz targets and runs each for a while |
//! | `package` | makes the packages that can be published, and compiles the examples of their READMEs |
//! | `programs` | builds the simulator, or the search for memory that is not charged, and runs it |
//! | `toolchain` | the build with the Rust version that the manifest states |
//! | `result` | the result of a chore |
//! | `workspace` | the workspace as cargo describes it |
//! | `xen` | real Xen under QEMU, with stock Linux guests |

mod bench;
mod ci;
mod command;
mod deb;
mod figures;
mod fuzz;
mod package;
mod programs;
mod result;
mod tidy;
mod toolchain;
mod workspace;
mod xen;

pub(crate) use result::Result;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  ci [STEP...]            what every change must pass; without STEP, all of it
  tidy                    file lengths, words, lints, dependencies, circles, links
  package                 makes the packages that can be published, and compiles their READMEs' examples
  rust-version            builds with the Rust version that Cargo.toml states
  bench store [OPTION...] our xenstored beside Debian's daemons; --help lists the options
  bench block [OPTION...] our block devices beside io_uring and qemu-nbd; --help lists the options
  bench platform WHAT     hosted domains beside what the machine costs: speed, create [COUNT]
  bench xb [--quick]      how long xb takes to create and list hosted guests
  bench console [--quick|--long]
                          consoles of hosted guests: keys, floods, idle ones, a daemon that is started again
  bench xen               our block backend beside the kernel's on real Xen, under QEMU
  bench store|block|xb|console --readme [OPTION...]
                          puts the new table into docs/performance.md and its figures into README.md
  bench --readme          takes README.md's figures from docs/performance.md, and runs no bench
  sim [--devices TYPE] [--seeds N] [--from SEED]
                          whole hosts in one thread, faults on cue; 200 seeds from 0 on
  held [--seconds N] [--seed N] [--goal held|time]
                          searches for what a guest has the store hold without a charge, or for its longest
                          call; 60 s, seed 1
  deb [--quick|--check]   Debian packages, into target/debian; --help lists the options
  fuzz [TARGET] [OPTION]  the fuzz targets, 15 s each; --help lists the options
  xen [OPTION...]         our xenstored as the store of a real Xen host, under QEMU; --help lists the options
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["ci", "--list"] => Ok(ci::list()),
        ["ci", steps @ ..] => ci::run(steps),
        ["tidy"] => tidy::run(),
        ["package"] => package::run(),
        ["rust-version"] => toolchain::run(),
        ["bench", "--readme"] => bench::readme(),
        ["bench", "store", options @ ..] => bench::store(options),
        ["bench", "block", options @ ..] => bench::block(options),
        ["bench", "platform", options @ ..] => bench::platform(options),
        ["bench", "xb", options @ ..] => bench::xb(options),
        ["bench", "console", options @ ..] => bench::console(options),
        ["bench", "xen", options @ ..] => xen::bench(options),
        [package @ ("sim" | "held"), options @ ..] => programs::run(package, options),
        ["deb", "--check"] => xen::check_debs(),
        ["deb", options @ ..] => deb::run(options),
        ["fuzz", options @ ..] => fuzz::run(options),
        ["xen", options @ ..] => xen::run(options),
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(format!("no such command\n{HELP}").into()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::from(2)
    })
}
