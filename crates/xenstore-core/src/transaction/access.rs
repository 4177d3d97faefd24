//! The paths that a transaction has accessed.

/// Accesses of a transaction to one path.
pub(super) struct Accessed {
    /// The first entry of the log about the path.
    pub(super) first: u32,
    /// Looks of its whole time, as `Look::bit`.
    pub(super) ever: u8,
    pub(super) lately: Lately,
}

/// Accesses of a transaction to one path in the shape that its tree has.
#[derive(Clone, Copy, Default)]
pub(super) struct Lately {
    /// In the shape of this number.
    pub(super) shape: u32,
    /// Looks, as `Look::bit`.
    pub(super) looks: u8,
    /// Changes that changed nothing, as `Change::idle_bit`.
    pub(super) idle: u8,
    /// The entry of the log that has written the value.
    pub(super) value: Option<u32>,
}

impl Lately {
    /// Nothing, in the shape of this number.
    pub(super) fn of(shape: u32) -> Self {
        Self { shape, ..Self::default() }
    }
}

impl Accessed {
    /// The accesses in the shape of this number.
    pub(super) fn in_shape(&mut self, shape: u32) -> &mut Lately {
        if self.lately.shape != shape {
            self.lately = Lately::of(shape);
        }
        &mut self.lately
    }
}
