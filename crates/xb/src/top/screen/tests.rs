//! Screens, drawn into the memory of a terminal.

use super::*;
use crate::terminal::keys::TypedKey;
use crate::top::rates::tests::{disk, domain, host};
use crate::top::sample::{StoreSample, UseOfBound};
use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;
use std::collections::BTreeMap;
use std::time::Duration;
use xen::DomId;
use xen_io::xenbus::State;

const SECOND: Duration = Duration::from_secs(1);

/// A view of domain 0 and of `web`, whose disk does something, between two samples.
fn view() -> TopView {
    let mut view = TopView::default();
    for second in 1..=2_u32 {
        let mut dom0 = domain(0, 0, u64::from(second) * 100);
        dom0.name = "Domain-0".into();
        (dom0.target_kib, dom0.grant_frames, dom0.mapped_pages) = (None, None, None);
        dom0.events = None;
        let mut web = domain(1, 1, u64::from(second) * 500);
        web.name = "web".into();
        web.events = Some(u64::from(second) * 40);
        let of = |used, most| Some(UseOfBound { used, most: Some(most) });
        web.store = StoreSample { nodes: of(12, 1000), watches: of(4, 128), refusals: Some(3) };
        web.disks = vec![disk(51712, second * SECOND, u64::from(second) * 200)];
        view.take(host(second * SECOND, vec![dom0, web]), BTreeMap::new());
    }
    view
}

