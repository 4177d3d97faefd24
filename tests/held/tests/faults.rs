//! Memory that the store once held without charging for it, and a short search for more.

use held::program::{PathPattern, PathRequest, PathRoot, ProgramLoop, ProgramStep, SearchProgram};
use held::run::{Measure, run};
use held::search::{Search, SearchGoal};

fn place(below: PathRoot, names: u16, last: u16, modulo: u16) -> PathPattern {
    PathPattern { below, names, letter: 0, last, modulo }
}

/// Runs loops. Returns the measure at the worst moment.
fn loops<const N: usize>(loops: [(u16, Vec<ProgramStep>); N]) -> Measure {
    let loops = loops.into_iter().map(|(count, body)| ProgramLoop { count, body });
    let measure = run(&SearchProgram(loops.collect()));
    println!("{measure}");
    measure
}

/// An index with an entry for every name of a watched path held five hundred times the charge.
#[test]
fn watches_of_paths_with_a_thousand_names_are_charged_for_what_they_hold() {
    let watch = ProgramStep::Watch(place(PathRoot::Nowhere, 1000, 4, 128), 1, None);
    let measure = loops([(128, vec![watch, ProgramStep::Take(u16::MAX)])]);
    assert!(measure.charged > 128 * 2000, "{measure}");
    assert!(measure.is_allowed(), "{measure}");
}

/// A log that kept the nodes that were read kept an old version of the path for every read.
#[test]
fn a_transaction_that_writes_and_reads_by_turns_is_charged_for_what_it_holds() {
    let leaf = place(PathRoot::HomeAbsolute, 30, 4, 0);
    let write = |slot| ProgramStep::Ask(PathRequest::Write(1), leaf.clone(), slot);
    let top = ProgramStep::Ask(PathRequest::Read, place(PathRoot::HomeAbsolute, 0, 0, 0), Some(0));
    let take = ProgramStep::Take(u16::MAX);
    let measure = loops([
        (1, vec![write(None), ProgramStep::Start(0), take.clone()]),
        (6000, vec![write(Some(0)), top, take]),
    ]);
    assert!(measure.is_allowed(), "{measure}");
}

/// Nodes made and removed again in a transaction are kept for the events of its commit.
#[test]
fn nodes_made_and_removed_in_a_transaction_are_charged() {
    let chain = place(PathRoot::Home, 500, 4, 0);
    let make = ProgramStep::Ask(PathRequest::Mkdir, chain, Some(0));
    let remove = ProgramStep::Ask(PathRequest::Rm, place(PathRoot::Home, 1, 0, 0), Some(0));
    let take = ProgramStep::Take(u16::MAX);
    let measure =
        loops([(1, vec![ProgramStep::Start(0), take.clone()]), (2000, vec![make, remove, take])]);
    assert!(measure.charged > 100_000, "{measure}");
    assert!(measure.is_allowed(), "{measure}");
}

/// Old values that a guest's own snapshots keep.
#[test]
fn what_is_replaced_under_open_transactions_is_charged() {
    let write = ProgramStep::Ask(PathRequest::Write(1500), place(PathRoot::Home, 0, 4, 200), None);
    let round = |slot| vec![ProgramStep::Start(slot), ProgramStep::Take(u16::MAX)];
    let all = || vec![write.clone(), ProgramStep::Take(u16::MAX)];
    let measure = loops([
        (200, all()),
        (1, round(0)),
        (200, all()),
        (1, round(1)),
        (200, all()),
        (1, round(2)),
        (200, all()),
        (1, round(3)),
        (200, all()),
    ]);
    assert!(measure.charged > 1_000_000, "{measure}");
    assert!(measure.is_allowed(), "{measure}");
}

/// Requests that wait for a turn of domain 0's.
#[test]
fn requests_that_wait_are_charged() {
    let write =
        ProgramStep::Ask(PathRequest::Write(2000), place(PathRoot::HomeAbsolute, 900, 4, 0), None);
    let measure = loops([
        (
            1,
            vec![
                ProgramStep::Ask(PathRequest::Mkdir, place(PathRoot::Home, 1, 0, 0), None),
                ProgramStep::Hold,
            ],
        ),
        (30, vec![write, ProgramStep::Take(u16::MAX)]),
    ]);
    assert!(measure.charged > 19 * 3800, "{measure}");
    assert!(measure.is_allowed(), "{measure}");
}

/// `cargo xtask held` searches for longer.
#[test]
fn a_short_search_finds_no_more_than_may_be_held() {
    let mut search = Search::new(SearchGoal::Held, 1);
    for _ in 0..200 {
        search.step();
    }
    let (measure, program) = search.worst().expect("programs were run");
    assert!(measure.is_allowed(), "{measure}\n{program:#?}");
    assert!(measure.permille() > 300, "the search finds nothing: {measure}");
}
