//! The format of the tables: the requests of each client, and the answers of a daemon.
//!
//! ```text
//! == a name                                  a case: a fresh daemon
//! == a name !ox(id)                          not run against oxenstored; why: `id`
//! dom0 WRITE /a|x -> OK                      a request of a socket client; `OK` stands for `OK|`
//! dom0/2 READ /a| -> x                       another socket client
//! d7 introduce                               a domain is created and introduced (`-> EINVAL`)
//! d7 created                                 a domain is created
//! d7 home                                    as `introduce`, and it owns /local/domain/7 (n7)
//! d7 READ x| -> ENOENT ~ c(id) EACCES        C does something else; why: `id`
//! d7 READ x| -> ok ~ ox-4.17.5+72(id) EIO    oxenstored does in this version alone
//! dom0 TRANSACTION_START | -> $t             keeps the reply as `t`
//! dom0 @$t READ /a| -> x                     a request in transaction `t`
//! dom0 event /a|tok|                         the next event; waits for it
//! dom0 event /a|tok| ~ ox(id) nothing        oxenstored does not send it
//! dom0 quiet                                 no event is left
//! d7 dies, d7 shuts down, d7 runs again      what the hypervisor would report
//! dom0 READ /a| -> x ~ xenbus(id) closed     over `/dev/xen/xenbus` that is otherwise; `xen`: on Xen
//! dom0/2 closes                              the socket client goes away
//! repeat 9 dom0 WRITE /n$i|x -> OK           nine times, `$i` from 1
//! ```
//!
//! The name of a peer stands for all of its versions. `name-version` stands for one, and comes
//! before the bare name; if several versions differ, each is named. The versions are those of
//! [`Version::KNOWN`].
//!
//! Expectations: an error's name, `OK`, a payload in the notation, `$name` (anything, kept),
//! `*` (any success), `refused` (any error), `closed`, `silent`, and
//! `tx=N` (a reply that carries another transaction's id than the request).
//!
//! [`Version::KNOWN`]: crate::version::Version::KNOWN

use crate::host::Mark;

/// A case: the steps against one fresh daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableCase {
    /// Its name.
    pub name: String,
    /// The marks under which it does not run, each with the id of the difference that excludes it.
    pub not: Vec<(Mark, String)>,
    /// The steps, in order.
    pub steps: Vec<TableStep>,
}

/// One line of a case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableStep {
    /// Its line number in the file, from 1.
    pub line: usize,
    /// The number of times that it runs.
    pub times: u32,
    /// The client that performs it.
    pub who: Speaker,
    /// The action.
    pub action: StepAction,
    /// The differences: the mark, the difference's id, the answer.
    pub differs: Vec<(Mark, String, String)>,
}

/// A client of the daemon.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Speaker {
    /// A socket client of domain 0, by name.
    Dom0(String),
    /// A domain with a ring.
    Guest(u16),
}

/// The action of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepAction {
    /// A request.
    Request {
        /// The type's name or number.
        kind: String,
        /// The transaction: a variable's name or a number; empty for none.
        tx: String,
        /// The payload in the notation, variables not yet replaced.
        payload: String,
        /// The expected answer.
        expect: String,
    },
    /// This event comes next.
    Event(String),
    /// No event is waiting.
    Quiet,
    /// The domain is created.
    Created,
    /// The domain is created, unless it exists, and domain 0 introduces it.
    Introduce(String),
    /// The domain is introduced and owns its home, which no other domain may read.
    Home,
    /// The domain is destroyed.
    Dies,
    /// The domain shuts down.
    ShutsDown,
    /// The domain runs again.
    RunsAgain,
    /// The socket is closed.
    Closes,
}

/// Parses a file of tables.
///
/// # Errors
/// The first invalid line.
pub fn parse(text: &str) -> Result<Vec<TableCase>, String> {
    let mut cases: Vec<TableCase> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fail = |why: String| format!("line {}: {why}: {line}", index + 1);
        if let Some(header) = line.strip_prefix("== ") {
            cases.push(case(header).map_err(fail)?);
            continue;
        }
        let step = step(line, index + 1).map_err(fail)?;
        let case = cases.last_mut().ok_or_else(|| fail("a step before any `==`".to_owned()))?;
        case.steps.push(step);
    }
    Ok(cases)
}

fn case(header: &str) -> Result<TableCase, String> {
    let mut parts = header.split(" !");
    let name = parts.next().unwrap_or_default().trim().to_owned();
    let not =
        parts.map(|part| marked(part).map(|(kind, id, _)| (kind, id))).collect::<Result<_, _>>()?;
    Ok(TableCase { name, not, steps: Vec::new() })
}

/// Parses `c(id) the rest`.
fn marked(text: &str) -> Result<(Mark, String, String), String> {
    let (kind, rest) = text.split_once('(').ok_or("a difference without `(id)`")?;
    let (id, rest) = rest.split_once(')').ok_or("a difference without `)`")?;
    Ok((Mark::named(kind.trim())?, id.to_owned(), rest.trim().to_owned()))
}

