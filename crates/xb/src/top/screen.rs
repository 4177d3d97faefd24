//! Draws a view: a line on the host, the table of domains, the devices of the selected one, what the
//! doctor says of it, and the keys.

use super::columns::{COLUMNS, CellSide, TopColumn, bytes, errors, latency, name, requests};
use super::devices::{DeviceDetails, RingDetails};
use super::rates::{DiskRow, DomainRow};
use super::sample::{DomainSample, HostSample};
use super::view::{KeyUse, ShownDevices, SortOrder, TopView};
use crate::text;
use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use std::fmt::Display;
use xen::domctl::RunState;

/// The lines that are neither domains nor devices: the host, the titles, the word, the keys.
const FIXED_LINES: u16 = 4;
/// The mark before the name of a domain that is not well.
const UNWELL: &str = "!";
/// The keys, as the last line names them.
const KEYS: &str = "q quit  \u{2191}\u{2193} select  enter devices  \u{2190}\u{2192} columns  s sort  r reverse  / filter";

const PLAIN: Style = Style::new();
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
const TITLES: Style = Style::new().add_modifier(Modifier::REVERSED);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);
const FAULT: Style = Style::new().fg(Color::Red);

/// The parts of a screen.
struct ScreenParts {
    /// The lines for domains.
    domains: u16,
    /// The lines for devices.
    devices: u16,
}

/// Returns the parts of a screen of this height.
fn parts(view: &TopView, height: u16) -> ScreenParts {
    let lines = height.saturating_sub(FIXED_LINES);
    let devices = if view.is_open { lines / 2 } else { 0 };
    ScreenParts { domains: lines - devices, devices }
}

/// Returns the number of domains that a screen of this height shows.
pub(crate) fn page(view: &TopView, height: u16) -> usize {
    parts(view, height).domains.into()
}

/// Draws a view.
pub(crate) fn draw(view: &TopView, buffer: &mut Buffer) {
    let area = *buffer.area();
    let rows = view.rows();
    let place = view.place(&rows);
    let parts = parts(view, area.height);
    let mut lines = ScreenLines { buffer, area, next: 0 };
    lines.put(&summary(view), STRONG);
    let shown = shown_columns(view, area.width);
    lines.put(&titles(view, &shown, area.width), TITLES);
    // The selected domain is always shown.
    let page = usize::from(parts.domains);
    let first = (place + 1).saturating_sub(page);
    for (at, row) in rows.iter().enumerate().skip(first).take(page) {
        let is_unwell = view.words.contains_key(&row.sample.key());
        let style = match (at == place, is_unwell) {
            (true, _) => SELECTED,
            (false, true) => FAULT,
            (false, false) => PLAIN,
        };
        lines.put(&line(row, &shown, area.width, if is_unwell { UNWELL } else { " " }), style);
    }
    let last = area.height.saturating_sub(2);
    if let Some(row) = rows.get(place).filter(|_| parts.devices > 0) {
        lines.next = last.saturating_sub(parts.devices);
        draw_devices(view, row, &mut lines, last);
    }
    lines.next = last;
    let word = rows.get(place).and_then(|row| view.words.get(&row.sample.key()));
    match (&view.problem, word, rows.get(place)) {
        (Some(problem), ..) => lines.put(&text::clean(problem), FAULT),
        (None, Some(word), Some(row)) => {
            lines.put(&format!("{}: {}", name(row), text::clean(word)), FAULT);
        }
        _ => lines.next += 1,
    }
    match view.key_use {
        KeyUse::Commands => lines.put(KEYS, PLAIN),
        KeyUse::Filter => lines.put(&format!("filter: {}_", text::clean(&view.filter)), STRONG),
    }
}

/// The lines of a screen, from the top on.
struct ScreenLines<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    next: u16,
}

impl ScreenLines<'_> {
    /// Puts the next line; one that has no place is left out.
    fn put(&mut self, line: &str, style: Style) {
        let (width, y) = (self.area.width, self.area.y.saturating_add(self.next));
        if self.next < self.area.height {
            self.buffer.set_style(Rect { y, height: 1, ..self.area }, style);
            self.buffer.set_stringn(self.area.x, y, line, width.into(), style);
        }
        self.next = self.next.saturating_add(1);
    }
}

/// Returns the line on the host.
fn summary(view: &TopView) -> String {
    let Some(host) = view.sample() else { return "xb top".into() };
    let HostSample { domains, memory_kib, processors, .. } = host;
    let count = |of: fn(&DomainSample) -> bool| domains.iter().filter(|domain| of(domain)).count();
    let (run, paused) =
        (count(DomainSample::runs), count(|domain| domain.info.state == RunState::Paused));
    let mut parts = vec![format!("{} domains: {run} run, {paused} paused", domains.len())];
    let ended = domains.len() - run - paused;
    if ended > 0 {
        parts.push(format!("{ended} ended"));
    }
    if !view.words.is_empty() {
        parts.push(format!("{} not well", view.words.len()));
    }
    let memory = memory_kib.map(|kib| text::size(kib.saturating_mul(1024)));
    parts.extend(memory.map(|memory| format!("memory {memory}")));
    parts.extend(processors.map(text::processors));
    if !view.filter.is_empty() {
        parts.push(format!("filter {}", text::clean(&view.filter)));
    }
    parts.join(", ")
}

