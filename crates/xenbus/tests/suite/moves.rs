//! The tables of legal moves: every cell, and both ends playing against each other from every pair of
//! states, in every order.

use std::collections::{BTreeMap, BTreeSet};
use xenbus::state::{DeviceUse, EndAction, PeerState, react};
use xenbus::{Side, State};

const STANDINGS: [DeviceUse; 2] = [DeviceUse::Wanted, DeviceUse::Leaving];
const SIDES: [Side; 2] = [Side::Frontend, Side::Backend];

/// The state that an action leads to; `None` where the device is forgotten.
fn after(side: Side, own: State, action: EndAction) -> Option<State> {
    Some(match (action, side) {
        (EndAction::Stay | EndAction::Refresh, _) => own,
        (EndAction::Open, Side::Frontend) => State::Initialised,
        (EndAction::Open | EndAction::Restart, Side::Backend) => State::InitWait,
        (EndAction::Restart, Side::Frontend) => State::Initialising,
        (EndAction::Connect, _) => State::Connected,
        (EndAction::Reconfigure(next), _) => next,
        (EndAction::Close, _) => State::Closing,
        (EndAction::Release, _) => State::Closed,
        (EndAction::Remove, _) => return None,
    })
}

type StatePair = (State, State);

/// Returns the pairs that one step of either end leads to, each seeing the other's current state.
fn moves((front, back): StatePair, standing: DeviceUse) -> Vec<StatePair> {
    let mut found = Vec::new();
    let step = |side, own, peer| {
        let action = react(side, own, PeerState::Is(peer), standing).ok()?;
        after(side, own, action).filter(|next| *next != own)
    };
    found.extend(step(Side::Frontend, front, back).map(|next| (next, back)));
    found.extend(step(Side::Backend, back, front).map(|next| (front, next)));
    found
}

/// All pairs that can be reached, and those of them where nothing moves any more.
fn explore(start: StatePair, standing: DeviceUse) -> (BTreeSet<StatePair>, BTreeSet<StatePair>) {
    let (mut seen, mut still, mut open) = (BTreeSet::new(), BTreeSet::new(), vec![start]);
    while let Some(pair) = open.pop() {
        if !seen.insert(pair) {
            continue;
        }
        let next = moves(pair, standing);
        if next.is_empty() {
            still.insert(pair);
        }
        open.extend(next);
    }
    (seen, still)
}

/// True if a pair can be reached from itself: then two ends might go round for ever.
fn circles(start: StatePair, standing: DeviceUse) -> bool {
    moves(start, standing).into_iter().any(|next| explore(next, standing).0.contains(&start))
}

/// Every cell, written out here once more: a change of a table is to be meant. One row for each own state 0 to 8,
/// one column for each state of the peer, the letters as `state.rs` explains them.
const EXPECTED: [(Side, DeviceUse, [&str; 9]); 4] = [
    (
        Side::Backend,
        DeviceUse::Wanted,
        [
            ".........",
            "OOOOOOOOO",
            "D..NNCDXX",
            "D..NNCDXX",
            "DAX..CD..",
            "DA.A..D..",
            ".AAAA....",
            "DAX..CDHH",
            "DAX.BCD..",
        ],
    ),
    (
        Side::Backend,
        DeviceUse::Leaving,
        [
            "RRRRRRRRR",
            "DDDCCCDCC",
            "DDDCCCDCC",
            "DDDCCCDCC",
            "DDCCCCDCC",
            "DD....D..",
            "RRRRRRRRR",
            "DDCCCCDCC",
            "DDCCCCDCC",
        ],
    ),
    (
        Side::Frontend,
        DeviceUse::Wanted,
        [
            ".........",
            "X.OOC..CC",
            "X.OOCDDCC",
            "X...NDDNN",
            "X.A.FCDG.",
            "X.D..DD..",
            "X.AA..A..",
            "X.AABCD.B",
            "X.AABCDGB",
        ],
    ),
    (
        Side::Frontend,
        DeviceUse::Leaving,
        [
            "RRRRRRRRR",
            "DDDDDDDDD",
            "DDDDDDDDD",
            "DDCCCDDCC",
            "DDCCCCDCC",
            "DDDD.DD..",
            "RRRRRRRRR",
            "DDCCCCDCC",
            "DDCCCCDCC",
        ],
    ),
];

