//! One write that matches a thousand watches of a thousand connections, beside a thousand bare
//! sends.

use super::context::Context;
use crate::Result;
use crate::client::{Conn, PATIENCE, request, write};
use crate::daemon::MeasuredDaemon;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use xenstore_core::wire::MsgType;

/// The node that all connections watch.
const WATCHED: &str = "/bench/fanout";

/// Writes one at a time; each write is complete when its reply and all events have arrived.
pub(super) fn run(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let watchers = context.size(1000, 50);
    let writes = context.size(100, 5);
    let daemon = context.start(kind)?;
    let mut writer = Conn::open(&daemon.socket)?;
    writer.call(&write(WATCHED, b"0"))?;
    let mut conns = Vec::with_capacity(watchers);
    let watch = request(MsgType::Watch, &[WATCHED.as_bytes(), b"\0token\0"]);
    for _ in 0..watchers {
        let mut conn = Conn::open(&daemon.socket)?;
        conn.call(&watch)?;
        conns.push(conn);
    }
    take_events(&mut conns)?;

    let mut times = Vec::with_capacity(writes);
    let cpu = daemon.cpu_time()?;
    for number in 0..writes {
        let one = write(WATCHED, number.to_string().as_bytes());
        let start = Instant::now();
        writer.call(&one)?;
        let replied = start.elapsed();
        // The reply may come before the events: then the time runs until the last event has come.
        times.push(if all_readable(&conns)? { replied } else { wait_for_all(&conns, start)? });
        take_events(&mut conns)?;
    }
    let cpu = (daemon.cpu_time()? - cpu).as_secs_f64() / writes as f64;
    context.record("fanout.cpu", cpu);
    context.record("fanout.wall", median(&mut times));
    let event_bytes = 16 + WATCHED.len() + 1 + "token\0".len();
    context.record("fanout.bare", bare_sends(watchers, writes, event_bytes)?);
    Ok(())
}

/// Takes one watch event off each connection.
fn take_events(conns: &mut [Conn]) -> Result<()> {
    for conn in conns {
        let (header, _) = conn.message()?;
        if header.kind != MsgType::WatchEvent.code() {
            return Err(format!("a message of type {} in place of an event", header.kind).into());
        }
    }
    Ok(())
}

/// True if every connection has something to read now.
fn all_readable(conns: &[Conn]) -> Result<bool> {
    let mut fds: Vec<_> =
        conns.iter().map(|conn| PollFd::new(&conn.socket, PollFlags::IN)).collect();
    Ok(poll(&mut fds, Some(&Timespec::default()))? == conns.len())
}

/// Waits until every connection has something to read; returns the time since `start`.
fn wait_for_all(conns: &[Conn], start: Instant) -> Result<Duration> {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    for conn in conns {
        if poll(&mut [PollFd::new(&conn.socket, PollFlags::IN)], Some(&patience))? == 0 {
            return Err(format!("a watch event has not come within {PATIENCE:?}").into());
        }
    }
    Ok(start.elapsed())
}

/// Measures the limit: this process sends as many bytes to as many sockets, without a receiver.
fn bare_sends(sockets: usize, rounds: usize, bytes: usize) -> Result<f64> {
    let pairs = (0..sockets).map(|_| UnixStream::pair()).collect::<std::io::Result<Vec<_>>>()?;
    let event = vec![0; bytes];
    let mut buffer = vec![0; bytes];
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        for (near, _) in &pairs {
            send(near, &event, SendFlags::NOSIGNAL)?;
        }
        times.push(start.elapsed());
        for (_, far) in &pairs {
            recv(far, &mut buffer[..], RecvFlags::empty())?;
        }
    }
    Ok(median(&mut times))
}

/// Returns the median in seconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
