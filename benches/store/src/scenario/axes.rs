//! The axes: connections that are idle, connections that work, watches that do not match.

use super::context::{Context, NODE, prepare};
use crate::Result;
use crate::client::{VALUE, reads, request, write, writes};
use crate::daemon::MeasuredDaemon;
use crate::swarm::{MixedScript, Swarm};
use std::time::Instant;
use xenstore_core::wire::MsgType;

/// True if a daemon is measured at this size; beyond `peers_max` only ours and the limit are.
fn is_measured(kind: MeasuredDaemon, size: usize, peers_max: usize) -> bool {
    matches!(kind, MeasuredDaemon::Ours | MeasuredDaemon::Echo) || size <= peers_max
}

/// Measures reads, 32 in flight, while other connections are idle.
pub(super) fn idle(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    let mut others = Vec::new();
    for count in [0, 100, 1000, 5000] {
        let room = context.descriptors.saturating_sub(100) as usize;
        if !is_measured(kind, count, 1000) || count > room || (context.quick && count > 100) {
            break;
        }
        while others.len() < count {
            others.push(prepare(&daemon)?);
        }
        context.pipelined(&daemon, &mut conn, &format!("idle{count}"), &reads(NODE))?;
    }
    Ok(())
}

/// Runs as many clients as the axis has, each with one request in flight, 80 % reads.
pub(super) fn active(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    for count in [1, 16, 100, 1000, 5000] {
        let room = context.descriptors.saturating_sub(100) as usize;
        if !is_measured(kind, count, 1000) || count > room || (context.quick && count > 100) {
            break;
        }
        let paths: Vec<_> = (0..count).map(|client| format!("/bench/client/{client}")).collect();
        for path in &paths {
            conn.call(&write(path, VALUE))?;
        }
        let mut swarm = Swarm::connect(&daemon.socket, count)?;
        let (cpu, start) = (daemon.cpu_time()?, Instant::now());
        let end = start + context.span();
        let mut scripts: Vec<_> = paths.iter().map(|path| MixedScript::new(path, end)).collect();
        swarm.run(&mut scripts)?;
        let time = start.elapsed().as_secs_f64();
        let cpu = (daemon.cpu_time()? - cpu).as_secs_f64();
        let done = scripts.iter().map(|script| script.done).sum::<u64>() as f64;
        context.record(&format!("active{count}.rate"), done / time);
        context.record(&format!("active{count}.cpu"), cpu / done);
    }
    Ok(())
}

/// Measures writes, 32 in flight, while ten other connections watch paths that no client writes.
pub(super) fn watches(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    let mut watchers = Vec::new();
    for _ in 0..10 {
        watchers.push(prepare(&daemon)?);
    }
    let mut registered = 0;
    for count in [0, 10_000, 100_000] {
        if !is_measured(kind, count, 10_000) || (context.quick && count > 10_000) {
            break;
        }
        let each = count / watchers.len();
        for (number, watcher) in watchers.iter_mut().enumerate() {
            let mut all = (registered..each).map(|watch| {
                let path = format!("/bench/watched/{number}/{watch}\0token\0");
                request(MsgType::Watch, &[path.as_bytes()])
            });
            watcher.stream(64, &mut all)?;
        }
        registered = each;
        context.pipelined(&daemon, &mut conn, &format!("watch{count}"), &writes(NODE))?;
    }
    Ok(())
}
