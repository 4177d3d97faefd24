//! The paths that a transaction has accessed.

/// The accesses of a transaction to one path.
pub(super) struct PathAccesses {
    /// The first log entry on the path.
    pub(super) first: u32,
    /// The looks since the start, as bits of `Look::bit`.
    pub(super) ever: u8,
    pub(super) lately: ShapeAccesses,
}

/// The accesses of a transaction to one path in the present shape of its tree.
#[derive(Clone, Copy, Default)]
pub(super) struct ShapeAccesses {
    /// The number of the shape.
    pub(super) shape: u32,
    /// The looks that showed a node, as bits of `Look::bit`.
    pub(super) looks: u8,
    /// The changes without effect, as bits of `Change::idle_bit`.
    pub(super) idle: u8,
    pub(super) refused: RefusedLooks,
    /// The log entry that has written the value.
    pub(super) value: Option<u32>,
}

/// The looks at one path that were refused since the last change that was granted.
///
/// A change that left the shape as it was, such as the removal of a node that is absent, may have
/// an effect when the log runs again on another state. Then the same look may be refused before it
/// and not after it. Changes need another right, and cannot be refused and granted so.
#[derive(Clone, Copy, Default)]
pub(super) struct RefusedLooks {
    /// The number of changes in the log that were granted.
    granted: u32,
    /// The looks, as bits of `Look::bit`.
    looks: u8,
}

impl ShapeAccesses {
    /// Returns no accesses, in the shape of this number.
    pub(super) fn of(shape: u32) -> Self {
        Self { shape, ..Self::default() }
    }

    /// Adds a look, behind this number of granted changes. Returns false if it shows nothing new.
    pub(super) fn add_look(&mut self, bit: u8, is_refused: bool, granted: u32) -> bool {
        if self.has_look(bit, granted) {
            return false;
        }
        if !is_refused {
            self.looks |= bit;
        } else if self.refused.granted == granted {
            self.refused.looks |= bit;
        } else {
            self.refused = RefusedLooks { granted, looks: bit };
        }
        true
    }

    /// True if such a look, behind this number of granted changes, shows nothing new.
    pub(super) fn has_look(&self, bit: u8, granted: u32) -> bool {
        let is_refused = self.refused.granted == granted && self.refused.looks & bit != 0;
        self.looks & bit != 0 || is_refused
    }
}

impl PathAccesses {
    /// Returns the accesses in the shape of this number.
    pub(super) fn in_shape(&mut self, shape: u32) -> &mut ShapeAccesses {
        if self.lately.shape != shape {
            self.lately = ShapeAccesses::of(shape);
        }
        &mut self.lately
    }
}
