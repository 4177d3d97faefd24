//! Large stores: filling them, their memory, reading, listing and removing.
//!
//! The tree is `/bench/gGG/dDD/nNN`: 100 nodes a directory, each with a value of 32 bytes. Every
//! listing fits into one message, because oxenstored supports no longer one.

use super::context::{Context, NODE, prepare};
use crate::Result;
use crate::client::{Conn, VALUE, read, reads, request, write, writes};
use crate::daemon::{Daemon, MeasuredDaemon};
use crate::machine::beside;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xenstore_core::wire::MsgType;

/// Nodes with a value in one directory.
const PER_DIRECTORY: usize = 100;
/// Requests in flight while filling.
const FILL_DEPTH: usize = 64;
/// The number of nodes, of 100,000, in the first and in the last part of a filling.
const PART: usize = 50_000;

/// Returns the path of node number `index`.
fn path(index: usize) -> String {
    let (directory, node) = (index / PER_DIRECTORY, index % PER_DIRECTORY);
    format!("/bench/g{:02}/d{:02}/n{node:02}", directory / PER_DIRECTORY, directory % PER_DIRECTORY)
}

/// Writes nodes `from..to`; returns the time that it took.
fn fill(conn: &mut Conn, from: usize, to: usize) -> Result<f64> {
    let start = Instant::now();
    conn.stream(FILL_DEPTH, &mut (from..to).map(|index| write(&path(index), VALUE)))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Fills `nodes`; records `NAME.first`, `.last` (s for the first and the last part), `.rate`
/// (op/s) and `.memory` (bytes a node, directories counted as nodes).
fn fill_and_weigh(
    context: &mut Context<'_>,
    daemon: &Daemon,
    conn: &mut Conn,
    name: &str,
    nodes: usize,
) -> Result<()> {
    let part = PART.min(nodes / 2);
    let before = daemon.memory("VmRSS")?;
    let first = fill(conn, 0, part)?;
    let middle = fill(conn, part, nodes - part)?;
    let last = fill(conn, nodes - part, nodes)?;
    let grown = settled_memory(daemon)? - before;
    context.record(&format!("{name}.first"), first);
    context.record(&format!("{name}.last"), last);
    context.record(&format!("{name}.rate"), nodes as f64 / (first + middle + last));
    let directories = nodes.div_ceil(PER_DIRECTORY);
    let all = (nodes + directories + directories.div_ceil(PER_DIRECTORY)) as f64;
    context.record(&format!("{name}.memory"), grown / all);
    Ok(())
}

/// Returns the resident memory once two successive readings are equal.
fn settled_memory(daemon: &Daemon) -> Result<f64> {
    let mut last = daemon.memory("VmRSS")?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        let now = daemon.memory("VmRSS")?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// Runs with 100,000 nodes, on every daemon.
pub(super) fn hundred(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let nodes = context.size(100_000, 2_000);
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    context.pipelined(&daemon, &mut conn, "empty.read", &reads(NODE))?;
    context.pipelined(&daemon, &mut conn, "empty.write", &writes(NODE))?;
    fill_and_weigh(context, &daemon, &mut conn, "fill100k", nodes)?;
    let middle = path(nodes / 2);
    context.pipelined(&daemon, &mut conn, "full100k.read", &reads(&middle))?;
    context.pipelined(&daemon, &mut conn, "full100k.write", &writes(&middle))?;
    list(context, &daemon, kind)
}

/// Runs with 1,000,000 nodes, on ours alone.
pub(super) fn million(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let nodes = context.size(1_000_000, 10_000);
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    fill_and_weigh(context, &daemon, &mut conn, "fill1m", nodes)?;
    let middle = path(nodes / 2);
    context.pipelined(&daemon, &mut conn, "full1m.read", &reads(&middle))?;
    context.pipelined(&daemon, &mut conn, "full1m.write", &writes(&middle))
}

/// Runs `xenstore ls` with our tool, and with Debian's on C. A listing keeps many requests in
/// flight, so tool and daemon each have a processor, as on any host.
fn list(context: &mut Context<'_>, daemon: &Daemon, kind: MeasuredDaemon) -> Result<()> {
    let ours = context.places.release.join("xenstore");
    if ours.exists() {
        let mut command = Command::new(ours);
        command.arg("ls").arg("/bench");
        let time = beside(context.cpu, &context.allowed, || run_listing(&mut command, daemon))??;
        context.record("ls.ours", time);
    }
    let debian = context.places.debian("usr/bin/xenstore-ls");
    if kind == MeasuredDaemon::C && debian.exists() {
        let mut command = Command::new(debian);
        command.arg("/bench").env("LD_LIBRARY_PATH", context.places.debian_libs());
        let time = beside(context.cpu, &context.allowed, || run_listing(&mut command, daemon))??;
        context.record("ls.debian", time);
    }
    Ok(())
}

fn run_listing(command: &mut Command, daemon: &Daemon) -> Result<f64> {
    command.env("XENSTORED_PATH", &daemon.socket).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let time = start.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("{command:?}: {status}").into());
    }
    Ok(time)
}

/// Removes a directory of 10,000 while another client reads, one request at a time.
pub(super) fn rm(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let children = context.size(10_000, 500);
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    let path = |index| format!("/bench/large/n{index:05}");
    conn.stream(FILL_DEPTH, &mut (0..children).map(|index| write(&path(index), VALUE)))?;
    let before = settled_memory(&daemon)?;
    daemon.reset_peak()?;

    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut reader = Conn::open(&daemon.socket)?;
    let (took, longest) = std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_until(&mut reader, &started, &stop));
        while !started.load(Ordering::Acquire) && !reads.is_finished() {
            std::thread::yield_now();
        }
        let start = Instant::now();
        let result = conn.call(&request(MsgType::Rm, &[b"/bench/large\0"]));
        let took = start.elapsed();
        stop.store(true, Ordering::Release);
        let longest = reads.join().map_err(|_| "the reading thread panicked")?;
        result.and(longest).map(|longest| (took, longest))
    })?;
    context.record("rm.time", took.as_secs_f64());
    context.record("rm.wait", longest.as_secs_f64());
    context.record("rm.peak", (daemon.memory("VmHWM")? - before).max(0.0));
    Ok(())
}

/// Reads one at a time until `stop` is set; returns the longest wait.
fn read_until(reader: &mut Conn, started: &AtomicBool, stop: &AtomicBool) -> Result<Duration> {
    let one = read(NODE);
    let mut longest = Duration::ZERO;
    for number in 0_u32.. {
        let start = Instant::now();
        reader.call(&one)?;
        longest = longest.max(start.elapsed());
        started.fetch_or(number > 100, Ordering::AcqRel);
        if stop.load(Ordering::Acquire) {
            break;
        }
    }
    Ok(longest)
}
