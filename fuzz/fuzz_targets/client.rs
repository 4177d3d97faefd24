//! Arbitrary bytes as a daemon's output, into the client machine.
//!
//! Two machines get the same requests and the same bytes, one in pieces and one at once; their
//! output must be the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xenstore_core::client::{Client, Event, ProtocolError, Reply, RequestId};
use xenstore_core::limits::PAYLOAD_MAX;
use xenstore_core::wire::{Header, MsgType, TYPES, split_message};

fuzz_target!(|data: &[u8]| {
    run(data);
});

/// The bytes that a daemon sends, and the boundaries between reads.
struct StreamScript {
    requests: Vec<RequestId>,
    stream: Vec<u8>,
    cuts: Vec<usize>,
}

fn run(mut data: &[u8]) {
    let (mut one, mut other) = (Client::new(), Client::new());
    let mut script = StreamScript { requests: Vec::new(), stream: Vec::new(), cuts: vec![0] };
    while step(&mut data, &mut one, &mut other, &mut script).is_some() {}
    script.stream.extend_from_slice(data);
    script.cuts.push(script.stream.len());
    let sent = check_output(&mut one);
    assert_eq!(sent, script.requests.len());
    assert_eq!(one.in_flight(), sent);

    let whole = one.receive(&script.stream);
    let pieces = script.cuts.windows(2).map(|cut| &script.stream[cut[0]..cut[1]]);
    let mut broken = Ok(());
    for piece in pieces {
        let told = other.receive(piece);
        assert!(broken.is_ok() || told == broken, "an error is final");
        broken = told;
    }
    assert_eq!(whole, broken);
    if let Err(error) = &whole {
        assert!(!error.to_string().is_empty());
        assert_eq!(one.receive(b""), whole);
    }
    assert_eq!(one.in_flight(), other.in_flight());
    compare(one, other, &script, &whole);
}

/// Performs one step: one request, one reply or some bytes. Returns `None` where the rest of the
/// data is to be sent unchanged.
fn step(
    data: &mut &[u8],
    one: &mut Client,
    other: &mut Client,
    script: &mut StreamScript,
) -> Option<()> {
    let (choice, rest) = data.split_first()?;
    *data = rest;
    match choice % 8 {
        0 | 1 => {
            let (kind, _) = TYPES[usize::from(choice / 8) % TYPES.len()];
            let parts: [&[u8]; 2] = [b"/a\0", if choice & 128 == 0 { b"v" } else { b"" }];
            let id = one.send(kind, u32::from(*choice), &parts).expect("it is short");
            assert_eq!(other.send(kind, u32::from(*choice), &parts), Ok(id));
            script.requests.push(id);
        }
        2 => {
            let long = [0; PAYLOAD_MAX];
            let id = one.send(MsgType::Write, 0, &[&long]).expect("it just fits");
            assert_eq!(other.send(MsgType::Write, 0, &[&long]), Ok(id));
            assert!(one.send(MsgType::Write, 0, &[&long, b"x"]).is_err());
            script.requests.push(id);
        }
        3 => {
            let id = *script.requests.get(usize::from(choice / 8))?;
            one.forget(id);
            other.forget(id);
        }
        4 | 5 => {
            let (at, rest) = data.split_first()?;
            let (kind, rest) = rest.split_first()?;
            let (len, rest) = rest.split_first()?;
            let (payload, rest) = rest.split_at_checked(usize::from(*len))?;
            *data = rest;
            let req_id = match script.requests.get(usize::from(*at)) {
                Some(id) if kind % 4 != 3 => id.get(),
                _ => 0,
            };
            let kind = match kind % 4 {
                0 => MsgType::Error,
                3 => MsgType::WatchEvent,
                _ => TYPES[usize::from(choice / 8) % TYPES.len()].0,
            };
            let header = Header { kind: kind.code(), req_id, tx_id: 0, len: u32::from(*len) };
            script.stream.extend_from_slice(&header.to_bytes());
            script.stream.extend_from_slice(payload);
        }
        6 => script.cuts.push(script.stream.len()),
        _ => {
            let (len, rest) = data.split_first()?;
            let (raw, rest) = rest.split_at_checked(usize::from(*len))?;
            *data = rest;
            // A read may end anywhere.
            script.stream.extend_from_slice(&raw[..raw.len() / 2]);
            script.cuts.push(script.stream.len());
            script.stream.extend_from_slice(&raw[raw.len() / 2..]);
        }
    }
    Some(())
}

/// Takes the output piece by piece; returns the number of messages in it.
fn check_output(client: &mut Client) -> usize {
    let mut count = 0;
    while !client.output().is_empty() {
        let first = client.output_message().to_vec();
        let (header, payload, rest) =
            split_message(&first).expect("not too long").expect("one whole message");
        assert!(rest.is_empty() && header.len as usize == payload.len() && header.req_id != 0);
        client.consume_output(first.len());
        count += 1;
    }
    count
}

fn compare(
    mut one: Client,
    mut other: Client,
    script: &StreamScript,
    whole: &Result<(), ProtocolError>,
) {
    let mut answered = 0;
    for id in &script.requests {
        assert_eq!(one.has_reply(*id), other.has_reply(*id));
        let reply: Option<Reply> = one.take_reply(*id);
        assert_eq!(reply, other.take_reply(*id));
        if let Some(Reply::Done(payload)) = &reply {
            assert!(payload.len() <= PAYLOAD_MAX);
        }
        answered += usize::from(reply.is_some());
        assert_eq!(one.take_reply(*id), None);
    }
    assert!(answered + one.in_flight() <= script.requests.len());
    assert_eq!((one.poll_reply(), other.poll_reply()), (None, None));
    assert_eq!(one.events_waiting(), other.events_waiting());
    while let Some(event) = one.poll_event() {
        let Event { path, token } = &event;
        assert!(!path.contains(&0) && !token.contains(&0));
        assert_eq!(other.poll_event(), Some(event));
    }
    assert_eq!(other.poll_event(), None);
    // A connection that is not broken takes further replies.
    if whole.is_ok() && script.stream.is_empty() {
        assert_eq!(one.receive(b""), Ok(()));
    }
}
