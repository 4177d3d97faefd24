//! Our numbers and layouts, each beside its C expression in the headers.
//!
//! The promise: a constant, a size or an offset of Xen's that is written down in this project is
//! the one that Debian's `libxen-dev` has. A number that its Xen is too old for is named and not
//! compared. The comparison is a C program, compiled from [`CheckedNumber`]s and run.
//!
//! | module | what it lists |
//! |---|---|
//! | [`hypervisor`] | `xen.h`, `grant_table.h`, `event_channel.h`, `sched.h`, `domctl.h`, `sysctl.h` |
//! | [`drivers`] | Linux's `/dev/xen/*` |
//! | [`store`] | `io/xs_wire.h` |
//! | [`io`] | `io/ring.h`, `io/blkif.h` for 64 and 32 bits, `io/protocols.h`, `io/xenbus.h`, `io/console.h` |
//! | [`guest`] | numbers of the conformance suite's guest, as in `xen.h` and `io/console.h` |
//! | [`compare`] | the C program |

pub mod compare;
pub mod drivers;
pub mod guest;
pub mod hypervisor;
pub mod io;
pub mod store;

/// The first Xen whose headers have a definition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum XenVersion {
    /// The oldest one that this project knows.
    V4_17,
    /// 4.21.
    V4_21,
    /// 4.22.
    V4_22,
}

impl XenVersion {
    /// Returns its version number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4_17 => "4.17",
            Self::V4_21 => "4.21",
            Self::V4_22 => "4.22",
        }
    }
}

/// One number of ours.
#[derive(Clone, Debug)]
pub struct CheckedNumber {
    /// The name in the headers: an expression in C.
    pub c: String,
    /// The value in this project.
    pub ours: i64,
    /// The first headers that have it.
    pub since: XenVersion,
}

/// Returns a row that every version of the headers has.
#[must_use]
pub fn row(c: impl Into<String>, ours: impl TryInto<i64>) -> CheckedNumber {
    let c = c.into();
    let Ok(ours) = ours.try_into() else { panic!("{c}: beyond 63 bits") };
    CheckedNumber { c, ours, since: XenVersion::V4_17 }
}

impl CheckedNumber {
    /// Returns this row for headers since `since` only.
    #[must_use]
    pub fn since(self, since: XenVersion) -> Self {
        Self { since, ..self }
    }
}

/// Adds the rows for the size of a structure and the offsets of its fields. A field is `ours` or,
/// where the header has another name for it, `ours = "theirs"`.
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