#[test]
fn every_cell_is_as_expected() {
    for (side, standing, rows) in EXPECTED {
        for (own, row) in State::ALL.into_iter().zip(rows) {
            assert_eq!(row.len(), State::ALL.len());
            for (peer, letter) in State::ALL.into_iter().zip(row.chars()) {
                let wanted = match letter {
                    '.' => Some(EndAction::Stay),
                    'O' => Some(EndAction::Open),
                    'N' => Some(EndAction::Connect),
                    'F' => Some(EndAction::Refresh),
                    'G' => Some(EndAction::Reconfigure(State::Reconfiguring)),
                    'H' => Some(EndAction::Reconfigure(State::Reconfigured)),
                    'B' => Some(EndAction::Reconfigure(State::Connected)),
                    'C' => Some(EndAction::Close),
                    'D' => Some(EndAction::Release),
                    'A' => Some(EndAction::Restart),
                    'R' => Some(EndAction::Remove),
                    _ => None,
                };
                let got = react(side, own, PeerState::Is(peer), standing).ok();
                assert_eq!(got, wanted, "{side} {own} against {peer}, {standing:?}");
            }
        }
    }
}

#[test]
fn every_cell_leads_somewhere_or_is_illegal() {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for side in SIDES {
        for standing in STANDINGS {
            for own in State::ALL {
                for peer in State::ALL.map(PeerState::Is).into_iter().chain([PeerState::Gone]) {
                    let result = react(side, own, peer, standing);
                    let what = format!("{side} {own} against {peer:?}, {standing:?}: {result:?}");
                    match result {
                        Err(illegal) => {
                            assert_eq!((illegal.side, illegal.own), (side, own), "{what}");
                            assert_eq!(standing, DeviceUse::Wanted, "one may always leave: {what}");
                            assert!(illegal.to_string().contains("no legal move"));
                        }
                        Ok(EndAction::Open) => assert!(own <= State::InitWait, "{what}"),
                        Ok(EndAction::Connect) => {
                            assert!(matches!(own, State::InitWait | State::Initialised), "{what}");
                        }
                        Ok(EndAction::Refresh) => {
                            assert_eq!(
                                (side, peer),
                                (Side::Frontend, PeerState::Is(State::Connected))
                            );
                        }
                        Ok(EndAction::Release) => assert_ne!(own, State::Closed, "{what}"),
                        Ok(EndAction::Restart) => assert!(own >= State::Connected, "{what}"),
                        Ok(EndAction::Remove) => assert_eq!(standing, DeviceUse::Leaving, "{what}"),
                        Ok(EndAction::Close) => assert!(own != State::Closing, "{what}"),
                        Ok(EndAction::Stay | EndAction::Reconfigure(_)) => {}
                    }
                    let name = format!("{result:?}");
                    let name = name.split(['(', ' ']).nth(1).unwrap_or_default().to_owned();
                    *counts.entry(name).or_default() += 1;
                }
            }
        }
    }
    assert_eq!(counts.values().sum::<u32>(), 2 * 2 * 9 * 10);
}

#[test]
fn a_new_device_connects_whoever_is_first() {
    let start = (State::Initialising, State::Initialising);
    let (_, still) = explore(start, DeviceUse::Wanted);
    assert_eq!(still, BTreeSet::from([(State::Connected, State::Connected)]));
}

/// From any two states that two ends may be found in, after crashes and restarts on either side.
#[test]
fn all_ways_lead_to_connected() {
    for front in &State::ALL[1..] {
        for back in &State::ALL[1..] {
            let (seen, still) = explore((*front, *back), DeviceUse::Wanted);
            let connected = BTreeSet::from([(State::Connected, State::Connected)]);
            assert_eq!(still, connected, "from frontend {front}, backend {back}");
            let circle = seen.iter().find(|pair| circles(**pair, DeviceUse::Wanted));
            assert_eq!(circle, None, "from frontend {front}, backend {back}");
        }
    }
}

/// The toolstack writes Reconfiguring as the backend's state; both ends go on in one order, that of Linux's pcifront
/// and pciback.
#[test]
fn a_device_is_reconfigured() {
    use State::{Connected, Reconfigured, Reconfiguring};
    let mut pair = (Connected, Reconfiguring);
    let mut seen = vec![pair];
    while let [next] = moves(pair, DeviceUse::Wanted)[..] {
        pair = next;
        seen.push(pair);
    }
    let order = [
        (Connected, Reconfiguring),
        (Reconfiguring, Reconfiguring),
        (Reconfiguring, Reconfigured),
        (Connected, Reconfigured),
        (Connected, Connected),
    ];
    assert_eq!(seen, order);
}

#[test]
fn leaving_ends_with_both_closed() {
    for front in &State::ALL[1..] {
        for back in &State::ALL[1..] {
            let (seen, still) = explore((*front, *back), DeviceUse::Leaving);
            let closed = BTreeSet::from([(State::Closed, State::Closed)]);
            assert_eq!(still, closed, "from frontend {front}, backend {back}");
            let circle = seen.iter().find(|pair| circles(**pair, DeviceUse::Leaving));
            assert_eq!(circle, None);
        }
    }
}

