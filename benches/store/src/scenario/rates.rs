//! One client: one request in flight, and 32.

use super::context::{Context, NODE, prepare};
use crate::Result;
use crate::client::{reads, writes};
use crate::daemon::MeasuredDaemon;

/// Measures reads and writes of one node of 32 bytes.
pub(super) fn run(context: &mut Context<'_>, kind: MeasuredDaemon) -> Result<()> {
    let daemon = context.start(kind)?;
    let mut conn = prepare(&daemon)?;
    let (read, write) = (reads(NODE), writes(NODE));
    context.one_at_a_time(&daemon, &mut conn, "read1", &read)?;
    context.one_at_a_time(&daemon, &mut conn, "write1", &write)?;
    context.pipelined(&daemon, &mut conn, "read32", &read)?;
    context.pipelined(&daemon, &mut conn, "write32", &write)
}
