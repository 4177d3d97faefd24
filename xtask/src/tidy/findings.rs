//! The findings of the checks.

/// The findings: faults fail, remarks do not.
#[derive(Default)]
pub(crate) struct Findings {
    pub(super) faults: Vec<String>,
    pub(super) remarks: Vec<String>,
}

impl Findings {
    /// Something that must not be.
    pub(crate) fn fault(&mut self, place: &str, what: impl AsRef<str>) {
        self.faults.push(format!("{place}: {}", what.as_ref()));
    }

    /// Something to think about.
    pub(crate) fn remark(&mut self, place: &str, what: impl AsRef<str>) {
        self.remarks.push(format!("{place}: {}", what.as_ref()));
    }
}