/// Draws a view on a terminal of this size, and returns the lines.
fn drawn(view: &TopView, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(view, frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let cells = (0..width).map(|x| buffer.cell((x, y)).unwrap().symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

#[test]
fn a_wide_screen_has_all_columns() {
    let lines = drawn(&view(), 137, 8);
    let wanted = [
        "2 domains: 2 run, 0 paused, memory 1 GiB, 2 processors",
        " NAME                    ID STATE     CPU %\u{2193}    MEMORY VCPU  REQ/S   BYTES/S     P99  ERR   EV/S  GRANTS MAPPED WATCHES     NODES REFUSED",
        " web                      1 running     50.0    64 MiB    1    200   800 KiB  128 us    0     40    1/32      0   4/128   12/1000       3",
        " Domain-0                 0 running     10.0    32 MiB    1      0       0 B       -    0      -       -      -       -         -       -",
        "",
        "",
        "",
        " q quit",
    ];
    let last = lines.len() - 1;
    assert_eq!(&lines[..last], &wanted[..last], "{lines:#?}");
    assert!(lines[last].starts_with(KEYS), "{lines:#?}");
}

#[test]
fn a_narrow_screen_has_the_columns_that_fit() {
    let mut view = view();
    let lines = drawn(&view, 40, 6);
    assert_eq!(lines[1], " NAME                ID STATE     CPU %\u{2193}");
    assert_eq!(lines[2], " web                  1 running     50.0");
    // The others are reached by a key.
    for _ in 0..11 {
        view.press(TypedKey::Right, 1);
    }
    let lines = drawn(&view, 40, 6);
    assert_eq!(lines[1], " NAME           MAPPED WATCHES     NODES");
    for (width, height) in [(1, 1), (0, 0), (3, 2), (20, 3), (200, 1)] {
        drawn(&view, width, height);
    }
}

#[test]
fn what_the_doctor_says_stands_below() {
    let mut view = view();
    let key = view.rows()[0].sample.key();
    view.words.insert(key, "xvda waits: \u{1b}[2Jnothing serves it; start it with: x".into());
    let lines = drawn(&view, 80, 6);
    assert_eq!(lines[0], "2 domains: 2 run, 0 paused, 1 not well, memory 1 GiB, 2 processors");
    assert!(lines[2].starts_with("!web "), "{lines:#?}");
    assert_eq!(lines[4], "web: xvda waits: ?[2Jnothing serves it; start it with: x");
    view.press(TypedKey::Down, 1);
    assert_eq!(drawn(&view, 80, 6)[4], "", "another is selected");
    view.problem = Some("the store is gone".into());
    assert_eq!(drawn(&view, 80, 6)[4], "the store is gone");
}

/// A name can neither move the cursor nor shift the columns behind it.
#[test]
fn hostile_names_stay_in_their_column() {
    let mut view = view();
    let mut sample = view.sample().unwrap().clone();
    for (name, shown) in [
        ("\u{1b}]0;x\u{7}a\u{202e}b", "?]0;x?ab"),
        ("日本語の名前はとても長い名前です", "日本語の名前"),
        ("a-name-that-is-too-long-for-its-column", "a-name-that- "),
    ] {
        sample.domains[1].name = name.into();
        view.take(sample.clone(), BTreeMap::new());
        let lines = drawn(&view, 46, 6);
        let line = lines.iter().find(|line| line.contains(" 1 running")).unwrap();
        let wide: usize = shown.chars().filter(|letter| !letter.is_ascii()).count();
        // A wide letter has two cells, of which the second holds nothing more than a blank.
        let letters: String = line.chars().collect();
        let without: String = if wide > 0 { letters.replace(' ', "") } else { letters };
        assert!(without.trim_start().starts_with(shown), "{name:?}: {line:?}");
    }
}

#[test]
fn the_selected_domain_is_always_shown() {
    let mut view = TopView::default();
    let domains = (0..50).map(|domid| domain(domid, 1, 0)).collect();
    view.take(host(SECOND, domains), BTreeMap::new());
    view.press(TypedKey::End, 6);
    let lines = drawn(&view, 60, 10);
    assert!(lines[7].starts_with(" g49 ") && lines[2].starts_with(" g44 "), "{lines:#?}");
    view.press(TypedKey::Home, 6);
    let lines = drawn(&view, 60, 10);
    assert!(lines[2].starts_with(" g0 ") && lines[7].starts_with(" g5 "), "{lines:#?}");
    assert_eq!(page(&view, 10), 6);
}

#[test]
fn devices_are_shown_with_their_rings() {
    let mut view = view();
    view.press(TypedKey::Enter, 1);
    let of = view.asks_for().unwrap();
    let lines = drawn(&view, 120, 16);
    assert_eq!(&lines[8..10], [" devices of web", "they are being read"], "{lines:#?}");
    let disk = DeviceDetails {
        kind: "vbd".into(),
        devid: 51712,
        name: "xvda".into(),
        backend: DomId::DOM0,
        backend_kind: "vbd".into(),
        front: State::Connected,
        back: State::Connected,
        protocol: Some("x86_64-abi".into()),
        rings: vec![
            RingDetails { queue: Some(0), grants: vec![8, 9], ports: vec![3] },
            RingDetails { queue: Some(1), grants: vec![10], ports: vec![] },
        ],
    };
    view.devices = Some(ShownDevices { of, devices: Ok(vec![disk]) });
    let lines = drawn(&view, 160, 16);
    let wanted = [
        " xvda  frontend Connected (4), backend Connected (4) (vbd in domain 0)",
        "   200 requests/s, 800 KiB/s, p99 128 us, errors 0; 200 reads, 200 writes, 0 under way; pages kept mapped: 1",
        "   queue 0: grants 8, 9; ports 3, x86_64-abi",
        "   queue 1: grants 10; ports -, x86_64-abi",
    ];
    assert_eq!(&lines[9..13], wanted, "{lines:#?}");
    view.devices = Some(ShownDevices { of, devices: Err("the store is gone".into()) });
    assert_eq!(drawn(&view, 120, 16)[9], "the store is gone");
    view.devices = Some(ShownDevices { of, devices: Ok(Vec::new()) });
    assert_eq!(drawn(&view, 120, 16)[9], "it has none");
}

#[test]
fn the_filter_is_shown_while_it_is_typed() {
    let mut view = view();
    assert!(drawn(&TopView::default(), 60, 6)[0].starts_with("xb top"));
    for key in [TypedKey::Char('/'), TypedKey::Char('w')] {
        view.press(key, 1);
    }
    let lines = drawn(&view, 120, 6);
    assert_eq!((lines[5].as_str(), lines[3].as_str()), ("filter: w_", ""));
    assert!(lines[0].ends_with("filter w"), "{lines:#?}");
}
