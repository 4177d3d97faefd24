//! `control`: commands for the daemon, sent as Debian's xenstore-control sends them.

use super::args::atoi;
use super::failure::CommandFailure;
use super::program::{ProgramNames, print_to};
use std::io::{self, Write};
use std::time::{Duration, Instant};
use xenstore::error::describe;
use xenstore::{Client, Error, MsgType, Store};
use xenstore_core::wire;

/// Sends a command and prints the answer.
pub(super) fn run(program: &ProgramNames, args: &[Vec<u8>]) -> Result<u8, CommandFailure> {
    let Some((command, args)) = args.split_first() else {
        return fail_with(
            &[b"Usage:\n", &program.usage[..], b" <command> [<arg>...]\n"].concat(),
            2,
        );
    };
    let mut client = match Client::open() {
        Ok(client) => client,
        Err(error) => {
            fail_with(b"Failed to contact Xenstored.\n", 1)?;
            return Err(CommandFailure {
                message: None,
                ..CommandFailure::from(error.clone()).with_advice_on(&error)
            });
        }
    };
    if command == b"live-update" {
        return live_update(&mut client, args);
    }
    match send(&mut client, command, args) {
        Ok(reply) if reply.is_empty() => Ok(0),
        Ok(reply) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&[&reply[..], b"\n"].concat())?;
            stdout.flush()?;
            Ok(0)
        }
        Err(error) if error.errno() == wire::Error::Inval.errno() => {
            match send(&mut client, b"help", &[]) {
                Ok(help) => {
                    let begin = b"Command not supported. Valid commands are:\n";
                    fail_with(&[&begin[..], &help, b"\n"].concat(), 3)
                }
                Err(_) => fail_with(b"Error when executing command.\n", 3),
            }
        }
        Err(error) => {
            let errno = error.errno();
            print_to(io::stderr(), &format!("Error {errno} when trying to execute command.\n"))?;
            Err(CommandFailure {
                message: None,
                ..CommandFailure::with_message("").with_advice_on(&error)
            }
            .code(3))
        }
    }
}

/// Writes these bytes to stderr and returns the exit code.
fn fail_with(text: &[u8], code: u8) -> Result<u8, CommandFailure> {
    io::stderr().write_all(text)?;
    Ok(code)
}

/// Sends a command and returns the reply as a string, up to its first NUL.
fn send(client: &mut Client, command: &[u8], args: &[Vec<u8>]) -> Result<Vec<u8>, Error> {
    let mut parts: Vec<&[u8]> = vec![command, b"\0"];
    for arg in args {
        parts.extend([&arg[..], b"\0"]);
    }
    let mut reply = client.request(MsgType::Control, &parts)?;
    reply.truncate(reply.iter().position(|byte| *byte == 0).unwrap_or(reply.len()));
    Ok(reply)
}

/// The arguments of `live-update`.
struct LiveUpdate<'a> {
    binary: &'a [u8],
    cmdline: Option<&'a [u8]>,
    timeout: i32,
    force: bool,
}

fn live_update(client: &mut Client, args: &[Vec<u8>]) -> Result<u8, CommandFailure> {
    let (mut binary, mut cmdline, mut timeout, mut force) = (None, None, 60, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match &arg[..] {
            b"-c" => match args.next() {
                Some(arg) => cmdline = Some(&arg[..]),
                None => return fail_with(b"Missing command line value\n", 2),
            },
            b"-t" => match args.next() {
                Some(arg) => timeout = atoi(arg),
                None => return fail_with(b"Missing timeout value\n", 2),
            },
            b"-F" => force = true,
            other => binary = Some(other),
        }
    }
    let Some(binary) = binary else { return fail_with(b"Missing binary specification\n", 2) };
    if client.read("/tool/xenstored/domid").is_ok() {
        // The kernel image would have to be unpacked first, which libxenguest does.
        return fail_with(b"live-update of a xenstore domain is not supported by this tool\n", 1);
    }
    let update = LiveUpdate { binary, cmdline, timeout, force };
    let code = update.set(client)?;
    if code != 0 {
        return Ok(code);
    }
    let code = update.start(client)?;
    if code != 0 {
        // The update has failed. The only request left is that the daemon drops it.
        let _ = send(client, b"live-update", &[b"-a".to_vec()]);
    }
    Ok(code)
}

impl LiveUpdate<'_> {
    fn set(&self, client: &mut Client) -> Result<u8, CommandFailure> {
        let code = step(client, &[b"-f", self.binary], b"Setting update binary failed:\n")?;
        let Some(cmdline) = self.cmdline.filter(|_| code == 0) else { return Ok(code) };
        let code = step(client, &[b"-c", cmdline], b"Setting update binary failed:\n")?;
        if code != 0 {
            // As in `live_update`.
            let _ = send(client, b"live-update", &[b"-a".to_vec()]);
        }
        Ok(code)
    }

    fn start(&self, client: &mut Client) -> Result<u8, CommandFailure> {
        // Unsigned for the daemon, as Debian's prints it.
        let timeout = self.timeout.cast_unsigned();
        let begin = Instant::now();
        let mut args = vec![b"-s".to_vec(), b"-t".to_vec(), timeout.to_string().into_bytes()];
        if self.force {
            args.push(b"-F".to_vec());
        }
        let mut reply = Ok(b"BUSY".to_vec());
        while begin.elapsed() < Duration::from_secs(timeout.into()) {
            reply = send(client, b"live-update", &args);
            if !matches!(&reply, Ok(text) if text == b"BUSY") {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        outcome(reply, b"Starting live update failed:\n")
    }
}

fn step(client: &mut Client, args: &[&[u8]], failure: &[u8]) -> Result<u8, CommandFailure> {
    let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.to_vec()).collect();
    outcome(send(client, b"live-update", &args), failure)
}

fn outcome(reply: Result<Vec<u8>, Error>, failure: &[u8]) -> Result<u8, CommandFailure> {
    match reply {
        Ok(text) if text == b"OK" => Ok(0),
        Ok(text) => fail_with(&[failure, &text, b"\n"].concat(), 3),
        Err(error) => {
            let errno = describe(error.errno());
            fail_with(&[failure, errno.as_bytes(), b"\n"].concat(), 3)
        }
    }
}
