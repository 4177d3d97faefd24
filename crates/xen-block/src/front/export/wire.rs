//! The protocol's bytes: a pure function from a client's input to the output for it.

use super::{DiskAccess, Info, Offer};
use rustix::io::Errno;
use std::ops::Range;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// Fixed newstyle, without the zeroes that end an old negotiation.
const SERVER_FLAGS: u16 = 3;
const NO_ZEROES: u32 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
/// The most bytes of an option: a name has at most 4096.
const OPTION_MAX: usize = 8192;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// The state of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ClientPhase {
    /// The greeting was sent; the client's flags come next.
    Greeted,
    /// Options come next; with the client's choice about the zeroes that end an old negotiation.
    Options(ZeroPadding),
    /// Requests come next.
    Requests,
}

/// The choice about 124 zeroes after the answer to `NBD_OPT_EXPORT_NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ZeroPadding {
    Wanted,
    NotWanted,
}

/// The command of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NbdCommand {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Unknown,
}

/// A client's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) command: NbdCommand,
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// The result of one step of parsing.
#[derive(Debug)]
pub(super) struct ParsedStep {
    /// The bytes of the input that were used.
    pub(super) used: usize,
    pub(super) phase: ClientPhase,
    /// The request, and the range of its data in the input.
    pub(super) request: Option<(Request, Range<usize>)>,
}

/// An error: the client violates the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ProtocolError;

/// Returns the most bytes of a read or write.
pub(super) fn transfer_max(info: &Info) -> usize {
    usize::from(info.segments_max) * 4096
}

/// Returns the most bytes of a request with its data.
pub(super) fn request_max(info: &Info) -> usize {
    (28 + transfer_max(info)).max(16 + OPTION_MAX)
}

pub(super) fn greeting() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(SERVER_FLAGS.to_be_bytes());
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Does the next step; `None` if the input for it is incomplete.
pub(super) fn step(
    phase: ClientPhase,
    input: &[u8],
    info: &Info,
    output: &mut Vec<u8>,
) -> Result<Option<ParsedStep>, ProtocolError> {
    match phase {
        ClientPhase::Greeted => {
            let Some(flags) = u32_at(input, 0) else { return Ok(None) };
            if flags & !u32::from(SERVER_FLAGS) != 0 {
                return Err(ProtocolError);
            }
            let zeroes =
                if flags & NO_ZEROES == 0 { ZeroPadding::Wanted } else { ZeroPadding::NotWanted };
            Ok(Some(ParsedStep { used: 4, phase: ClientPhase::Options(zeroes), request: None }))
        }
        ClientPhase::Options(zeroes) => option(zeroes, input, info, output),
        ClientPhase::Requests => request(input, info),
    }
}

fn option(
    zeroes: ZeroPadding,
    input: &[u8],
    info: &Info,
    output: &mut Vec<u8>,
) -> Result<Option<ParsedStep>, ProtocolError> {
    if u64_at(input, 0).is_some_and(|magic| magic != OPTION_MAGIC) {
        return Err(ProtocolError);
    }
    let (Some(option), Some(len)) = (u32_at(input, 8), u32_at(input, 12)) else { return Ok(None) };
    if len as usize > OPTION_MAX {
        return Err(ProtocolError);
    }
    let used = 16 + len as usize;
    if input.len() < used {
        return Ok(None);
    }
    let mut phase = ClientPhase::Options(zeroes);
    match option {
        OPT_ABORT => {
            answer(output, option, REP_ACK, &[]);
            return Err(ProtocolError);
        }
        OPT_LIST => {
            answer(output, option, REP_SERVER, &0_u32.to_be_bytes());
            answer(output, option, REP_ACK, &[]);
        }
        OPT_EXPORT_NAME => {
            output.extend(info.bytes().to_be_bytes());
            output.extend(flags(info).to_be_bytes());
            if zeroes == ZeroPadding::Wanted {
                output.extend([0; 124]);
            }
            phase = ClientPhase::Requests;
        }
        OPT_GO | OPT_INFO => {
            let mut export = INFO_EXPORT.to_be_bytes().to_vec();
            export.extend(info.bytes().to_be_bytes());
            export.extend(flags(info).to_be_bytes());
            answer(output, option, REP_INFO, &export);
            let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [info.sector_size, 4096, transfer_max(info) as u32] {
                sizes.extend(size.to_be_bytes());
            }
            answer(output, option, REP_INFO, &sizes);
            answer(output, option, REP_ACK, &[]);
            if option == OPT_GO {
                phase = ClientPhase::Requests;
            }
        }
        _ => answer(output, option, REP_ERR_UNSUP, &[]),
    }
    Ok(Some(ParsedStep { used, phase, request: None }))
}

fn answer(output: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    output.extend(REPLY_MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(kind.to_be_bytes());
    output.extend((payload.len() as u32).to_be_bytes());
    output.extend(payload);
}

/// Returns the capabilities of the device as flags of the export.
fn flags(info: &Info) -> u16 {
    let mut flags = 1;
    for (bit, set) in [
        (1, info.access == DiskAccess::ReadOnly),
        (2, info.flush == Offer::Taken),
        (5, info.discard == Offer::Taken),
        // All clients' requests go through one device, so a flush covers all of them.
        (8, true),
    ] {
        if set {
            flags |= 1 << bit;
        }
    }
    flags
}

fn request(input: &[u8], info: &Info) -> Result<Option<ParsedStep>, ProtocolError> {
    if u32_at(input, 0).is_some_and(|magic| magic != REQUEST) {
        return Err(ProtocolError);
    }
    let fields = (u16_at(input, 6), u64_at(input, 8), u64_at(input, 16), u32_at(input, 24));
    let (Some(command), Some(handle), Some(offset), Some(len)) = fields else { return Ok(None) };
    let command = match command {
        0 => NbdCommand::Read,
        1 => NbdCommand::Write,
        2 => NbdCommand::Disconnect,
        3 => NbdCommand::Flush,
        4 => NbdCommand::Trim,
        _ => NbdCommand::Unknown,
    };
    let data = if command == NbdCommand::Write { len as usize } else { 0 };
    // Data that does not fit cannot be skipped either.
    if data > transfer_max(info) {
        return Err(ProtocolError);
    }
    let used = 28 + data;
    if input.len() < used {
        return Ok(None);
    }
    let request = Request { command, handle, offset, len };
    Ok(Some(ParsedStep { used, phase: ClientPhase::Requests, request: Some((request, 28..used)) }))
}

/// Appends the answer to a request.
pub(super) fn reply(output: &mut Vec<u8>, handle: u64, errno: Option<Errno>, payload: &[u8]) {
    output.extend(SIMPLE_REPLY.to_be_bytes());
    output.extend(errno.map_or(0, Errno::raw_os_error).to_be_bytes());
    output.extend(handle.to_be_bytes());
    output.extend(payload);
}
