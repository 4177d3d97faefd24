//! Watch events as an iterator, and the depth filter for daemons and kernels that have none.

mod events;

pub use events::Events;
pub use xenstore_core::client::Event;

/// A watch whose depth the client enforces.
#[derive(Debug)]
struct LimitedWatch {
    path: Vec<u8>,
    token: Vec<u8>,
    depth: u32,
}

/// The watches whose depth the other end does not enforce.
#[derive(Debug, Default)]
pub(crate) struct DepthFilter(Vec<LimitedWatch>);

impl DepthFilter {
    pub(crate) fn add(&mut self, path: &[u8], token: &[u8], depth: u32) {
        self.0.push(LimitedWatch { path: path.to_vec(), token: token.to_vec(), depth });
    }

    pub(crate) fn remove(&mut self, path: &[u8], token: &[u8]) {
        self.0.retain(|watch| watch.path != path || watch.token != token);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// True if the caller gets an event. An event is dropped only if each watch that it may come
    /// from has a depth that ends above its path. A watch without a depth that shares the token is
    /// not known here, so one more event may come; none is lost.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        let mut seen = false;
        for watch in self.0.iter().filter(|watch| watch.token == event.token) {
            if let Some(depth) = levels_below(&watch.path, &event.path) {
                if depth <= watch.depth as usize {
                    return true;
                }
                seen = true;
            }
        }
        !seen
    }
}

/// Returns the number of levels from `top` down to `path`; `None` if `path` is not below `top`.
fn levels_below(top: &[u8], path: &[u8]) -> Option<usize> {
    let rest = path.strip_prefix(top)?;
    match rest.first() {
        None => Some(0),
        Some(b'/') => Some(rest.iter().filter(|byte| **byte == b'/').count()),
        Some(_) if top == b"/" => Some(path.iter().filter(|byte| **byte == b'/').count()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str, token: &str) -> Event {
        Event { path: path.into(), token: token.into() }
    }

    #[test]
    fn depth_is_counted_in_levels_below_the_watch() {
        let mut filter = DepthFilter::default();
        filter.add(b"/a", b"t", 1);
        for (path, token, wanted) in [
            ("/a", "t", true),
            ("/a/b", "t", true),
            ("/a/b/c", "t", false),
            ("/ab/c/d", "t", true),
            ("/a/b/c", "other", true),
        ] {
            assert_eq!(filter.wants(&event(path, token)), wanted, "{path} {token}");
        }
        filter.add(b"/a/b", b"t", 5);
        assert!(filter.wants(&event("/a/b/c", "t")));
        filter.remove(b"/a/b", b"t");
        assert!(!filter.wants(&event("/a/b/c", "t")));
    }

    #[test]
    fn the_root_is_above_everything() {
        let mut filter = DepthFilter::default();
        filter.add(b"/", b"t", 1);
        assert!(filter.wants(&event("/", "t")) && filter.wants(&event("/a", "t")));
        assert!(!filter.wants(&event("/a/b", "t")));
    }
}
