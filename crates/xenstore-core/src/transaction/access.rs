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
    /// The looks, as bits of `Look::bit`.
    pub(super) looks: u8,
    /// The changes without effect, as bits of `Change::idle_bit`.
    pub(super) idle: u8,
    /// The log entry that has written the value.
    pub(super) value: Option<u32>,
}

impl ShapeAccesses {
    /// Returns no accesses, in the shape of this number.
    pub(super) fn of(shape: u32) -> Self {
        Self { shape, ..Self::default() }
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