#[test]
fn a_peer_that_is_gone_is_let_go() {
    for side in SIDES {
        for own in State::ALL {
            for standing in STANDINGS {
                let action = react(side, own, PeerState::Gone, standing).unwrap();
                let idle = matches!(own, State::Unknown | State::Closed);
                let wanted = match (idle, standing) {
                    (false, _) => EndAction::Release,
                    (true, DeviceUse::Wanted) => EndAction::Stay,
                    (true, DeviceUse::Leaving) => EndAction::Remove,
                };
                assert_eq!(action, wanted, "{side} {own} {standing:?}");
            }
        }
    }
}

/// Checks the promises of the comments on the tables, one by one.
#[test]
fn the_odd_cases() {
    use State::{
        Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured,
        Reconfiguring, Unknown,
    };
    let (front, back) = (Side::Frontend, Side::Backend);
    for (what, side, own, peer, action) in [
        ("skips InitWait", back, Initialising, Initialised, EndAction::Open),
        ("and is connected", back, InitWait, Initialised, EndAction::Connect),
        ("was Connected all the time", back, InitWait, Connected, EndAction::Connect),
        ("died and came back", back, Connected, Initialising, EndAction::Restart),
        ("is seen twice", back, Connected, Initialised, EndAction::Stay),
        ("reconnects after Closed", back, Closed, Initialising, EndAction::Restart),
        ("is quicker than the watch", back, Closed, Initialised, EndAction::Restart),
        ("is found in use", front, Initialising, Connected, EndAction::Close),
        ("offers twice (state 2 race)", front, Initialised, InitWait, EndAction::Stay),
        ("began anew", front, Connected, InitWait, EndAction::Restart),
        ("has a new size", front, Connected, Connected, EndAction::Refresh),
        ("closes", front, Connected, Closing, EndAction::Close),
        ("is Closed at once", front, Connected, Closed, EndAction::Release),
        ("reconfigures", front, Connected, Reconfiguring, EndAction::Reconfigure(Reconfiguring)),
        ("has done so", front, Reconfiguring, Reconfigured, EndAction::Reconfigure(Connected)),
        ("has not looked yet", back, Reconfiguring, Connected, EndAction::Stay),
        ("follows", back, Reconfiguring, Reconfiguring, EndAction::Reconfigure(Reconfigured)),
        ("goes on", back, Reconfigured, Connected, EndAction::Reconfigure(Connected)),
        ("is found reconfiguring", front, Initialising, Reconfiguring, EndAction::Close),
        ("was not waited for", front, Initialised, Reconfiguring, EndAction::Connect),
        ("waits for its peer", back, Closing, Connected, EndAction::Stay),
        ("begins anew in the middle", back, Closing, Initialised, EndAction::Restart),
        ("was Connected before that was seen", back, Closed, Connected, EndAction::Restart),
        ("closes before it has connected", back, InitWait, Closed, EndAction::Release),
        ("says nothing that makes sense", back, Connected, Unknown, EndAction::Release),
        ("has nothing to close", back, Closed, Unknown, EndAction::Stay),
    ] {
        let got = react(side, own, PeerState::Is(peer), DeviceUse::Wanted);
        assert_eq!(got, Ok(action), "a peer that {what}");
    }
}

/// docs/device-model.md tells how a backend answers where others answer differently.
#[test]
fn what_the_docs_tell_of_our_answers_is_so() {
    let text = include_str!("../../../../docs/device-model.md");
    let (_, table) = text.split_once("<!-- states -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end of states -->").unwrap();
    let number = |cell: &str| -> State {
        let digit = cell.split_once('(').unwrap().1.as_bytes()[0];
        State::parse(&[digit])
    };
    let mut rows = 0;
    for row in table.lines().skip(2) {
        let [_, backend, frontend, _, _, ours, ..] =
            row.split('|').map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("{row}");
        };
        let owns = if backend == "any" { State::ALL[2..].to_vec() } else { vec![number(backend)] };
        for own in owns {
            let peer = PeerState::Is(number(frontend));
            let answer = match react(Side::Backend, own, peer, DeviceUse::Wanted) {
                Err(_) => "error",
                Ok(EndAction::Stay) if own == State::Closed && ours == "Closed" => "Closed",
                Ok(EndAction::Stay) => "stays",
                Ok(EndAction::Release) => "Closed",
                Ok(EndAction::Restart) => "InitWait",
                Ok(other) => panic!("{row}: {other:?}"),
            };
            assert_eq!(answer, ours, "{own} {row}");
        }
        rows += 1;
    }
    assert_eq!(rows, 17);
}