/// Returns the columns that fit, the name first; each with its place in the table of columns.
fn shown_columns(view: &TopView, width: u16) -> Vec<(usize, &'static TopColumn)> {
    let mut shown: Vec<(usize, &TopColumn)> = Vec::new();
    // The mark stands before the name.
    let mut used = 1;
    for (at, column) in COLUMNS.iter().enumerate() {
        if at != 0 && at < view.first_column {
            continue;
        }
        used += column.width + u16::from(at != 0);
        if at != 0 && used > width {
            break;
        }
        shown.push((at, column));
    }
    shown
}

/// Joins the cells of a line, each at its side of its column; the first column gets what is left of
/// the width.
fn joined(
    shown: &[(usize, &TopColumn)],
    width: u16,
    mark: &str,
    cell: impl Fn(usize, &TopColumn) -> String,
) -> String {
    let used: u16 = shown.iter().map(|(_, column)| column.width + 1).sum();
    let rest = width.saturating_sub(used);
    let mut line = mark.to_owned();
    for (at, column) in shown {
        if *at != 0 {
            line.push(' ');
        }
        let extra = if *at == 0 { rest } else { 0 };
        let side = column.side;
        padded(&mut line, &cell(*at, column), (column.width + extra).into(), side);
    }
    line
}

/// Adds a text, cut or filled up to a width in columns of the terminal.
fn padded(line: &mut String, text: &str, width: usize, side: CellSide) {
    use ratatui_core::text::Span;
    let mut cut = text.to_owned();
    while Span::raw(cut.as_str()).width() > width {
        cut.pop();
    }
    let blanks = " ".repeat(width - Span::raw(cut.as_str()).width());
    match side {
        CellSide::Left => line.extend([cut, blanks]),
        CellSide::Right => line.extend([blanks, cut]),
    }
}

fn titles(view: &TopView, shown: &[(usize, &TopColumn)], width: u16) -> String {
    joined(shown, width, " ", |at, column| match (at == view.sort, view.order) {
        (true, SortOrder::Plain) => format!("{}\u{2193}", column.title),
        (true, SortOrder::Reversed) => format!("{}\u{2191}", column.title),
        (false, _) => column.title.to_owned(),
    })
}

fn line(row: &DomainRow<'_>, shown: &[(usize, &TopColumn)], width: u16, mark: &str) -> String {
    joined(shown, width, mark, |_, column| (column.cell)(row))
}

/// Draws the devices of a domain, up to the line `end`.
fn draw_devices(view: &TopView, row: &DomainRow<'_>, lines: &mut ScreenLines<'_>, end: u16) {
    lines.put(&format!(" devices of {}", name(row)), TITLES);
    let found = view.devices.as_ref().filter(|found| found.of == row.sample.key());
    let texts = match found {
        None => vec!["they are being read".to_owned()],
        Some(ShownDevices { devices: Err(why), .. }) => vec![text::clean(why)],
        Some(ShownDevices { devices: Ok(devices), .. }) if devices.is_empty() => {
            vec!["it has none".to_owned()]
        }
        Some(ShownDevices { devices: Ok(devices), .. }) => {
            devices.iter().flat_map(|device| device_lines(device, row)).collect()
        }
    };
    for text in texts {
        if lines.next < end {
            lines.put(&text, PLAIN);
        }
    }
}

/// Returns the lines on a device: its ends, what it does, and its rings.
fn device_lines(device: &DeviceDetails, row: &DomainRow<'_>) -> Vec<String> {
    let DeviceDetails { kind, name, backend, backend_kind, front, back, protocol, .. } = device;
    let (name, by) = (text::clean(name), text::clean(backend_kind));
    let head = format!(" {name}  frontend {front}, backend {back} ({by} in domain {backend})");
    let disk = row.disks.iter().find(|disk| kind == "vbd" && disk.sample.devid == device.devid);
    let protocol = protocol.as_ref().map(|name| format!(", {}", text::clean(name)));
    let rings = device.rings.iter().map(|ring| {
        let RingDetails { queue, grants, ports } = ring;
        let queue = queue.map_or_else(|| "ring".to_owned(), |queue| format!("queue {queue}"));
        let protocol = protocol.as_deref().unwrap_or_default();
        format!("   {queue}: grants {}; ports {}{protocol}", list(grants), list(ports))
    });
    std::iter::once(head).chain(disk.map(disk_line)).chain(rings).collect()
}

/// Returns the line on what a disk does.
fn disk_line(disk: &DiskRow<'_>) -> String {
    let of = &disk.rates;
    let (requests, bytes, latency) = (requests(of), bytes(of), latency(of));
    let mut line =
        format!("   {requests} requests/s, {bytes}/s, p99 {latency}, errors {}", errors(of));
    if let Some(counters) = &disk.sample.counters {
        let (read, write) = (counters.read.requests, counters.write.requests);
        line.push_str(&format!("; {read} reads, {write} writes"));
        let under_way = counters.in_flight.map(|count| format!(", {count} under way"));
        line.push_str(&under_way.unwrap_or_default());
        let pages = counters.persistent.map(|pages| format!("; pages kept mapped: {pages}"));
        line.push_str(&pages.unwrap_or_default());
    }
    line
}

fn list<T: Display>(numbers: &[T]) -> String {
    match numbers {
        [] => "-".to_owned(),
        numbers => numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests;
