//! The view of a screen: what is shown of the samples, and what keys do to that. Pure.

use super::columns::{COLUMNS, FIRST_SORT, name};
use super::rates::{DomainRow, rows};
use super::sample::{DomainKey, HostSample};
use crate::terminal::keys::TypedKey;
use crate::top::devices::DeviceDetails;
use std::collections::BTreeMap;

/// The most characters of a filter.
const FILTER_MAX: usize = 40;

/// The order of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SortOrder {
    /// That of the column.
    Plain,
    /// The opposite; what is unknown comes last all the same.
    Reversed,
}

/// The use that is made of characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyUse {
    /// Each is a command.
    Commands,
    /// They are added to the filter.
    Filter,
}

/// The outcome of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyOutcome {
    /// The view may have changed.
    Shown,
    /// All of the screen is to be drawn anew.
    Redrawn,
    /// The user has seen enough.
    Quit,
    /// The user has pressed Ctrl-C.
    Interrupted,
}

/// The devices of a domain, in answer to a question about them.
#[derive(Clone, Debug)]
pub(crate) struct ShownDevices {
    /// The domain.
    pub(crate) of: DomainKey,
    /// Its devices, or the reason why they are not known.
    pub(crate) devices: Result<Vec<DeviceDetails>, String>,
}

/// The view.
#[derive(Debug)]
pub(crate) struct TopView {
    before: Option<HostSample>,
    now: Option<HostSample>,
    /// The words of the doctor on domains that are not well.
    pub(crate) words: BTreeMap<DomainKey, String>,
    /// The reason for which there is no newer sample.
    pub(crate) problem: Option<String>,
    /// The devices that were last read.
    pub(crate) devices: Option<ShownDevices>,
    /// The column by which rows are sorted.
    pub(crate) sort: usize,
    pub(crate) order: SortOrder,
    pub(crate) filter: String,
    pub(crate) key_use: KeyUse,
    pub(crate) selected: Option<DomainKey>,
    /// True if the devices of the selected domain are shown.
    pub(crate) is_open: bool,
    /// The first column behind the name that is shown.
    pub(crate) first_column: usize,
}

impl Default for TopView {
    fn default() -> Self {
        Self {
            before: None,
            now: None,
            words: BTreeMap::new(),
            problem: None,
            devices: None,
            sort: FIRST_SORT,
            order: SortOrder::Plain,
            filter: String::new(),
            key_use: KeyUse::Commands,
            selected: None,
            is_open: false,
            first_column: 1,
        }
    }
}

impl TopView {
    /// Takes the next sample, with the words of the doctor.
    pub(crate) fn take(&mut self, sample: HostSample, words: BTreeMap<DomainKey, String>) {
        self.before = self.now.replace(sample);
        self.words = words;
        self.problem = None;
    }

    /// Returns the last sample.
    pub(crate) fn sample(&self) -> Option<&HostSample> {
        self.now.as_ref()
    }

    /// Returns the domain whose devices are to be read.
    pub(crate) fn asks_for(&self) -> Option<DomainKey> {
        self.selected.filter(|_| self.is_open)
    }

    /// Returns the rows that are shown, in their order.
    pub(crate) fn rows(&self) -> Vec<DomainRow<'_>> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows = rows(self.before.as_ref(), now);
        let filter = self.filter.to_lowercase();
        rows.retain(|row| name(row).to_lowercase().contains(&filter));
        let Some(column) = COLUMNS.get(self.sort) else { return rows };
        rows.sort_by(|one, other| {
            let (one, other) = ((column.value)(one), (column.value)(other));
            match (self.order, one.is_unknown() || other.is_unknown()) {
                (SortOrder::Reversed, false) => other.order(&one),
                _ => one.order(&other),
            }
        });
        rows
    }

    /// Returns the place of the selected domain among the rows; the first where it is not there.
    pub(crate) fn place(&self, rows: &[DomainRow<'_>]) -> usize {
        let is_selected = |row: &DomainRow<'_>| Some(row.sample.key()) == self.selected;
        rows.iter().position(is_selected).unwrap_or(0)
    }

    /// Does what a key means. `page` is the number of rows that are shown at once.
    pub(crate) fn press(&mut self, key: TypedKey, page: usize) -> KeyOutcome {
        match (key, self.key_use) {
            (TypedKey::Interrupt, _) => return KeyOutcome::Interrupted,
            (TypedKey::Redraw, _) => return KeyOutcome::Redrawn,
            (TypedKey::Char(letter), KeyUse::Filter) => {
                if self.filter.chars().count() < FILTER_MAX {
                    self.filter.push(letter);
                }
            }
            (TypedKey::Backspace, KeyUse::Filter) => drop(self.filter.pop()),
            (TypedKey::Enter, KeyUse::Filter) => self.key_use = KeyUse::Commands,
            (TypedKey::Escape, KeyUse::Filter) => {
                self.key_use = KeyUse::Commands;
                self.filter.clear();
            }
            (TypedKey::Char('q' | 'Q'), _) => return KeyOutcome::Quit,
            (TypedKey::Char('/'), _) => self.key_use = KeyUse::Filter,
            (TypedKey::Char('s'), _) => self.sort = (self.sort + 1) % COLUMNS.len(),
            (TypedKey::Char('S'), _) => self.sort = (self.sort + COLUMNS.len() - 1) % COLUMNS.len(),
            (TypedKey::Char('r'), _) => {
                self.order = match self.order {
                    SortOrder::Plain => SortOrder::Reversed,
                    SortOrder::Reversed => SortOrder::Plain,
                };
            }
            (TypedKey::Escape, _) if self.is_open => self.is_open = false,
            (TypedKey::Escape, _) => self.filter.clear(),
            (TypedKey::Enter, _) => {
                // The first row is shown as selected where none is.
                self.move_selection(|place, _| place);
                self.is_open = !self.is_open;
            }
            (TypedKey::Left, _) => self.first_column = self.first_column.saturating_sub(1).max(1),
            (TypedKey::Right, _) => {
                self.first_column = (self.first_column + 1).min(COLUMNS.len() - 1);
            }
            (TypedKey::Up, _) => self.move_selection(|place, _| place.saturating_sub(1)),
            (TypedKey::Down, _) => self.move_selection(|place, _| place + 1),
            (TypedKey::PageUp, _) => self.move_selection(|place, _| place.saturating_sub(page)),
            (TypedKey::PageDown, _) => self.move_selection(|place, _| place.saturating_add(page)),
            (TypedKey::Home, _) => self.move_selection(|_, _| 0),
            (TypedKey::End, _) => self.move_selection(|_, rows| rows),
            (TypedKey::Backspace | TypedKey::Char(_), _) => {}
        }
        KeyOutcome::Shown
    }

    /// Selects the row at the place that `to` makes of the present one and of the number of rows.
    fn move_selection(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let place = to(self.place(&rows), rows.len()).min(last);
        let selected = rows.get(place).map(|row| row.sample.key());
        self.selected = selected;
    }
}

#[cfg(test)]
mod tests;
