//! The use of the store's quotas by a domain, as CONTROL `quota <domid>` tells it.

/// A line of the answer: `nodes : 12 (max 14) limit 1000, refused 3 times, last 2 s ago`. C's daemon
/// tells the use alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QuotaLine<'a> {
    /// The quota's name.
    pub(crate) name: &'a str,
    /// The domain's use.
    pub(crate) used: u64,
    /// The most that it may use, if it has a limit and that is told.
    pub(crate) limit: Option<u64>,
    /// The number of requests that were refused for it, and the seconds since the last.
    pub(crate) refused: Option<(u64, u64)>,
}

impl<'a> QuotaLine<'a> {
    /// Parses a line; none if it is not about a quota.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_once(':')?;
        let after = |word: &str| {
            let mut words = rest.split_whitespace().skip_while(|one| *one != word).skip(1);
            words.next()?.trim_end_matches(',').parse().ok()
        };
        Some(Self {
            name: name.trim(),
            used: rest.split_whitespace().next()?.parse().ok()?,
            limit: after("limit"),
            refused: after("refused").zip(after("last")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_as_far_as_they_are_told() {
        let line = "nodes            :       12 (max       14) limit     1000, refused 3 times, last 2 s ago";
        let read = QuotaLine::parse(line).unwrap();
        let QuotaLine { name, used, limit, refused } = read;
        assert_eq!((name, used, limit, refused), ("nodes", 12, Some(1000), Some((3, 2))));
        let read = QuotaLine::parse("watches          :        3 (max:        4)").unwrap();
        assert_eq!((read.used, read.limit, read.refused), (3, None, None));
        assert_eq!(QuotaLine::parse("Domain 3:"), None);
        assert_eq!(QuotaLine::parse(""), None);
    }
}
