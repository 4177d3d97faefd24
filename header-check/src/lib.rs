//! Our numbers and layouts, each beside the C expression that the headers have for it.
//!
//! The promise: a constant, a size or an offset that is written down in this project is the one that
//! Debian's `libxen-dev` has. The comparison is a C program, compiled from [`Row`]s and run.
//!
//! | module | what it lists |
//! |---|---|
//! | [`hypervisor`] | `xen.h`, `grant_table.h`, `event_channel.h`, `sched.h`, `domctl.h`, `sysctl.h` |
//! | [`drivers`] | Linux's `/dev/xen/*` |
//! | [`store`] | `io/xs_wire.h` |
//! | [`compare`] | the C program |

pub mod compare;
pub mod drivers;
pub mod hypervisor;
pub mod store;

/// Whether a header of any version has to have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// All versions from 4.17 on.
    Always,
    /// This version of Xen; older headers do not have it.
    Version(&'static str),
}

/// One number of ours.
#[derive(Clone, Debug)]
pub struct Row {
    /// What the headers call it: an expression in C.
    pub c: String,
    /// What it is here.
    pub ours: i64,
    /// Which headers have it.
    pub since: Since,
}

/// A row that every header has.
#[must_use]
pub fn row(c: impl Into<String>, ours: impl TryInto<i64>) -> Row {
    let c = c.into();
    let Ok(ours) = ours.try_into() else { panic!("{c}: beyond 63 bits") };
    Row { c, ours, since: Since::Always }
}

impl Row {
    /// The same row, of headers since `version` only.
    #[must_use]
    pub fn since(self, version: &'static str) -> Self {
        Self { since: Since::Version(version), ..self }
    }
}

/// Rows for the size of a structure and the offsets of its fields. A field is `ours` or, where the
/// header has another name for it, `ours = "theirs"`.
#[macro_export]
macro_rules! layout {
    ($rows:ident, $c:literal = $ours:ty { $($field:ident $(= $theirs:literal)?),* $(,)? }) => {
        $rows.push($crate::row(concat!("sizeof(", $c, ")"), size_of::<$ours>()));
        $($rows.push($crate::row(
            format!("offsetof({}, {})", $c, $crate::layout!(@name $field $(= $theirs)?)),
            std::mem::offset_of!($ours, $field),
        ));)*
    };
    (@name $field:ident = $theirs:literal) => { $theirs };
    (@name $field:ident) => { stringify!($field).trim_start_matches("r#") };
}
