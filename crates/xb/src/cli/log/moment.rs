//! Times of output: how they are shown, and how `--since` names them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// The form of a time for people: local, with its distance from UTC.
const LOCAL: &str = "%Y-%m-%dT%H:%M:%S%.3f%:z";
/// The form of a time for programs: UTC.
const UTC: &str = "%Y-%m-%dT%H:%M:%S%.6fZ";
/// The forms of a time on the command line.
const FORMS: &str =
    "a time is needed: 10m, 2h or 1d ago, 2026-12-02, \"2026-12-02 17:30\" or 2026-12-02T17:30:00Z";

/// The time from which on output is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogMoment {
    /// Microseconds since 1970.
    pub(super) time_us: u64,
}

impl LogMoment {
    /// Parses a duration before now, or a time; one without a zone is local.
    ///
    /// # Errors
    /// A sentence with the forms.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Self::parse_at(text, Timestamp::now(), &TimeZone::system())
    }

    fn parse_at(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Self, String> {
        let moment = before(text, now, zone)
            .or_else(|| text.parse().ok())
            .or_else(|| zone.to_timestamp(text.parse::<DateTime>().ok()?).ok());
        let moment = moment.ok_or(FORMS)?;
        // Nothing was printed before 1970.
        Ok(Self { time_us: u64::try_from(moment.as_microsecond()).unwrap_or(0) })
    }
}

/// Returns the time a duration before `now`; a day has the hours that it has in the zone.
fn before(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let duration = text.parse::<Span>().ok()?.abs();
    let moment = now.to_zoned_datetime(zone.clone()).checked_sub(duration).ok()?;
    Some(moment.timestamp())
}

fn timestamp(time_us: u64) -> Option<Timestamp> {
    Timestamp::from_microsecond(i64::try_from(time_us).ok()?).ok()
}

/// The zone of times for people.
#[derive(Clone, Debug)]
pub(super) struct ShownZone(TimeZone);

impl ShownZone {
    /// Returns that of this process.
    pub(super) fn of_process() -> Self {
        Self(TimeZone::system())
    }

    /// Formats a time in microseconds since 1970; one that is not known, or not possible, is `-`.
    pub(super) fn format(&self, time_us: Option<u64>) -> String {
        let time = time_us.and_then(timestamp);
        time.map_or("-".into(), |time| {
            time.to_zoned_datetime(self.0.clone()).strftime(LOCAL).to_string()
        })
    }
}

/// Formats a time in microseconds since 1970 for programs, if it is known and possible.
pub(super) fn utc(time_us: Option<u64>) -> Option<String> {
    Some(timestamp(time_us?)?.strftime(UTC).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    #[test]
    fn times_are_read_in_all_forms() {
        let zone = TimeZone::posix(BERLIN).unwrap();
        let now: Timestamp = "2026-12-02T16:00:00Z".parse().unwrap();
        for (text, time) in [
            ("10m", "2026-12-02T15:50:00Z"),
            ("2h", "2026-12-02T14:00:00Z"),
            ("1d", "2026-12-01T16:00:00Z"),
            ("1h30m", "2026-12-02T14:30:00Z"),
            ("90s", "2026-12-02T15:58:30Z"),
            ("2 hours ago", "2026-12-02T14:00:00Z"),
            // Over the end of summer time.
            ("60d", "2026-10-03T15:00:00Z"),
            ("2026-12-02", "2026-12-01T23:00:00Z"),
            ("2026-12-02 15:30", "2026-12-02T14:30:00Z"),
            ("2026-12-02 15:30:01", "2026-12-02T14:30:01Z"),
            ("2026-12-02T15:30:01", "2026-12-02T14:30:01Z"),
            ("2026-12-02T15:30:01.5Z", "2026-12-02T15:30:01.5Z"),
            ("2026-12-02T15:30:01+05:30", "2026-12-02T10:00:01Z"),
            ("2100-01-01T00:00:00Z", "2100-01-01T00:00:00Z"),
            // An hour that is left out, and one that comes twice.
            ("2026-03-29 02:30", "2026-03-29T01:30:00Z"),
            ("2026-10-25 02:30", "2026-10-25T00:30:00Z"),
            ("1960-01-01", "1970-01-01T00:00:00Z"),
            ("9000 years", "1970-01-01T00:00:00Z"),
        ] {
            let time: Timestamp = time.parse().unwrap();
            let time_us = u64::try_from(time.as_microsecond()).unwrap();
            assert_eq!(LogMoment::parse_at(text, now, &zone), Ok(LogMoment { time_us }), "{text}");
        }
        for bad in ["", "10", "soon", "m", "2026-13-01", "2026-12-02 25:00", "99999999y", "10x"] {
            assert_eq!(LogMoment::parse_at(bad, now, &zone), Err(FORMS.into()), "{bad}");
        }
    }

    #[test]
    fn times_are_shown_if_they_are_possible() {
        let zone = ShownZone(TimeZone::posix(BERLIN).unwrap());
        let time_us = Some(1_796_229_125_999_999);
        assert_eq!(zone.format(time_us), "2026-12-02T17:32:05.999+01:00");
        assert_eq!(utc(time_us).unwrap(), "2026-12-02T16:32:05.999999Z");
        let late = Some((1 << 31) * 1_000_000);
        assert_eq!(utc(late).unwrap(), "2038-01-19T03:14:08.000000Z");
        for unknown in [None, Some(u64::MAX), Some(1 << 62)] {
            assert_eq!((zone.format(unknown).as_str(), utc(unknown)), ("-", None));
        }
    }
}