fn step(line: &str, number: usize) -> Result<TableStep, String> {
    let mut parts = line.split(" ~ ");
    let main = parts.next().unwrap_or_default().trim();
    let differs = parts.map(marked).collect::<Result<_, _>>()?;
    let (times, main) = match main.strip_prefix("repeat ") {
        Some(rest) => {
            let (count, rest) = rest.split_once(' ').ok_or("`repeat` without a count")?;
            (count.parse().map_err(|_| format!("`{count}` is no count"))?, rest)
        }
        None => (1, main),
    };
    let (who, rest) = main.split_once(' ').ok_or("no action")?;
    Ok(TableStep { line: number, times, who: speaker(who)?, action: action(rest.trim())?, differs })
}

fn speaker(text: &str) -> Result<Speaker, String> {
    if text.starts_with("dom0") {
        return Ok(Speaker::Dom0(text.to_owned()));
    }
    let number = text.strip_prefix('d').and_then(|digits| digits.parse().ok());
    number.map(Speaker::Guest).ok_or_else(|| format!("`{text}` is nobody"))
}

fn action(text: &str) -> Result<StepAction, String> {
    if let Some(payload) = text.strip_prefix("event ") {
        return Ok(StepAction::Event(payload.trim().to_owned()));
    }
    let plain = match text {
        "quiet" => Some(StepAction::Quiet),
        "created" => Some(StepAction::Created),
        "introduce" => Some(StepAction::Introduce("OK".to_owned())),
        "home" => Some(StepAction::Home),
        "dies" => Some(StepAction::Dies),
        "shuts down" => Some(StepAction::ShutsDown),
        "runs again" => Some(StepAction::RunsAgain),
        "closes" => Some(StepAction::Closes),
        _ => None,
    };
    if let Some(action) = plain {
        return Ok(action);
    }
    let (asked, expect) = match text.split_once(" ->") {
        Some((asked, expect)) => (asked.trim(), expect.trim().to_owned()),
        None => return Err("no ` -> expectation`".to_owned()),
    };
    if asked == "introduce" {
        return Ok(StepAction::Introduce(expect));
    }
    let (tx, asked) = match asked.strip_prefix('@') {
        Some(rest) => rest.split_once(' ').ok_or("a transaction without a request")?,
        None => ("", asked),
    };
    let (kind, payload) = asked.split_once(' ').unwrap_or((asked, ""));
    if crate::peer::type_code(kind).is_none() {
        return Err(format!("`{kind}` is no message type"));
    }
    let (kind, tx, payload) = (kind.to_owned(), tx.to_owned(), payload.trim().to_owned());
    Ok(StepAction::Request { kind, tx, payload, expect })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::DaemonKind;
    use crate::version::Version;

    #[test]
    fn a_line_with_differences() {
        let text = "== one !ox(why)\ndom0 @t READ /a| -> ENOENT ~ c(x) EIO ~ ox(y) a b";
        let cases = parse(text).unwrap();
        assert_eq!(cases[0].name, "one");
        assert_eq!(cases[0].not, [(Mark::Daemon(DaemonKind::OCaml), "why".to_owned())]);
        let step = &cases[0].steps[0];
        assert_eq!(
            step.differs[1],
            (Mark::Daemon(DaemonKind::OCaml), "y".to_owned(), "a b".to_owned())
        );
        assert!(
            matches!(&step.action, StepAction::Request { tx, expect, .. } if tx == "t" && expect == "ENOENT")
        );
    }

    #[test]
    fn a_difference_of_one_version() {
        let text = "== one !ox-4.17.7+13(why)\nd7 READ a| -> x ~ ox(a) EIO ~ ox-4.17.5+72(b) y z";
        let cases = parse(text).unwrap();
        let [older, newer] =
            Version::KNOWN.map(|version| Mark::Version(DaemonKind::OCaml, version));
        assert_eq!(cases[0].not, [(newer, "why".to_owned())]);
        let differs = [(Mark::Daemon(DaemonKind::OCaml), "a", "EIO"), (older, "b", "y z")];
        let differs = differs.map(|(mark, id, answer)| (mark, id.to_owned(), answer.to_owned()));
        assert_eq!(cases[0].steps[0].differs, differs);
    }

    #[test]
    fn versions_that_are_none_are_refused() {
        for mark in ["ox-", "ox-4.17", "ox-4.17.5", "ours-4.17.5+72", "xen-4.17.5+72", "-4.17.5+72"]
        {
            let line = format!("== case\nd7 READ a| -> x ~ {mark}(id) y");
            assert!(parse(&line).is_err(), "{mark}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["dom0 READ /a|", "x1 READ /a| -> OK", "dom0 READS /a| -> OK", "d7 lives"] {
            assert!(parse(&format!("== case\n{line}")).is_err(), "{line}");
        }
    }
}
