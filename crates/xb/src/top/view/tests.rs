//! Keys and the views that they lead to.

use super::*;
use crate::top::rates::tests::{domain, host};
use crate::top::sample::DomainSample;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn named(domid: u16, name: &str, cpu_ms: u64) -> DomainSample {
    DomainSample { name: name.into(), ..domain(domid, 1, cpu_ms) }
}

/// A view of three domains: `busy` has used a processor, `web` half of one, `new` is there for the
/// first time.
pub(crate) fn view() -> TopView {
    let mut view = TopView::default();
    view.take(host(SECOND, vec![named(1, "web", 0), named(3, "busy", 0)]), BTreeMap::new());
    let now = vec![named(1, "web", 500), named(2, "new", 900), named(3, "busy", 1000)];
    view.take(host(2 * SECOND, now), BTreeMap::new());
    view
}

fn names(view: &TopView) -> Vec<String> {
    view.rows().iter().map(name).collect()
}

fn press(view: &mut TopView, keys: &[TypedKey]) {
    for key in keys {
        assert_eq!(view.press(*key, 10), KeyOutcome::Shown, "{key:?}");
    }
}

fn selected(view: &TopView) -> Option<u16> {
    view.selected.map(|(domid, _)| domid.0)
}

#[test]
fn rows_are_sorted_by_a_column() {
    let mut view = view();
    assert_eq!(names(&view), ["busy", "web", "new"], "by processors, the unknown last");
    press(&mut view, &[TypedKey::Char('r')]);
    assert_eq!(names(&view), ["web", "busy", "new"], "the unknown last all the same");
    press(&mut view, &[TypedKey::Char('r'), TypedKey::Char('S'), TypedKey::Char('S')]);
    assert_eq!((view.sort, names(&view)), (1, ["web", "new", "busy"].map(str::to_owned).to_vec()));
    press(&mut view, &[TypedKey::Char('S')]);
    assert_eq!(names(&view), ["busy", "new", "web"], "by name");
    press(&mut view, &[TypedKey::Char('S'), TypedKey::Char('s')]);
    assert_eq!(view.sort, 0, "behind the last column comes the first");
}

#[test]
fn rows_are_filtered_by_name() {
    let mut view = view();
    press(
        &mut view,
        &[TypedKey::Char('/'), TypedKey::Char('E'), TypedKey::Char('q'), TypedKey::Backspace],
    );
    assert_eq!(
        (view.filter.as_str(), names(&view)),
        ("E", vec!["web".to_owned(), "new".to_owned()])
    );
    press(&mut view, &[TypedKey::Enter]);
    assert_eq!(view.key_use, KeyUse::Commands);
    press(&mut view, &[TypedKey::Escape]);
    assert_eq!(names(&view).len(), 3);
    press(&mut view, &[TypedKey::Char('/'), TypedKey::Char('x')]);
    assert_eq!(names(&view).len(), 0);
    press(&mut view, &[TypedKey::Down, TypedKey::End]);
    assert_eq!(selected(&view), None);
    press(&mut view, &[TypedKey::Escape]);
    assert_eq!((view.key_use, names(&view).len()), (KeyUse::Commands, 3));
    let long = vec![TypedKey::Char('a'); FILTER_MAX + 1];
    press(&mut view, &[&[TypedKey::Char('/')][..], &long].concat());
    assert_eq!(view.filter.len(), FILTER_MAX);
}

#[test]
fn a_selection_follows_its_domain() {
    let mut view = view();
    press(&mut view, &[TypedKey::Down]);
    assert_eq!(selected(&view), Some(1));
    let now = vec![named(1, "web", 9000), named(2, "new", 900), named(3, "busy", 1000)];
    view.take(host(3 * SECOND, now), BTreeMap::new());
    assert_eq!((names(&view)[0].as_str(), view.place(&view.rows())), ("web", 0));
    press(&mut view, &[TypedKey::End]);
    assert_eq!(view.place(&view.rows()), 2);
    press(&mut view, &[TypedKey::Down, TypedKey::PageDown]);
    assert_eq!(view.place(&view.rows()), 2);
    press(&mut view, &[TypedKey::Up]);
    assert_eq!(view.place(&view.rows()), 1);
    press(&mut view, &[TypedKey::PageUp, TypedKey::Home]);
    assert_eq!(view.place(&view.rows()), 0);
    // It ends.
    view.take(host(4 * SECOND, vec![named(2, "new", 900)]), BTreeMap::new());
    assert_eq!(view.place(&view.rows()), 0);
}

#[test]
fn the_devices_of_the_selected_domain_are_asked_for() {
    let mut view = view();
    assert_eq!(view.asks_for(), None);
    press(&mut view, &[TypedKey::Enter]);
    assert_eq!(view.asks_for().map(|(domid, _)| domid.0), Some(3));
    press(&mut view, &[TypedKey::Down]);
    assert_eq!(view.asks_for().map(|(domid, _)| domid.0), Some(1));
    press(&mut view, &[TypedKey::Escape]);
    assert_eq!((view.asks_for(), view.is_open), (None, false));
}

#[test]
fn some_keys_end_the_screen() {
    let mut view = view();
    for (key, outcome) in [
        (TypedKey::Char('q'), KeyOutcome::Quit),
        (TypedKey::Interrupt, KeyOutcome::Interrupted),
        (TypedKey::Redraw, KeyOutcome::Redrawn),
    ] {
        assert_eq!(view.press(key, 10), outcome);
    }
    press(&mut view, &[TypedKey::Char('/'), TypedKey::Char('q')]);
    assert_eq!(view.press(TypedKey::Interrupt, 10), KeyOutcome::Interrupted);
}

#[test]
fn columns_are_scrolled_up_to_the_last() {
    let mut view = view();
    press(&mut view, &[TypedKey::Left, TypedKey::Right, TypedKey::Right, TypedKey::Left]);
    assert_eq!(view.first_column, 2);
    press(&mut view, &vec![TypedKey::Right; 100]);
    assert_eq!(view.first_column, COLUMNS.len() - 1);
}
